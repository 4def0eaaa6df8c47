// State of one stream, as digit_detector/streaming/stream_state.py; `detector` is detector.json.

import { SAMPLE_RATE, joined } from "./clip.js";
import { Decoder, round } from "./decoder.js";
import { HighPass } from "./high_pass.js";
import { Resampler, streamFilter } from "./resampler.js";

const LEAST_POWER = 1e-12; // -120 dB of full scale

/** Everything kept between two blocks. */
export class StreamState {
  constructor(rate, detector, modelState) {
    const { config, block } = detector;
    this.block = block; // samples
    this.flushSamples = round(config.flush_seconds * SAMPLE_RATE);
    this.resampler = rate === SAMPLE_RATE ? null : new Resampler(rate, SAMPLE_RATE, streamFilter(config));
    this.pending = new Float32Array(0); // less than a block
    this.last = 0; // sample
    this.highPass = new HighPass(config);
    this.modelState = modelState;
    this.decoder = new Decoder(detector);
    this.voice = 0; // speech activity of the last block
    this.power = 0; // of the last block
  }

  get seconds() {
    return this.decoder.frame * this.decoder.blockSeconds;
  }

  /** Level of the last block in dB of full scale. */
  get levelDb() {
    return 10 * Math.log10(Math.max(this.power, LEAST_POWER));
  }

  /** More samples at the stream's rate -> the blocks that are complete. */
  feed(samples) {
    return this.splitBlocks(this.resampler ? this.resampler.feed(samples) : samples);
  }

  /** The last blocks: what the resampler held back, and padding in which the last word is decided. */
  flush() {
    const held = this.splitBlocks(this.resampler ? this.resampler.flush() : new Float32Array(0));
    return [...held, ...this.splitBlocks(new Float32Array(this.flushSamples).fill(this.last))]; // no step to 0
  }

  splitBlocks(samples) {
    if (samples.length) this.last = samples[samples.length - 1];
    const whole = joined([this.pending, samples]);
    const count = Math.floor(whole.length / this.block);
    this.pending = whole.slice(count * this.block);
    return Array.from({ length: count }, (_, i) => whole.slice(i * this.block, (i + 1) * this.block));
  }
}
