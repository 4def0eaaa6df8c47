// From what the spotter says of every frame to words, as digit_detector/streaming/decision.py: the figures are said and
// explained there.

const SMOOTHED = 3;
const PASSED = 0.8;
const WAITS = 3;
const LONGEST = 12;
const FALLEN = 0.5;
const SHORTEST = 4;
const APART = 9;
const END_BEFORE = 7;
const DIGITS = 10;

/** Finds the hills, frame by frame. `threshold` is what a smoothed probability must reach. */
export class WordEnds {
  constructor(threshold) {
    this.threshold = threshold;
    this.reset();
  }

  reset() {
    this.recent = [new Float32Array(DIGITS), new Float32Array(DIGITS)];
    this.risen = new Array(DIGITS).fill(false); // digits whose hill was reported and has not ended
    this.hill = null;
    this.since = this.lower = 0; // frames since the hill reached the threshold, and since it was highest
    this.reported = -APART;
  }

  /** The next frame's probabilities and how many frames ago its word began -> the digit that it decides, or null. */
  frame(frame, probabilities, duration) {
    const smoothed = probabilities.map((now, i) =>
      Math.fround(Math.fround(Math.fround(this.recent[0][i] + this.recent[1][i]) + now) / SMOOTHED),
    );
    this.recent = [this.recent[1], probabilities];
    const low = FALLEN * this.threshold;
    smoothed.forEach((height, i) => (this.risen[i] &&= height >= low));
    const free = smoothed.map((height, i) => (this.risen[i] ? 0 : height));
    const digit = free.indexOf(Math.max(...free));
    const height = smoothed[digit];
    if (!this.hill) {
      if (!this.risen[digit] && height >= this.threshold && frame - this.reported >= APART) {
        this.hill = { digit, height, frame, duration };
        this.since = this.lower = 0;
      }
      return null;
    }
    this.since++;
    this.lower++;
    if (height > this.hill.height) {
      this.hill = { digit, height, frame, duration };
      this.lower = 0;
    }
    if (height >= PASSED * this.hill.height && this.lower < WAITS && this.since < LONGEST) return null;
    const top = this.hill;
    this.hill = null;
    smoothed.forEach((height, i) => (this.risen[i] ||= height >= low));
    this.risen[top.digit] = true;
    this.reported = frame;
    const loudest = top.frame + 1 - (SMOOTHED - 1) / 2;
    const last = loudest - END_BEFORE;
    const first = Math.min(loudest - top.duration, last - SHORTEST);
    return { digit: top.digit, score: top.height, first, last, frame };
  }
}

const OFFSET = -0.9;
const WEIGHTS = [1.3, 0.33, 0.25];
const NEVER = 1e-4;

/** How sure one may be that a digit was said, from what the spotter and the classifiers say, all from 0 to 1. */
export function confidence(spotted, isDigit, classified) {
  const shares = [spotted, isDigit, classified];
  return share(shares.reduce((sum, one, i) => sum + WEIGHTS[i] * logit(one), OFFSET));
}

/** What several that were asked say together: the mean of their logits, as a probability again. */
export function pooled(shares) {
  return share(shares.reduce((sum, one) => sum + logit(one), 0) / shares.length);
}

function share(logit) {
  return 1 / (1 + Math.exp(-logit));
}

function logit(share) {
  const bounded = Math.min(Math.max(share, NEVER), 1 - NEVER);
  return Math.log(bounded / (1 - bounded));
}
