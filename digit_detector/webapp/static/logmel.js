// The twin of ml_training/pipelines/features.py: what the 2D CNN is shown of a second of sound.
import { PowerSpectrum } from "./fft.js";

const RATE = 8000, WINDOW = 256, HOP = 160, FRAMES = 51, BANDS = 64;
const RANGE_DB = 60;

/** One second at 8 kHz, (8000,) -> {bands, frames, values}: dB below the peak, -60 to 0, band after band. */
export function logMel(second) {
  const filters = melFilters();
  const level = levelled(second);
  const spectrum = new PowerSpectrum(WINDOW);
  const values = new Float32Array(BANDS * FRAMES);
  let peak = -Infinity;
  for (let frame = 0; frame < FRAMES; frame++) {
    const power = spectrum.of(level, frame * HOP - WINDOW / 2);
    for (let band = 0; band < BANDS; band++) {
      let sum = 0;
      for (let bin = 0; bin < power.length; bin++) sum += filters[band][bin] * power[bin];
      const decibels = 10 * Math.log10(Math.max(1e-10, sum));
      values[band * FRAMES + frame] = decibels;
      peak = Math.max(peak, decibels);
    }
  }
  return { bands: BANDS, frames: FRAMES, values: values.map((value) => Math.max(-RANGE_DB, value - peak)) };
}

/** Draw a log-mel, low bands at the bottom. */
export function drawLogMel(canvas, { bands, frames, values }) {
  canvas.width = frames;
  canvas.height = bands;
  const context = canvas.getContext("2d");
  const image = context.createImageData(frames, bands);
  for (let band = 0; band < bands; band++) {
    for (let frame = 0; frame < frames; frame++) {
      const share = 1 + values[band * frames + frame] / RANGE_DB;
      image.data.set(heat(share), 4 * ((bands - 1 - band) * frames + frame));
    }
  }
  context.putImageData(image, 0, 0);
}

const HEATS = [[13, 10, 45], [59, 40, 140], [150, 50, 150], [230, 90, 80], [250, 170, 60], [252, 250, 190]];

/** 0 to 1 -> [red, green, blue, 255], from dark to light. */
function heat(share) {
  const at = Math.max(0, Math.min(1, share)) * (HEATS.length - 1);
  const below = Math.min(HEATS.length - 2, Math.floor(at));
  return [...HEATS[below].map((value, n) => value + (HEATS[below + 1][n] - value) * (at - below)), 255];
}

/** Without offset, and a largest amplitude of one. */
function levelled(samples) {
  const mean = samples.reduce((sum, sample) => sum + sample, 0) / samples.length;
  const centred = samples.map((sample) => sample - mean);
  const peak = centred.reduce((most, sample) => Math.max(most, Math.abs(sample)), 1e-6);
  return centred.map((sample) => sample / peak);
}

/** Triangles of unit area on Slaney's mel scale (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic above. */
function melFilters() {
  const toMel = (hz) => (hz < 1000 ? (hz * 3) / 200 : 15 + (Math.log(hz / 1000) * 27) / Math.log(6.4));
  const toHz = (mel) => (mel < 15 ? (mel * 200) / 3 : 1000 * Math.exp(((mel - 15) * Math.log(6.4)) / 27));
  const edges = Array.from({ length: BANDS + 2 }, (_, n) => toHz((n * toMel(RATE / 2)) / (BANDS + 1)));
  return Array.from({ length: BANDS }, (_, band) => {
    const [low, centre, high] = edges.slice(band, band + 3);
    return Float64Array.from({ length: WINDOW / 2 + 1 }, (_, bin) => {
      const hz = (bin * RATE) / WINDOW;
      return (Math.max(0, Math.min((hz - low) / (centre - low), (high - hz) / (high - centre))) * 2) / (high - low);
    });
  });
}
