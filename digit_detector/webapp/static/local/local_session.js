// Live detection in the browser: no sound leaves it. Has the interface of ServerSession.

import { call } from "./worker_client.js";

const BEHIND = 3; // seconds of sound that may wait
let count = 0;

export class LocalSession {
  constructor() {
    this.onready = this.onlevel = this.ondigits = this.onerror = this.onlost = () => {};
    this.number = null; // of the stream
    this.isOpen = false; // until it is stopped
    this.waiting = 0; // seconds of sound that was sent and is not processed yet
  }

  /**
   * Start a stream at `sampleRate` Hz, and fetch missing models -> whether it started; `stop` ends the wait.
   * `context` is "digits" or "any".
   */
  async open(sampleRate, context = "digits") {
    this.close();
    const number = (this.number = count++);
    this.sampleRate = sampleRate;
    this.waiting = 0;
    const left = new Promise((resolve) => (this.leave = resolve));
    try {
      await Promise.race([call("open", number, sampleRate, context), left]);
    } catch (fault) {
      this.failed(number, fault);
      return false;
    }
    if (this.number !== number) {
      drop(number);
      return false;
    }
    this.isOpen = true;
    this.onready({ seconds: 0 });
    return true;
  }

  /** More sound: Float32Array, one channel. */
  send(samples) {
    if (!this.isOpen) return;
    const number = this.number;
    const seconds = samples.length / this.sampleRate;
    this.waiting += seconds;
    if (this.waiting > Math.max(BEHIND, 2 * seconds)) {
      const message = "this device is too slow for live detection: close other pages, or use the server";
      this.failed(number, { code: "too_slow", message });
      return;
    }
    call("feed", number, samples.slice()).then(
      (update) => {
        if (this.number !== number) return;
        this.waiting -= seconds;
        this.report(update);
      },
      (fault) => this.failed(number, fault),
    );
  }

  /** End the stream; resolves after its last digit. */
  async stop() {
    if (!this.isOpen) return this.close();
    this.isOpen = false;
    const number = this.number;
    try {
      const update = await call("stop", number);
      if (this.number !== number) return;
      this.report(update);
      this.number = null;
    } catch (fault) {
      this.failed(number, fault);
    }
  }

  /** Drop the stream. */
  close() {
    this.leave?.();
    if (this.number !== null) drop(this.number);
    this.number = null;
    this.isOpen = false;
  }

  report({ digits, ...level }) {
    if (digits.length) this.ondigits(digits);
    this.onlevel(level);
  }

  failed(number, { code, message }) {
    if (this.number !== number) return;
    this.close();
    this.onerror({ code, message });
  }
}

function drop(number) {
  call("close", number).catch(() => {}); // without a worker there is no stream
}
