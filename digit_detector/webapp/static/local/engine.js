// Inference over a stream, block by block, as digit_detector/streaming/engine.py.

import { acousticModel, detector } from "./models.js";
import { StreamState } from "./stream_state.js";

export class Engine {
  static async load() {
    const engine = new Engine();
    [engine.detector, engine.model] = await Promise.all([detector(), acousticModel()]);
    // The first run takes far longer, and should not delay the first word.
    await engine.model.run(new Float32Array(engine.detector.block), engine.model.initialState());
    return engine;
  }

  /** The state of a new stream; without a context it has that of the server. */
  newStream(rate, context = this.detector.config.context) {
    const detector = { ...this.detector, config: { ...this.detector.config, context } };
    return new StreamState(rate, detector, this.model.initialState());
  }

  /** Process the next block of a stream -> the detections that it decides. */
  async process(stream, block) {
    const sound = stream.highPass.filter(block);
    const { posteriors, speech, state } = await this.model.run(sound, stream.modelState);
    stream.modelState = state;
    stream.power = sound.reduce((sum, sample) => sum + sample * sample, 0) / sound.length;
    stream.voice = speech;
    return stream.decoder.push(posteriors, speech);
  }
}
