// Peak picking on smoothed frame posteriors, as digit_detector/streaming/peak_picker.py.

/** Turns a stream's posteriors, frame by frame, into candidates. */
export class PeakPicker {
  constructor(config) {
    this.config = config;
    this.rearm = config.rearm_ratio * config.spotter_threshold;
    this.reset();
  }

  reset() {
    this.recent = []; // up to smoothing_frames - 1 frames before the next; those that never came are zeros
    this.above = null; // per digit: whether its peak was reported and it has not fallen since
    this.peak = null;
    this.age = this.hold = 0; // frames since the peak began, and since its maximum
    this.reported = -this.config.refractory_frames;
  }

  /** The next frame's posteriors, and the frames since its word began -> the candidate that it decides, or null. */
  push(frame, posteriors, duration) {
    const config = this.config;
    const smoothed = posteriors.map((now, i) => {
      const sum = this.recent.reduce((total, earlier) => Math.fround(total + earlier[i]), 0);
      return Math.fround(Math.fround(sum + now) / config.smoothing_frames);
    });
    this.recent.push(posteriors);
    if (this.recent.length >= config.smoothing_frames) this.recent.shift();
    this.above = smoothed.map((height, i) => Boolean(this.above?.[i]) && height >= this.rearm);
    const free = smoothed.map((height, i) => (this.above[i] ? 0 : height));
    const digit = free.indexOf(Math.max(...free));
    const height = smoothed[digit];
    if (!this.peak) {
      const ready = frame - this.reported >= config.refractory_frames;
      if (ready && height >= config.spotter_threshold && !this.above[digit]) {
        this.peak = { digit, height, smoothed, frame, duration };
        this.age = this.hold = 0;
      }
      return null;
    }
    this.age++;
    this.hold++;
    if (height > this.peak.height) {
      this.peak = { digit, height, smoothed, frame, duration };
      this.hold = 0;
    }
    const isFalling = height < config.drop_ratio * this.peak.height;
    if (!isFalling && this.hold < config.max_hold_frames && this.age < config.max_peak_frames) return null;
    const peak = this.peak;
    this.peak = null;
    this.above = smoothed.map((value, i) => this.above[i] || value >= this.rearm || i === peak.digit);
    this.reported = frame;
    const centre = peak.frame + 1 - (config.smoothing_frames - 1) / 2;
    const last = centre - config.latency_frames;
    const first = Math.min(centre - peak.duration, last - config.min_word_frames);
    return { digit: peak.digit, posteriors: peak.smoothed, first, last, frame };
  }
}

/** Whether a detection is the same word as an earlier one, or null: the same digit, ending less than `within` seconds later. */
export function repeats(later, earlier, within) {
  return earlier !== null && earlier.digit === later.digit && later.end - earlier.end < within;
}
