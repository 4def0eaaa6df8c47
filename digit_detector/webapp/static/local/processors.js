// Digits in whole recordings, answered in the browser: no sound leaves it. Has the interface of ServerProcessors.

import { call } from "./worker_client.js";

const TITLES = {
  ml_mfcc: "MFCC and a dense network",
  ml_cnn: "log-mel and a 2D CNN",
  ml_raw: "raw waveform and a 1D CNN",
  ensemble: "the three together",
};
const ELSEWHERE = {
  external_api: "a transcription service by HTTP",
  pocketsphinx: "pocketsphinx, ten words",
  whisper: "Whisper tiny",
};

export class LocalProcessors {
  async list() {
    const rows = (titles, reason) =>
      Object.entries(titles).map(([name, title]) => ({ name, title, available: reason === null, reason }));
    return [...rows(TITLES, null), ...rows(ELSEWHERE, "it needs the server: switch to the server's mode")];
  }

  /** Float32Array of one channel -> {name, text, confidence, milliseconds, error}. */
  async answer(name, samples, sampleRate) {
    const failed = (error) => ({ name, text: "", confidence: null, milliseconds: 0, error });
    if (!(name in TITLES)) {
      return failed(`${name} cannot answer in the browser: expected one of ${Object.keys(TITLES).join(", ")}`);
    }
    try {
      return await call("answer", name, samples.slice(), sampleRate);
    } catch (fault) {
      return failed(fault.message);
    }
  }

  async answerAll(samples, sampleRate) {
    const answers = [];
    for (const name of Object.keys(TITLES)) answers.push(await this.answer(name, samples, sampleRate));
    return answers;
  }
}
