const SECONDS = 4; // of noise, then repeated

/** What each kind is called on the page. */
export const KINDS = { white: "white", pink: "pink", brown: "brown", background: "people talking" };

/** Noise of a kind with an RMS of one: Float32Array of four seconds at `rate` Hz. */
export function makeNoise(kind, rate) {
  const noise = { white, pink, brown, background }[kind](Math.round(SECONDS * rate), rate);
  let mean = 0;
  for (const sample of noise) mean += sample / noise.length;
  let power = 0;
  for (let n = 0; n < noise.length; n++) {
    noise[n] -= mean;
    power += noise[n] ** 2 / noise.length;
  }
  const scale = 1 / Math.sqrt(power);
  return noise.map((sample) => sample * scale);
}

/** Samples with noise whose RMS is `level` times the loudest of them. Nothing is clipped. */
export function mixed(samples, noise, level) {
  const scale = level * samples.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0);
  return samples.map((sample, n) => sample + scale * noise[n % noise.length]);
}

/** Mixes noise into sound that comes piece by piece, in proportion to the loudest of the last seconds. */
export class LiveMixer {
  constructor(noise, level, rate) {
    Object.assign(this, { _noise: noise, _level: level, _rate: rate, _at: 0, _peak: 0 });
  }

  mix(samples) {
    this._peak *= 0.5 ** (samples.length / (5 * this._rate)); // halved in five seconds
    for (const sample of samples) this._peak = Math.max(this._peak, Math.abs(sample));
    const scale = this._level * this._peak;
    const mixed = samples.map((sample, n) => sample + scale * this._noise[(this._at + n) % this._noise.length]);
    this._at = (this._at + samples.length) % this._noise.length;
    return mixed;
  }
}

/** Normally distributed (Box and Muller). */
function white(length) {
  return Float32Array.from({ length }, () => {
    return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  });
}

/** Falls 3 dB an octave: white noise through low-passes an octave apart, each as strong as the next. */
function pink(length, rate) {
  const sum = new Float32Array(length);
  for (let edge = rate / 4; edge > 20; edge /= 2) {
    const octave = lowPassed(white(length), edge, rate);
    const power = octave.reduce((total, sample) => total + sample ** 2, 0) / length;
    for (let n = 0; n < length; n++) sum[n] += octave[n] / Math.sqrt(power);
  }
  return sum;
}

/** Falls 6 dB an octave. */
function brown(length, rate) {
  return lowPassed(white(length), 20, rate);
}

/** Eight synthetic voices at once: pulses at a voice's pitch through two resonances, which move with every syllable. */
function background(length, rate) {
  const sum = new Float32Array(length);
  for (let voice = 0; voice < 8; voice++) {
    const pitch = 90 * 2.5 ** Math.random();
    let at = -Math.random() * 0.3 * rate, phase = 0;
    while (at < length) {
      const syllable = Math.round((0.12 + 0.2 * Math.random()) * rate);
      const formants = [resonance(300 + 500 * Math.random(), rate), resonance(900 + 1400 * Math.random(), rate)];
      const loud = Math.random() < 0.2 ? 0 : 0.3 + 0.7 * Math.random(); // people pause
      for (let n = 0; n < syllable; n++) {
        phase += pitch / rate;
        const pulse = phase >= 1 ? 1 : 0;
        phase -= pulse;
        const swell = loud * Math.sin((Math.PI * n) / syllable);
        const sample = formants.reduce((total, filter) => total + filter(swell * pulse), 0);
        const place = Math.floor(at) + n;
        if (place >= 0 && place < length) sum[place] += sample;
      }
      at += syllable;
    }
  }
  return sum;
}

function lowPassed(samples, edge, rate) {
  const keep = Math.exp((-2 * Math.PI * edge) / rate);
  let state = 0;
  return samples.map((sample) => (state = keep * state + (1 - keep) * sample));
}

/** A resonance 100 Hz wide around `hz`. */
function resonance(hz, rate) {
  const radius = Math.exp((-Math.PI * 100) / rate);
  const first = 2 * radius * Math.cos((2 * Math.PI * hz) / rate), second = -(radius ** 2);
  let before = 0, last = 0;
  return (sample) => {
    [before, last] = [last, sample + first * last + second * before];
    return last;
  };
}
