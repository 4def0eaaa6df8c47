import { asWav } from "./wav.js";

// What the server says of these is for whoever runs it: how to install them, which variables to set.
const OTHERS = { external_api: "the service gave no answer" };

/**
 * The server's processors answer whole recordings. A `reason` or an `error` is for people who use the page; `detail`
 * is what the server says, where that is something else.
 */
export class ServerProcessors {
  /** -> [{name, title, available, reason, detail}] */
  async list() {
    const { processors } = await fetched("processors");
    return processors.map(({ reason, ...processor }) => ({ ...processor, reason: reason && "not set up on this server", detail: reason }));
  }

  /** Mono Float32Array at `rate` Hz -> {name, text, confidence, milliseconds, error} */
  answer(name, samples, rate) {
    return this.answerFile(name, asWav(samples, rate));
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
  const said = await response.json().catch(() => null);
  if (said?.error?.code === "not_supported") throw new Error("the server cannot read this format: a WAV file works everywhere");
  if (!response.ok) throw new Error(said?.error?.message ?? `the server said ${response.status}`);
  return said;
}
