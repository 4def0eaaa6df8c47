// Gathers the microphone's blocks of 128 samples into pieces of about 21 ms.
const PIECE = 1024, BLOCK = 128;

class Pieces extends AudioWorkletProcessor {
  constructor() {
    super();
    this._piece = new Float32Array(PIECE);
    this._filled = 0;
  }

  process([channels]) {
    const length = channels[0]?.length ?? BLOCK; // some browsers give a muted microphone no channel: that is silence
    for (let n = 0; n < length; n++) {
      let sum = 0;
      for (const channel of channels) sum += channel[n];
      this._piece[this._filled++] = sum / Math.max(1, channels.length);
      if (this._filled === PIECE) {
        this.port.postMessage(this._piece, [this._piece.buffer]);
        this._piece = new Float32Array(PIECE);
        this._filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("pieces", Pieces);
