// Calls to worker.js, which all of the page shares.

import { Fault } from "./fault.js";

let shared = null;

/** Call a function of the worker -> its result; rejects with a Fault. Copy parts of a buffer: the whole of it is sent. */
export function call(name, ...args) {
  shared ??= new WorkerClient();
  return shared.call(name, args);
}

class WorkerClient {
  constructor() {
    this.pending = new Map();
    this.count = 0;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.settle(data);
    this.worker.onerror = (event) => this.broken(event);
  }

  call(name, args) {
    return new Promise((resolve, reject) => {
      const id = this.count++;
      this.pending.set(id, { resolve, reject });
      this.worker.postMessage({ id, name, args });
    });
  }

  settle({ id, result, fault }) {
    const { resolve, reject } = this.pending.get(id);
    this.pending.delete(id);
    if (fault) reject(new Fault(fault.code, fault.message));
    else resolve(result);
  }

  /** It could not be loaded, or ended: the next call starts another. */
  broken(event) {
    event.preventDefault();
    this.worker.terminate();
    if (shared === this) shared = null;
    const reason = event.message || "a file of it could not be fetched";
    const message = `recognition in the browser could not start (${reason}): check that the server runs, and reload the page`;
    for (const { reject } of this.pending.values()) reject(new Fault("no_worker", message));
    this.pending.clear();
  }
}
