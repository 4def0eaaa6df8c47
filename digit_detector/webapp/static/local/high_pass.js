// Removes offsets and what rumbles, before anything else listens, as digit_detector/streaming/high_pass.py.

import { SAMPLE_RATE } from "./clip.js";

const CUTOFF = 40.0; // Hz
const tangent = Math.tan((Math.PI * CUTOFF) / SAMPLE_RATE);
const pole = (1 - tangent) / (1 + tangent);
const gain = (1 + pole) / 2;

/** Of one stream. An offset is there from the beginning. */
export class HighPass {
  constructor() {
    this.last = null; // input
    this.before = 0; // output
  }

  /** The next block -> the same without its offset. */
  filter(block) {
    const made = new Float32Array(block.length);
    this.last ??= block[0];
    for (let i = 0; i < block.length; i++) {
      this.before = gain * (block[i] - this.last) + pole * this.before;
      this.last = block[i];
      made[i] = this.before;
    }
    return made;
  }
}
