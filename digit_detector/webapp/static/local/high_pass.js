// First-order high-pass filter that removes offset and rumble, as digit_detector/streaming/high_pass.py.

import { SAMPLE_RATE } from "./clip.js";

/** State of one stream. */
export class HighPass {
  constructor(config) {
    const tangent = Math.tan((Math.PI * config.high_pass_hz) / SAMPLE_RATE);
    this.pole = (1 - tangent) / (1 + tangent);
    this.gain = (1 + this.pole) / 2;
    this.last = null; // input
    this.before = 0; // output
  }

  /** The next block -> the same without its offset. */
  filter(block) {
    const made = new Float32Array(block.length);
    this.last ??= block[0];
    for (let i = 0; i < block.length; i++) {
      this.before = this.gain * (block[i] - this.last) + this.pole * this.before;
      this.last = block[i];
      made[i] = this.before;
    }
    return made;
  }
}
