// Energy gate and speech gate, as digit_detector/streaming/vad.py. `config` is a DetectorConfig.

const LEAST_POWER = 1e-12; // -120 dB of full scale

/** Open while a block exceeds the background by a margin, and for a hangover after it. */
export class EnergyGate {
  constructor(config) {
    this.config = config;
    this.levelDb = 10 * Math.log10(LEAST_POWER);
    this.backgroundDb = config.initial_background_db;
    this.hangover = 0; // blocks left
  }

  /** Whether it is open at this block of samples. */
  update(block) {
    const config = this.config;
    let sum = 0;
    let squares = 0;
    for (const sample of block) {
      sum += sample;
      squares += sample * sample;
    }
    const mean = sum / block.length;
    const power = Math.max(squares / block.length - mean * mean, LEAST_POWER);
    this.levelDb = 10 * Math.log10(power);
    const rising = this.backgroundDb + config.background_rise_db;
    this.backgroundDb = Math.max(Math.min(this.levelDb, rising), config.min_background_db);
    if (this.levelDb > this.backgroundDb + config.energy_margin_db) this.hangover = config.energy_hangover_blocks;
    else if (this.hangover) this.hangover--;
    return this.hangover > 0;
  }
}

/** Open from where voice activity reaches a threshold until a hangover after it was last above the release level. */
export class SpeechGate {
  constructor(config) {
    this.threshold = config.speech_threshold;
    this.release = config.speech_release_ratio * config.speech_threshold;
    this.hangoverBlocks = config.speech_hangover_blocks;
    this.hangover = 0; // blocks left
  }

  get isOpen() {
    return this.hangover > 0;
  }

  /** Whether it is open at a block of this voice activity. */
  update(voice) {
    if (voice >= this.threshold || (this.hangover && voice >= this.release)) this.hangover = this.hangoverBlocks;
    else if (this.hangover) this.hangover--;
    return this.hangover > 0;
  }

  close() {
    this.hangover = 0;
  }
}
