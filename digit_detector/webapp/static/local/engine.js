// Inference over a stream, block by block, as digit_detector/streaming/engine.py.

import { SAMPLE_RATE, SECOND, fit } from "./clip.js";
import { fuse, meanLogOdds, productArgmax } from "./fusion.js";
import { classifier, detector, spotter, voiceActivity } from "./models.js";
import { repeats } from "./peak_picker.js";
import { BLOCK, FRAMES, HOP, StreamState } from "./stream_state.js";

export class Engine {
  static async load() {
    const engine = new Engine();
    [{ config: engine.config, classifiers: engine.classifiers }, engine.voice, engine.spotter] = await Promise.all([
      detector().then(async ({ config, pipelines }) => ({
        config,
        classifiers: await Promise.all(pipelines.map(classifier)), // verify candidates
      })),
      voiceActivity(),
      spotter(),
    ]);
    await engine.warmUp();
    return engine;
  }

  /** Run every network once: the first run takes far longer, and should not delay the first word. */
  async warmUp() {
    await this.voice.run(new Float32Array(BLOCK), this.voice.begin());
    await this.spotter.run(new Float32Array(BLOCK), this.spotter.begin());
    for (const classify of this.classifiers) await classify(new Float32Array(SECOND));
  }

  stream(rate) {
    return new StreamState(rate, this.config);
  }

  /** The next block of a stream -> the detections that it decides. */
  async process(stream, block) {
    const spotting = [];
    for (const number of stream.push(block)) {
      const { voice, state } = await this.voice.run(stream.block(number), stream.vadState ?? this.voice.begin());
      stream.vadState = state;
      spotting.push(...stream.onVad(number, voice));
    }
    const candidates = [];
    for (const number of spotting) {
      stream.spotterState ??= this.spotter.begin();
      const output = await this.spotter.run(stream.block(number), stream.spotterState);
      candidates.push(...stream.onSpotter(number, output.probabilities, output.durations));
    }
    const detections = [];
    for (const candidate of candidates) {
      const detection = await this.verify(stream, candidate);
      if (detection) detections.push(detection);
    }
    return detections;
  }

  /** The detection of a candidate whose confidence reaches the detection threshold, or null. */
  async verify(stream, candidate) {
    const { config } = this;
    const floor = config.probability_floor;
    const second = fit(stream.wordAudio(candidate));
    const outputs = [];
    for (const classify of this.classifiers) outputs.push(await classify(second));
    const classified = candidate.posteriors.map((_, i) =>
      meanLogOdds(outputs.map(({ probabilities }) => probabilities[i]), floor),
    );
    const digit = productArgmax(candidate.posteriors, classified, floor);
    const presence = meanLogOdds(outputs.map(({ digitScore }) => digitScore), floor);
    const scores = [candidate.posteriors[digit], presence, classified[digit], stream.maxVoice(candidate)];
    const confidence = fuse(scores, config);
    if (confidence >= config.commit_confidence) stream.committedUntil = Math.trunc(candidate.last * HOP);
    if (confidence < config.detection_threshold) return null;
    const end = (candidate.last * HOP) / SAMPLE_RATE;
    const known = ((Math.floor(candidate.frame / FRAMES) + 1) * FRAMES * HOP) / SAMPLE_RATE;
    const start = Math.max(0, (candidate.first * HOP) / SAMPLE_RATE);
    const detection = { digit, confidence, start, end, delay: known - end };
    if (repeats(detection, stream.lastDetection, config.duplicate_seconds)) return null;
    stream.lastDetection = detection;
    return detection;
  }
}
