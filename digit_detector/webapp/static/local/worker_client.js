// The page's side of worker.js, which is shared by all that hears in this page.

import { Fault } from "./fault.js";

let shared = null;

/** Ask the worker -> what it answers; rejects with a Fault. Of a part of a buffer the whole buffer would go: copy it. */
export function ask(call, ...args) {
  shared ??= new WorkerClient();
  return shared.ask(call, args);
}

class WorkerClient {
  constructor() {
    this.asked = new Map(); // what was not answered yet
    this.count = 0;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.answered(data);
    this.worker.onerror = (event) => this.broken(event);
  }

  ask(call, args) {
    return new Promise((resolve, reject) => {
      const id = this.count++;
      this.asked.set(id, { resolve, reject });
      this.worker.postMessage({ id, call, args });
    });
  }

  answered({ id, result, fault }) {
    const { resolve, reject } = this.asked.get(id);
    this.asked.delete(id);
    if (fault) reject(new Fault(fault.code, fault.message));
    else resolve(result);
  }

  /** It could not be loaded, or ended: whoever asks next begins with another. */
  broken(event) {
    event.preventDefault();
    this.worker.terminate();
    if (shared === this) shared = null;
    const reason = event.message || "a file of it could not be fetched";
    const message = `hearing in the browser could not begin (${reason}): see that the server runs, and reload the page`;
    for (const { reject } of this.asked.values()) reject(new Fault("no_worker", message));
    this.asked.clear();
  }
}
