import { encodeWav } from "./wav.js";

// The server's messages about these are for its administrator: how to install them, which variables to set.
const OTHERS = { external_api: "the service gave no answer" };

/**
 * The server's processors answer whole recordings. A `reason` or an `error` is for users of the page; `detail`
 * is the server's own message, if it differs.
 */
export class ServerProcessors {
  /** -> [{name, title, available, reason, detail}] */
  async list() {
    const { processors } = await fetched("processors");
    return processors.map(({ reason, ...processor }) => ({ ...processor, reason: reason && "not set up on this server", detail: reason }));
  }

  /** Mono Float32Array at `rate` Hz -> {name, text, confidence, milliseconds, error} */
  answer(name, samples, rate) {
    return this.answerFile(name, encodeWav(samples, rate));
  }

  /** The same of a file as it is; the server decodes it. */
  async answerFile(name, file) {
    const form = new FormData();
    form.append("file", file, "word");
    form.append("method", name);
    try {
      const [{ method, ...result }] = (await fetched("process_audio", { method: "POST", body: form })).results;
      return { name: method, ...result, error: result.error && (OTHERS[method] ?? result.error), detail: result.error };
    } catch (error) {
      return { name, text: "", confidence: null, milliseconds: null, error: error.message };
    }
  }

  /** All that are available, on the same sound. */
  async answerAll(samples, rate) {
    const usable = (await this.list()).filter(({ available }) => available);
    return Promise.all(usable.map(({ name }) => this.answer(name, samples, rate)));
  }
}

async function fetched(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => null);
  if (answer?.error?.code === "not_supported") throw new Error("the server cannot read this format: a WAV file works everywhere");
  if (!response.ok) throw new Error(answer?.error?.message ?? `the server answered ${response.status}`);
  return answer;
}
