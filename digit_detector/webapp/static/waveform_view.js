import { colour, sized } from "./dom.js";
import { PowerSpectrum } from "./fft.js";

const SHOWN = 6; // seconds across the picture
const COLUMNS = 900; // of it; each is 6.7 ms
const ROWS = 96; // of the spectrogram, 0 to 4,000 Hz: the input of the recognisers
const HIGHEST = 4000;
const FRAME = 1024; // samples of a spectrum: 21 ms at 48 kHz
const LAG = 0.03; // seconds that the picture stays behind the microphone, so that pieces of sound make no jerks

/** Waveform, spectrogram, voice and digits of the last seconds, drawn once for every frame of the screen. */
export class WaveformView {
  constructor(canvas) {
    this._canvas = canvas;
    this._paper = new OffscreenCanvas(COLUMNS, ROWS); // the spectrogram, column after column, round and round
    this._ink = this._paper.getContext("2d");
    this._rgba = this._ink.createImageData(1, ROWS);
    this._draw = this._draw.bind(this);
    this._reset();
    new ResizeObserver(() => this._paint()).observe(canvas);
  }

  _reset() {
    this._peaks = new Float32Array(COLUMNS);
    this._ink.clearRect(0, 0, COLUMNS, ROWS);
    this._samples = 0; // of the stream until now
    this._done = 0; // columns that are complete
    this._voices = [];
    this._words = [];
    this._provisional = [];
  }

  /** Forget the digits; the sound that runs by stays. */
  clear() {
    this._words = [];
    this._paint();
  }

  start(rate) {
    this._reset();
    this._rate = rate;
    this._spectrum = new PowerSpectrum(FRAME);
    this._power = new Float64Array(this._spectrum.bins);
    this._recent = new Float32Array(0);
    this._running ??= requestAnimationFrame(this._draw);
  }

  stop() {
    cancelAnimationFrame(this._running);
    this._running = null;
    this._paint();
  }

  push(samples) {
    const recent = new Float32Array(this._recent.length + samples.length);
    recent.set(this._recent);
    recent.set(samples, this._recent.length);
    this._samples += samples.length;
    this._came = performance.now();
    const first = this._samples - recent.length; // of the stream, the sample that recent[0] is
    const wide = (SHOWN * this._rate) / COLUMNS;
    while ((this._done + 1) * wide <= this._samples) {
      const from = Math.round(this._done * wide) - first, to = Math.round((this._done + 1) * wide) - first;
      let peak = 0;
      for (let n = Math.max(0, from); n < to; n++) peak = Math.max(peak, Math.abs(recent[n]));
      this._peaks[this._done % COLUMNS] = peak;
      this._column(recent, to - FRAME);
      this._done++;
    }
    this._recent = recent.subarray(Math.max(0, recent.length - FRAME - Math.ceil(wide)));
  }

  /** How sure voice activity is, 0 to 1, at a second of the stream. */
  voice(seconds, share) {
    this._voices.push({ seconds, share });
    while (this._voices[0].seconds < seconds - SHOWN - 1) this._voices.shift();
  }

  /** Replace the words that are not decided. */
  provisional(words) {
    this._provisional = words;
  }

  word({ digit, start, end }) {
    this._words.push({ digit, start, end });
    while (this._words[0].end < end - SHOWN - 1) this._words.shift();
  }

  _column(samples, start) {
    this._spectrum.of(samples, Math.max(0, start), this._power);
    const hertz = this._rate / FRAME;
    const pixels = this._rgba.data;
    for (let row = 0; row < ROWS; row++) {
      const bin = Math.min(this._power.length - 1, Math.round(((1 - row / ROWS) * HIGHEST) / hertz));
      const decibels = 10 * Math.log10(this._power[bin] + 1e-12) - 20 * Math.log10(FRAME / 4);
      const strength = Math.max(0, Math.min(1, (decibels + 95) / 65));
      const heat = Math.max(0, (strength - 0.45) / 0.55); // indigo where faint, orange where strong
      pixels.set([80 + 175 * heat, 80 + 50 * heat, 225 - 185 * heat, 255 * strength ** 1.5], 4 * row);
    }
    this._ink.putImageData(this._rgba, this._done % COLUMNS, 0);
  }

  _draw() {
    this._running = requestAnimationFrame(this._draw);
    this._paint();
  }

  _paint() {
    const { context, width, height } = sized(this._canvas);
    context.clearRect(0, 0, width, height);
    const middle = height * 0.22, top = height * 0.44, bottom = height - 6;
    context.fillStyle = colour("--line");
    context.fillRect(0, middle, width, 1);
    if (!this._rate) return;
    const since = this._running ? (performance.now() - this._came) / 1000 : LAG;
    const now = this._samples / this._rate - LAG + Math.min(LAG, since || 0); // the second at the right edge
    const x = (seconds) => width * (1 + (seconds - now) / SHOWN);
    this._paintSpectrogram(context, x, width, top, bottom);
    this._paintWaveform(context, x, middle);
    context.fillStyle = colour("--voice");
    this._voices.forEach(({ seconds, share }, n) => {
      const since = Math.max(seconds - 0.2, this._voices[n - 1]?.seconds ?? 0); // several blocks may arrive at once
      if (share > 0.3) context.fillRect(x(since), bottom + 2, x(seconds) - x(since) + 0.5, 4);
    });
    for (const word of this._words) this._paintWord(context, x, word, middle, top, colour("--accent"));
    for (const word of this._provisional) this._paintWord(context, x, word, middle, top, colour("--ink-soft"));
  }

  _paintSpectrogram(context, x, width, top, bottom) {
    const column = (SHOWN / COLUMNS);
    const newest = this._done % COLUMNS;
    const wide = width / COLUMNS;
    const right = x(this._done * column);
    context.drawImage(this._paper, newest, 0, COLUMNS - newest, ROWS, right - width, top, (COLUMNS - newest) * wide, bottom - top);
    if (newest) context.drawImage(this._paper, 0, 0, newest, ROWS, right - newest * wide, top, newest * wide, bottom - top);
  }

  _paintWaveform(context, x, middle) {
    context.fillStyle = colour("--ink-soft");
    const wide = this._canvas.clientWidth / COLUMNS;
    for (let n = Math.max(0, this._done - COLUMNS); n < this._done; n++) {
      const peak = Math.sqrt(this._peaks[n % COLUMNS]) * middle * 0.95; // the root: soft voices are seen, too
      if (peak > 0.5) context.fillRect(x((n * SHOWN) / COLUMNS), middle - peak, wide, 2 * peak);
    }
  }

  _paintWord(context, x, { digit, start, end }, middle, top, ink) {
    const left = x(start), right = x(end);
    context.fillStyle = ink;
    context.globalAlpha = 0.14;
    context.fillRect(left, 0, right - left, top);
    context.globalAlpha = 1;
    context.fillRect(left, top - 3, right - left, 3);
    context.font = "700 22px system-ui, sans-serif";
    context.textAlign = "center";
    context.strokeStyle = colour("--paper");
    context.lineWidth = 5;
    context.lineJoin = "round";
    context.strokeText(digit, (left + right) / 2, middle + 8);
    context.fillText(digit, (left + right) / 2, middle + 8);
  }
}
