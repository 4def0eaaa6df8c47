/** Power spectra of real frames of a length that is a power of two, under a periodic Hann window. */
export class PowerSpectrum {
  constructor(length) {
    this.length = length;
    this.bins = length / 2 + 1;
    this._window = Float64Array.from({ length }, (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / length));
    this._cos = Float64Array.from({ length: length / 2 }, (_, k) => Math.cos((2 * Math.PI * k) / length));
    this._sin = Float64Array.from({ length: length / 2 }, (_, k) => -Math.sin((2 * Math.PI * k) / length));
    const bits = Math.log2(length);
    this._reversed = Uint32Array.from({ length }, (_, n) => {
      let mirrored = 0;
      for (let bit = 0; bit < bits; bit++) mirrored |= ((n >> bit) & 1) << (bits - 1 - bit);
      return mirrored;
    });
    this._re = new Float64Array(length);
    this._im = new Float64Array(length);
  }

  /** |DFT|^2 of the frame that begins at samples[start], silence beyond the ends -> `into`, (bins,). */
  of(samples, start, into = new Float64Array(this.bins)) {
    const { length, _re: re, _im: im } = this;
    for (let n = 0; n < length; n++) {
      re[this._reversed[n]] = (samples[start + n] ?? 0) * this._window[n];
      im[n] = 0;
    }
    for (let size = 2; size <= length; size *= 2) {
      const half = size / 2, stride = length / size;
      for (let block = 0; block < length; block += size) {
        for (let k = 0; k < half; k++) {
          const upper = block + k, lower = upper + half;
          const cos = this._cos[k * stride], sin = this._sin[k * stride];
          const real = re[lower] * cos - im[lower] * sin, imaginary = re[lower] * sin + im[lower] * cos;
          re[lower] = re[upper] - real;
          im[lower] = im[upper] - imaginary;
          re[upper] += real;
          im[upper] += imaginary;
        }
      }
    }
    for (let k = 0; k < this.bins; k++) into[k] = re[k] * re[k] + im[k] * im[k];
    return into;
  }
}
