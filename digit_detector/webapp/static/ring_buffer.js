const KEPT = 20; // seconds; longer than any word and its delay
const BEFORE = 0.35, AFTER = 0.18; // seconds around a word, as in the live detector

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

  /** A word from `start` to `end`, in seconds of the stream, with a little around it. */
  word(start, end) {
    const oldest = Math.max(0, this._length - this._ring.length);
    const from = Math.max(oldest, Math.round((start - BEFORE) * this.rate));
    const to = Math.min(this._length, Math.round((end + AFTER) * this.rate));
    return Float32Array.from({ length: Math.max(0, to - from) }, (_, n) => this._ring[(from + n) % this._ring.length]);
  }
}
