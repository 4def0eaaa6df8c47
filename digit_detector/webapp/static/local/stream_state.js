// State of one stream, as digit_detector/streaming/stream_state.py; `config` is a DetectorConfig.

import { SAMPLE_RATE, SECOND, joined } from "./clip.js";
import { PeakPicker } from "./peak_picker.js";
import { EnergyGate, SpeechGate } from "./vad.js";
import { HighPass } from "./high_pass.js";
import { Resampler, streamFilter } from "./resampler.js";

export const BLOCK = 256; // samples
export const HOP = 128;
export const FRAMES = BLOCK / HOP; // of a block

/** Everything kept between two blocks. Blocks are numbered from 0. */
export class StreamState {
  constructor(rate, config) {
    this.config = config;
    this.resampler = rate === SAMPLE_RATE ? null : new Resampler(rate, SAMPLE_RATE, streamFilter(config));
    this.pending = new Float32Array(0); // less than a block
    this.last = 0; // sample
    this.highPass = new HighPass(config);
    this.energy = new EnergyGate(config);
    this.speech = new SpeechGate(config);
    this.peaks = new PeakPicker(config);
    this.vadState = this.spotterState = null; // null: as at the beginning
    this.voice = 0; // of the last block
    this.lastDetection = null;
    this.committedUntil = 0;
    this.blocks = 0; // received so far
    this.nextVad = this.nextSpotter = 0; // first block that voice activity and the spotter have not seen
    this.wasOpen = false;
    this.audio = Array.from({ length: config.history_blocks }, () => new Float32Array(BLOCK));
    this.voices = new Float32Array(config.history_blocks);
  }

  get seconds() {
    return (this.blocks * BLOCK) / SAMPLE_RATE;
  }

  /** More samples at the stream's rate -> the blocks that are whole now. */
  feed(samples) {
    return this.splitBlocks(this.resampler ? this.resampler.feed(samples) : samples);
  }

  /** The last blocks: what the resampler held back, and padding in which the last word is decided. */
  flush() {
    const held = this.splitBlocks(this.resampler ? this.resampler.flush() : new Float32Array(0));
    return [...held, ...this.splitBlocks(new Float32Array(Math.round(this.config.flush_seconds * SAMPLE_RATE)).fill(this.last))]; // zeros might be a step
  }

  splitBlocks(samples) {
    if (samples.length) this.last = samples[samples.length - 1];
    const whole = joined([this.pending, samples]);
    const count = Math.floor(whole.length / BLOCK);
    this.pending = whole.slice(count * BLOCK);
    return Array.from({ length: count }, (_, i) => whole.slice(i * BLOCK, (i + 1) * BLOCK));
  }

  /** Store the next block -> the numbers of the blocks that voice activity is due for. */
  push(block) {
    const now = this.blocks++;
    block = this.highPass.filter(block);
    this.audio[now % this.config.history_blocks] = block;
    this.voices[now % this.config.history_blocks] = 0;
    if (!this.energy.update(block)) {
      this.wasOpen = false;
      this.voice = 0;
      this.speech.close();
      return [];
    }
    if (!this.wasOpen) {
      this.wasOpen = true;
      this.nextVad = Math.max(this.nextVad, now - this.config.vad_preroll_blocks);
      this.vadState = null;
    }
    const first = this.nextVad;
    this.nextVad = now + 1;
    return range(first, now);
  }

  /** Take a block's voice activity -> the numbers of the blocks that the spotter is due for. */
  onVad(number, voice) {
    this.voice = this.voices[number % this.config.history_blocks] = voice;
    const wasOpen = this.speech.isOpen;
    if (!this.speech.update(voice)) return [];
    if (!wasOpen) {
      this.peaks.reset();
      this.nextSpotter = Math.max(this.nextSpotter, number - this.config.spotter_preroll_blocks, 0);
      this.spotterState = null;
    }
    const first = this.nextSpotter;
    this.nextSpotter = number + 1;
    return range(first, number);
  }

  /** Take a block's posteriors and durations -> the candidates that it decides. */
  onSpotter(number, probabilities, durations) {
    const candidates = [];
    for (let i = 0; i < FRAMES; i++) {
      const size = probabilities.length / FRAMES;
      const posteriors = Array.from(probabilities.subarray(i * size, (i + 1) * size));
      const candidate = this.peaks.push(number * FRAMES + i, posteriors, durations[i]);
      if (candidate) candidates.push(candidate);
    }
    return candidates;
  }

  block(number) {
    return this.audio[number % this.config.history_blocks];
  }

  /** The largest voice activity between the beginning of a word and the frame that decided it. */
  maxVoice(candidate) {
    const first = Math.max(Math.floor(Math.trunc(candidate.first) / FRAMES), this.blocks - this.config.history_blocks, 0);
    const last = Math.floor(candidate.frame / FRAMES);
    return Math.max(...range(first, last).map((number) => this.voices[number % this.config.history_blocks]));
  }

  /** Samples of a candidate with a margin on both sides, one second at most. */
  wordAudio(candidate) {
    const end = Math.min(Math.trunc(candidate.last * HOP + this.config.margin_after_seconds * SAMPLE_RATE), this.blocks * BLOCK);
    const wanted = Math.trunc(candidate.first * HOP - this.config.margin_before_seconds * SAMPLE_RATE);
    const other = Math.min(this.committedUntil, Math.trunc((candidate.first - this.config.min_margin_frames) * HOP));
    const begin = Math.max(wanted, other, end - SECOND, (this.blocks - this.config.history_blocks) * BLOCK, 0);
    const numbers = range(Math.floor(begin / BLOCK), Math.ceil(end / BLOCK) - 1);
    const sound = joined(numbers.map((number) => this.block(number)));
    return sound.slice(begin % BLOCK, (begin % BLOCK) + end - begin);
  }
}

function range(first, last) {
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => first + i);
}
