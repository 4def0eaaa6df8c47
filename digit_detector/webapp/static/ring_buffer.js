const KEPT = 30; // seconds; longer than any utterance and its delay
const BEFORE = 0.35, AFTER = 0.18; // seconds around a word

/** The last seconds of a stream, to cut words out of. */
export class RingBuffer {
  constructor(rate) {
    this.rate = rate;
    this._ring = new Float32Array(KEPT * rate);
    this._length = 0;
  }

  /** Seconds of the stream until now. */
  get seconds() {
    return this._length / this.rate;
  }

  push(samples) {
    const at = this._length % this._ring.length;
    const fits = Math.min(samples.length, this._ring.length - at);
    this._ring.set(samples.subarray(0, fits), at);
    this._ring.set(samples.subarray(fits), 0);
    this._length += samples.length;
  }

  /**
   * A word from `start` to `end`, in seconds of the stream, with a little around it: not more than from the end of the
   * word before to the start of the word after.
   */
  word(start, end, previousEnd = 0, nextStart = Infinity) {
    const oldest = Math.max(0, this._length - this._ring.length);
    const from = Math.max(oldest, Math.round(Math.max(start - BEFORE, previousEnd) * this.rate));
    const to = Math.min(this._length, Math.round(Math.min(end + AFTER, nextStart) * this.rate));
    return Float32Array.from({ length: Math.max(0, to - from) }, (_, n) => this._ring[(from + n) % this._ring.length]);
  }
}
