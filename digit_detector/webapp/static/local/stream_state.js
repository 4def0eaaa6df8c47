// One stream of sound and all that is known of it, as digit_detector/streaming/stream_state.py: the figures are committedUntil there.

import { SAMPLE_RATE, SECOND, joined } from "./clip.js";
import { PeakPicker } from "./peak_picker.js";
import { EnergyGate, SpeechGate } from "./vad.js";
import { HighPass } from "./high_pass.js";
import { Resampler } from "./resampler.js";

export const BLOCK = 256; // samples
export const HOP = 128;
export const FRAMES = BLOCK / HOP; // of a block
const VOICE_PREROLL = 10;
const WORD_PREROLL = 20;
const ENERGY_HELD = 20;
const SPEECH_BEGINS = 0.005;
const SPEECH_HELD = 15;
const AFTER_THE_END = (2 * SAMPLE_RATE) / 5;
const KEPT = 64; // blocks
const BEFORE = 0.35, AFTER = 0.18; // seconds
const CLOSE = 2; // frames

/** What lies between one block and the next. Blocks are numbered from 0. */
export class StreamState {
  constructor(rate, thresholds) {
    this.resampler = rate === SAMPLE_RATE ? null : new Resampler(rate, SAMPLE_RATE, "streams");
    this.pending = new Float32Array(0); // less than a block
    this.last = 0; // sample
    this.highPass = new HighPass();
    this.energy = new EnergyGate(ENERGY_HELD);
    this.speech = new SpeechGate(SPEECH_BEGINS, SPEECH_HELD);
    this.words = new PeakPicker(thresholds.spotted);
    this.voiceState = this.wordState = null; // null: nothing was heard before
    this.voice = 0; // of the last block
    this.reported = null; // the last detection
    this.committedUntil = 0;
    this.blocks = 0; // how many came
    this.voiced = this.spotted = 0; // the next block that voice activity and the spotter hear
    this.wasOpen = false;
    this.kept = Array.from({ length: KEPT }, () => new Float32Array(BLOCK));
    this.voices = new Float32Array(KEPT);
  }

  get seconds() {
    return (this.blocks * BLOCK) / SAMPLE_RATE;
  }

  /** More samples at the stream's rate -> the blocks that are whole now. */
  feed(samples) {
    return this.cut(this.resampler ? this.resampler.feed(samples) : samples);
  }

  /** The last blocks: what was held back, and no more sound for the last word to be told. */
  ending() {
    const held = this.cut(this.resampler ? this.resampler.end() : new Float32Array(0));
    return [...held, ...this.cut(new Float32Array(AFTER_THE_END).fill(this.last))]; // zeros might be a step
  }

  cut(samples) {
    if (samples.length) this.last = samples[samples.length - 1];
    const whole = joined([this.pending, samples]);
    const count = Math.floor(whole.length / BLOCK);
    this.pending = whole.slice(count * BLOCK);
    return Array.from({ length: count }, (_, i) => whole.slice(i * BLOCK, (i + 1) * BLOCK));
  }

  /** Hear the next block; -> the numbers of the blocks that voice activity must hear now. */
  take(block) {
    const now = this.blocks++;
    block = this.highPass.filter(block);
    this.kept[now % KEPT] = block;
    this.voices[now % KEPT] = 0;
    if (!this.energy.hears(block)) {
      this.wasOpen = false;
      this.voice = 0;
      this.speech.close();
      return [];
    }
    if (!this.wasOpen) {
      this.wasOpen = true;
      this.voiced = Math.max(this.voiced, now - VOICE_PREROLL);
      this.voiceState = null;
    }
    const first = this.voiced;
    this.voiced = now + 1;
    return range(first, now);
  }

  /** What voice activity says of a block -> the numbers of the blocks that the spotter must hear now. */
  heardVoice(number, voice) {
    this.voice = this.voices[number % KEPT] = voice;
    const wasOpen = this.speech.isOpen;
    if (!this.speech.hears(voice)) return [];
    if (!wasOpen) {
      this.words.reset();
      this.spotted = Math.max(this.spotted, number - WORD_PREROLL, 0);
      this.wordState = null;
    }
    const first = this.spotted;
    this.spotted = number + 1;
    return range(first, number);
  }

  /** What the spotter says of a block -> the digits that it decides. */
  heardWords(number, probabilities, durations) {
    const found = [];
    for (let i = 0; i < FRAMES; i++) {
      const said = Array.from(probabilities.subarray(i * 10, (i + 1) * 10));
      const candidate = this.words.frame(number * FRAMES + i, said, durations[i]);
      if (candidate) found.push(candidate);
    }
    return found;
  }

  block(number) {
    return this.kept[number % KEPT];
  }

  /** The largest voice activity from the beginning of a word until it was known. */
  voiceOf(candidate) {
    const first = Math.max(Math.floor(Math.trunc(candidate.first) / FRAMES), this.blocks - KEPT, 0);
    const last = Math.floor(candidate.frame / FRAMES);
    return Math.max(...range(first, last).map((number) => this.voices[number % KEPT]));
  }

  /** What a candidate sounds like: a second at most, with a little before and after it. */
  word(candidate) {
    const end = Math.min(Math.trunc(candidate.last * HOP + AFTER * SAMPLE_RATE), this.blocks * BLOCK);
    const wanted = Math.trunc(candidate.first * HOP - BEFORE * SAMPLE_RATE);
    const other = Math.min(this.committedUntil, Math.trunc((candidate.first - CLOSE) * HOP));
    const begin = Math.max(wanted, other, end - SECOND, (this.blocks - KEPT) * BLOCK, 0);
    const numbers = range(Math.floor(begin / BLOCK), Math.ceil(end / BLOCK) - 1);
    const sound = joined(numbers.map((number) => this.block(number)));
    return sound.slice(begin % BLOCK, (begin % BLOCK) + end - begin);
  }
}

function range(first, last) {
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => first + i);
}
