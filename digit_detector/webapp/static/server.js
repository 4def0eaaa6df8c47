import { asWav } from "./wav.js";

/** The server's processors answer whole recordings. */
export class ServerProcessors {
  /** -> [{name, title, available, reason}] */
  async list() {
    return (await fetched("processors")).processors;
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
      return { name: method, ...result };
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
  if (!response.ok) throw new Error(said?.error?.message ?? `the server said ${response.status}`);
  return said;
}
