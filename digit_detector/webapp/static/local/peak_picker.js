// From what the spotter says of every frame to words, as digit_detector/streaming/peak_picker.py: the figures are said and
// committedUntil there.

const SMOOTHING_FRAMES = 3;
const DROP_RATIO = 0.8;
const MAX_HOLD = 3;
const MAX_PEAK_FRAMES = 12;
const REARM_RATIO = 0.5;
const MIN_WORD_FRAMES = 4;
const REFRACTORY_FRAMES = 9;
const LATENCY_FRAMES = 7;
const DUPLICATE_WINDOW = 0.264;
const DIGITS = 10;

/** Finds the hills, frame by frame. `threshold` is what a smoothed probability must reach. */
export class PeakPicker {
  constructor(threshold) {
    this.threshold = threshold;
    this.reset();
  }

  reset() {
    this.recent = [new Float32Array(DIGITS), new Float32Array(DIGITS)];
    this.risen = new Array(DIGITS).fill(false); // digits whose hill was reported and has not ended
    this.hill = null;
    this.since = this.lower = 0; // frames since the hill reached the threshold, and since it was highest
    this.reported = -REFRACTORY_FRAMES;
  }

  /** The next frame's probabilities and how many frames ago its word began -> the digit that it decides, or null. */
  frame(frame, probabilities, duration) {
    const smoothed = probabilities.map((now, i) =>
      Math.fround(Math.fround(Math.fround(this.recent[0][i] + this.recent[1][i]) + now) / SMOOTHING_FRAMES),
    );
    this.recent = [this.recent[1], probabilities];
    const low = REARM_RATIO * this.threshold;
    smoothed.forEach((height, i) => (this.risen[i] &&= height >= low));
    const free = smoothed.map((height, i) => (this.risen[i] ? 0 : height));
    const digit = free.indexOf(Math.max(...free));
    const height = smoothed[digit];
    if (!this.hill) {
      if (!this.risen[digit] && height >= this.threshold && frame - this.reported >= REFRACTORY_FRAMES) {
        this.hill = { digit, height, smoothed, frame, duration };
        this.since = this.lower = 0;
      }
      return null;
    }
    this.since++;
    this.lower++;
    if (height > this.hill.height) {
      this.hill = { digit, height, smoothed, frame, duration };
      this.lower = 0;
    }
    if (height >= DROP_RATIO * this.hill.height && this.lower < MAX_HOLD && this.since < MAX_PEAK_FRAMES) return null;
    const top = this.hill;
    this.hill = null;
    smoothed.forEach((height, i) => (this.risen[i] ||= height >= low));
    this.risen[top.digit] = true;
    this.reported = frame;
    const loudest = top.frame + 1 - (SMOOTHING_FRAMES - 1) / 2;
    const last = loudest - LATENCY_FRAMES;
    const first = Math.min(loudest - top.duration, last - MIN_WORD_FRAMES);
    return { digit: top.digit, spotted: top.smoothed, first, last, frame };
  }
}

/** Whether a detection is the same word as an earlier one, or null, once more. */
export function repeats(later, earlier) {
  return earlier !== null && earlier.digit === later.digit && later.end - earlier.end < DUPLICATE_WINDOW;
}

const OFFSET = -1.39;
const WEIGHTS = [0.61, 0.52, 0.56, 0.29];
const NEVER = 1e-4;

/**
 * How sure one may be that a digit was said, from 0 to 1. `shares` are the spotter's probability, the classifiers' digit
 * score and probability of the digit, and the voice activity.
 */
export function confidence(shares) {
  return share(shares.reduce((sum, one, i) => sum + WEIGHTS[i] * logit(one), OFFSET));
}

/** What several that were asked say together: the mean of their logits, as a probability again. */
export function meanLogOdds(shares) {
  return share(shares.reduce((sum, one) => sum + logit(one), 0) / shares.length);
}

/** The digit of the largest product of the two's probabilities. */
export function productArgmax(spotted, classified) {
  const both = spotted.map((one, i) => Math.max(one, NEVER) * Math.max(classified[i], NEVER));
  return both.indexOf(Math.max(...both));
}

function share(logit) {
  return 1 / (1 + Math.exp(-logit));
}

function logit(share) {
  const bounded = Math.min(Math.max(share, NEVER), 1 - NEVER);
  return Math.log(bounded / (1 - bounded));
}
