// Digits in live sound, heard in the browser: no sound leaves it. Has the interface of ServerSession.

import { ask } from "./worker_client.js";

const BEHIND = 3; // seconds of sound that may wait to be heard
let count = 0;

export class LocalSession {
  constructor() {
    this.onready = this.onlevel = this.ondigit = this.onerror = this.onlost = () => {};
    this.number = null; // of the stream
    this.hears = false; // from when it is open until it is to stop
    this.waiting = 0; // seconds of sound that was sent and is not heard yet
  }

  /** Begin to hear sound of so many Hz; models are fetched where they were not yet. Says whether it hears; `stop` ends the wait. */
  async open(sampleRate) {
    this.close();
    const number = (this.number = count++);
    this.sampleRate = sampleRate;
    this.waiting = 0;
    const left = new Promise((resolve) => (this.leave = resolve));
    try {
      await Promise.race([ask("open", number, sampleRate), left]);
    } catch (fault) {
      this.failed(number, fault);
      return false;
    }
    if (this.number !== number) {
      forget(number);
      return false;
    }
    this.hears = true;
    this.onready({ seconds: 0 });
    return true;
  }

  /** More sound: Float32Array, one channel. */
  send(samples) {
    if (!this.hears) return;
    const number = this.number;
    const seconds = samples.length / this.sampleRate;
    this.waiting += seconds;
    if (this.waiting > Math.max(BEHIND, 2 * seconds)) {
      const message = "this device is too slow to hear live sound by itself: close other pages, or let the server hear";
      this.failed(number, { code: "too_slow", message });
      return;
    }
    ask("feed", number, samples.slice()).then(
      (heard) => {
        if (this.number !== number) return;
        this.waiting -= seconds;
        this.tell(heard);
      },
      (fault) => this.failed(number, fault),
    );
  }

  /** The stream has ended; resolves when its last digits were told. */
  async stop() {
    if (!this.hears) return this.close();
    this.hears = false;
    const number = this.number;
    try {
      const heard = await ask("stop", number);
      if (this.number !== number) return;
      this.tell(heard);
      this.number = null;
    } catch (fault) {
      this.failed(number, fault);
    }
  }

  /** Forget the stream; nothing more is told of it. */
  close() {
    this.leave?.();
    if (this.number !== null) forget(this.number);
    this.number = null;
    this.hears = false;
  }

  tell({ seconds, level_db, voice, digits }) {
    this.onlevel({ seconds, level_db, voice });
    for (const digit of digits) this.ondigit(digit);
  }

  failed(number, { code, message }) {
    if (this.number !== number) return;
    this.close();
    this.onerror({ code, message });
  }
}

function forget(number) {
  ask("close", number).catch(() => {}); // where the worker is gone, so is the stream
}
