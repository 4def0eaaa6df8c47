// What is worth listening to, as digit_detector/streaming/vad.py: the figures are said and committedUntil there.

const SILENCE_DB = -78;
const ABOVE_DB = 3;
const RISES_DB = 0.05;
const FIRST_DB = -60;

/** Open while something is louder than the background, and `held` blocks longer. */
export class EnergyGate {
  constructor(held) {
    this.held = held;
    this.levelDb = -120;
    this.backgroundDb = FIRST_DB;
    this.left = 0;
  }

  hears(block) {
    let sum = 0;
    let squares = 0;
    for (const sample of block) {
      sum += sample;
      squares += sample * sample;
    }
    const mean = sum / block.length;
    const power = Math.max(squares / block.length - mean * mean, 1e-12);
    this.levelDb = 10 * Math.log10(power);
    this.backgroundDb = Math.max(Math.min(this.levelDb, this.backgroundDb + RISES_DB), SILENCE_DB);
    if (this.levelDb > this.backgroundDb + ABOVE_DB) this.left = this.held;
    else if (this.left) this.left--;
    return this.left > 0;
  }
}

/** Open from where voice activity reaches `begins` until it stayed below half of that for `held` blocks. */
export class SpeechGate {
  constructor(begins, held) {
    this.begins = begins;
    this.held = held;
    this.left = 0;
  }

  get isOpen() {
    return this.left > 0;
  }

  hears(voice) {
    if (voice >= this.begins || (this.left && voice >= this.begins / 2)) this.left = this.held;
    else if (this.left) this.left--;
    return this.left > 0;
  }

  close() {
    this.left = 0;
  }
}
