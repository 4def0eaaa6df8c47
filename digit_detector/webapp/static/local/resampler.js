// Sound of any rate at another: a windowed sinc of linear phase, computed only where a sample comes out.

// A filter passes all up to `flatness` of the lower Nyquist frequency and is `attenuation` dB down above it. Streams take
// that of their DetectorConfig, as digit_detector/streaming/resampler.py, and are padded with their first and last sample;
// RECORDINGS is soxr's HQ, padded with zeros.
export const RECORDINGS = { flatness: 0.913, attenuation: 100, padsWithEdges: false };

/** The filter of a stream. */
export function streamFilter(config) {
  return { flatness: config.resampler_flatness, attenuation: config.resampler_attenuation_db, padsWithEdges: true };
}

const MOST_PHASES = 512; // whose coefficients are kept; rates that have more are none of sound cards

/** Stateful: however its input is cut into pieces, what comes out is the same. */
export class Resampler {
  constructor(rate, wanted, { flatness, attenuation, padsWithEdges }) {
    const divisor = greatestCommonDivisor(rate, wanted);
    this.up = wanted / divisor;
    this.down = rate / divisor;
    this.padsWithEdges = padsWithEdges;
    const lower = Math.min(rate, wanted) / rate; // of the rate that comes in
    this.cutoff = (lower * (1 + flatness)) / 4;
    // Kaiser's formulas for the window's length and shape (A. V. Oppenheim, R. W. Schafer: Discrete-Time Signal
    // Processing, section 7.5).
    this.half = Math.ceil((attenuation - 7.95) / (2.285 * Math.PI * lower * (1 - flatness)) / 2);
    this.beta = 0.1102 * (attenuation - 8.7);
    this.phases = new Map();
    this.kept = new Float32Array(this.half - 1); // what the next samples need
    this.last = 0; // sample
    this.at = 0; // of the next output in `kept`, where its filter begins
    this.phase = 0; // in 1 / up of an input sample
    this.taken = 0;
    this.given = 0;
  }

  /** More input -> all output that follows from what came until now. */
  feed(samples) {
    if (this.padsWithEdges && samples.length) {
      if (!this.taken) this.kept.fill(samples[0]);
      this.last = samples[samples.length - 1];
    }
    const input = new Float32Array(this.kept.length + samples.length);
    input.set(this.kept);
    input.set(samples, this.kept.length);
    this.taken += samples.length;
    const taps = 2 * this.half;
    const made = [];
    while (this.at + taps <= input.length) {
      const coefficients = this.coefficients(this.phase);
      let sum = 0;
      for (let i = 0; i < taps; i++) sum += coefficients[i] * input[this.at + i];
      made.push(sum);
      this.phase += this.down;
      this.at += Math.floor(this.phase / this.up);
      this.phase %= this.up;
    }
    const used = Math.min(this.at, input.length);
    this.kept = input.slice(used);
    this.at -= used;
    this.given += made.length;
    return Float32Array.from(made);
  }

  /** What is still to come out. */
  flush() {
    const missing = Math.round((this.taken * this.up) / this.down) - this.given;
    return this.feed(new Float32Array(2 * this.half + this.down).fill(this.last)).slice(0, Math.max(0, missing));
  }

  /** Of the 2 * half samples around an output that lies `phase` / up after the one at half - 1. */
  coefficients(phase) {
    const known = this.phases.get(phase);
    if (known) return known;
    const made = new Float64Array(2 * this.half);
    for (let i = 0; i < made.length; i++) {
      const time = i - (this.half - 1) - phase / this.up;
      const place = time / this.half;
      const window = Math.abs(place) < 1 ? bessel(this.beta * Math.sqrt(1 - place * place)) / bessel(this.beta) : 0;
      made[i] = 2 * this.cutoff * sinc(2 * this.cutoff * time) * window;
    }
    if (this.up <= MOST_PHASES) this.phases.set(phase, made);
    return made;
  }
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

/** The modified Bessel function of the first kind and order 0, by its power series. */
function bessel(x) {
  let sum = 1;
  let term = 1;
  for (let n = 1; term > 1e-12 * sum; n++) {
    term *= (x / (2 * n)) ** 2;
    sum += term;
  }
  return sum;
}

function greatestCommonDivisor(a, b) {
  while (b) [a, b] = [b, a % b];
  return a;
}
