// The second of a recording that models classify, at 8 kHz, as in digit_detector/audio.py.

import { Fault } from "./fault.js";
import { RECORDINGS, Resampler } from "./resampler.js";

export const SAMPLE_RATE = 8000; // Hz
export const SECOND = 8000; // samples
const FAINTEST = 1e-6; // of full scale, peak to peak
export const LOUDEST = 1e4; // times full scale; what is beyond is no sound
export const LEAST_RATE = 1000; // Hz
const LARGE_OFFSET = 0.5; // of the standard deviation
const FRAME = SAMPLE_RATE / 100; // the step in which a long recording is searched for its word
const MOST_SECONDS = 3600;

/**
 * A recording of any rate -> Float32Array (8000) with its word in it, zeros where it is silent.
 * Throws a Fault for an invalid recording.
 */
export function clip(samples, rate) {
  checkRate(rate, LEAST_RATE);
  if (samples.length > MOST_SECONDS * rate) {
    throw new Fault("bad_audio", "the recording is longer than an hour: cut it to the word");
  }
  const strange = samples.findIndex((sample) => !(Math.abs(sample) <= LOUDEST)); // NaN is not, either
  if (strange >= 0) {
    throw new Fault("bad_audio", `sample ${strange} of the recording is ${samples[strange]}: expected numbers around -1 to 1; record it anew`);
  }
  return fit(withoutOffset(checked(at8k(samples, rate))));
}

export function checkRate(rate, least) {
  if (!Number.isInteger(rate) || rate < least || rate > 768000) {
    throw new Fault("bad_audio", `the sample rate is ${rate}: expected a whole number of Hz from ${least} to 768000`);
  }
}

function at8k(samples, rate) {
  if (rate === SAMPLE_RATE) return samples;
  const resampler = new Resampler(rate, SAMPLE_RATE, RECORDINGS);
  return joined([resampler.feed(samples), resampler.flush()]);
}

/** The parts one after the other. */
export function joined(parts) {
  const whole = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Without the mean of the recording, where that is large: padded with zeros, it would be two steps. */
function withoutOffset(samples) {
  let sum = 0;
  let squares = 0;
  for (const sample of samples) {
    sum += sample;
    squares += sample * sample;
  }
  const mean = sum / samples.length;
  const deviation = Math.sqrt(Math.max(0, squares / samples.length - mean * mean));
  return Math.abs(mean) > LARGE_OFFSET * deviation ? samples.map((sample) => sample - Math.fround(mean)) : samples;
}

function checked(samples) {
  if (!samples.length) {
    throw new Fault("bad_audio", "the recording holds no samples: expected a spoken digit");
  }
  return isSilent(samples) ? new Float32Array(samples.length) : samples;
}

/** Whether no sample differs from the others by more than features resolve. */
export function isSilent(samples) {
  let least = Infinity;
  let most = -Infinity;
  for (const sample of samples) {
    if (sample < least) least = sample;
    if (sample > most) most = sample;
  }
  return Math.fround(most - least) < FAINTEST;
}

/** A shorter clip in the middle of zeros; of a longer one the second with most speech in it. */
export function fit(samples) {
  if (samples.length > SECOND) {
    const start = wordStart(samples);
    return samples.slice(start, start + SECOND);
  }
  const second = new Float32Array(SECOND);
  second.set(samples, Math.floor((SECOND - samples.length) / 2));
  return second;
}

/** Where the second with the largest sum of frame amplitudes above the background begins. */
function wordStart(samples) {
  const amplitudes = frameAmplitudes(samples);
  const background = 2 * percentile(amplitudes, 15);
  let above = amplitudes.map((amplitude) => Math.max(amplitude - background, 0));
  if (!above.some(Boolean)) above = amplitudes;
  const span = SECOND / FRAME;
  const total = new Float64Array(above.length + 1);
  above.forEach((amplitude, i) => (total[i + 1] = total[i] + amplitude));
  const sums = total.slice(span).map((sum, i) => sum - total[i]);
  const enough = sums.reduce((a, b) => Math.max(a, b)) * (1 - 1e-3);
  const first = sums.findIndex((sum) => sum >= enough);
  let next = first;
  while (next < sums.length && sums[next] >= enough) next++;
  return (first + Math.floor((next - first) / 2)) * FRAME; // of equally good places the middle one
}

/** Of the first difference, so that hum and offsets do not count. */
function frameAmplitudes(samples) {
  const amplitudes = new Float64Array(Math.floor(samples.length / FRAME));
  for (let frame = 0; frame < amplitudes.length; frame++) {
    let power = 0;
    for (let i = frame * FRAME; i < (frame + 1) * FRAME; i++) {
      const edge = Math.fround(samples[i] - (i ? samples[i - 1] : samples[0]));
      power += Math.fround(edge * edge);
    }
    amplitudes[frame] = Math.sqrt(power / FRAME);
  }
  return amplitudes;
}

/** With linear interpolation between the two nearest, as numpy's. */
function percentile(values, percent) {
  const sorted = Float64Array.from(values).sort();
  const place = ((sorted.length - 1) * percent) / 100;
  const low = Math.floor(place);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (place - low);
}
