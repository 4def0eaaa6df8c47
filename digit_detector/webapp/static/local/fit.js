// The twin of `fit` in ml_training/audio.py.
const SECOND = 8000; // samples
const FRAME = 80;

/** Exactly one second of a clip at 8 kHz: a shorter one centred between zeros, of a longer one the second with most speech. */
export function fit(samples) {
  if (samples.length > SECOND) {
    const start = wordStart(samples);
    return samples.slice(start, start + SECOND);
  }
  const second = new Float32Array(SECOND);
  second.set(samples, Math.floor((SECOND - samples.length) / 2));
  return second;
}

function wordStart(samples) {
  const count = Math.floor(samples.length / FRAME);
  const amplitude = Float64Array.from({ length: count }, (_, frame) => {
    let sum = 0;
    for (let n = frame * FRAME; n < (frame + 1) * FRAME; n++) sum += Math.fround(samples[n] - (samples[n - 1] ?? samples[0])) ** 2;
    return Math.sqrt(sum / FRAME);
  });
  const floor = 2 * percentile(amplitude, 15);
  let above = amplitude.map((value) => Math.max(0, value - floor));
  if (!above.some((value) => value > 0)) above = amplitude;
  const span = SECOND / FRAME;
  const total = [0];
  for (const value of above) total.push(total.at(-1) + value);
  const sums = Float64Array.from({ length: count - span + 1 }, (_, n) => total[n + span] - total[n]);
  const enough = sums.reduce((most, sum) => Math.max(most, sum), -Infinity) * (1 - 1e-3);
  const first = sums.findIndex((sum) => sum >= enough);
  let last = first;
  while (sums[last + 1] >= enough) last++;
  return (first + Math.floor((last - first + 1) / 2)) * FRAME;
}

/** As numpy.percentile: linear between the two nearest. */
function percentile(values, share) {
  const sorted = values.toSorted();
  const at = ((sorted.length - 1) * share) / 100;
  const below = Math.floor(at);
  return sorted[below] + ((sorted[below + 1] ?? sorted[below]) - sorted[below]) * (at - below);
}
