// A stream through the networks, as digit_detector/streaming/engine.py: the next block of it, and what is reported.

import { SAMPLE_RATE, SECOND, fit } from "./clip.js";
import { confidence, productArgmax, meanLogOdds, repeats } from "./peak_picker.js";
import { classifier, decisions, spotter, voiceActivity } from "./models.js";
import { BLOCK, FRAMES, HOP, StreamState } from "./stream_state.js";

const COMMIT_CONFIDENCE = 0.5; // confidence from which a digit explains its sound

export class Engine {
  static async load() {
    const engine = new Engine();
    [{ thresholds: engine.thresholds, classifiers: engine.classifiers }, engine.voice, engine.spotter] = await Promise.all([
      decisions().then(async ({ thresholds, pipelines }) => ({
        thresholds,
        classifiers: await Promise.all(pipelines.map(classifier)), // who hear each word by itself
      })),
      voiceActivity(),
      spotter(),
    ]);
    await engine.warmUp();
    return engine;
  }

  /** Run every network once: the first time takes far longer, and should not be when the first word is said. */
  async warmUp() {
    await this.voice.hear(new Float32Array(BLOCK), this.voice.begin());
    await this.spotter.hear(new Float32Array(BLOCK), this.spotter.begin());
    for (const classify of this.classifiers) await classify(new Float32Array(SECOND));
  }

  stream(rate) {
    return new StreamState(rate, this.thresholds);
  }

  /** The next block of a stream -> what is now known to have been said. */
  async hear(stream, block) {
    const spotting = [];
    for (const number of stream.take(block)) {
      const { voice, state } = await this.voice.hear(stream.block(number), stream.voiceState ?? this.voice.begin());
      stream.voiceState = state;
      spotting.push(...stream.heardVoice(number, voice));
    }
    const candidates = [];
    for (const number of spotting) {
      stream.wordState ??= this.spotter.begin();
      const said = await this.spotter.hear(stream.block(number), stream.wordState);
      candidates.push(...stream.heardWords(number, said.probabilities, said.durations));
    }
    const found = [];
    for (const candidate of candidates) {
      const detection = await this.confirmed(stream, candidate);
      if (detection) found.push(detection);
    }
    return found;
  }

  /** A candidate that the classifiers, which hear the word by itself, do not doubt. */
  async confirmed(stream, candidate) {
    const second = fit(stream.word(candidate));
    const heard = [];
    for (const classify of this.classifiers) heard.push(await classify(second));
    const classified = candidate.spotted.map((_, i) => meanLogOdds(heard.map(({ probabilities }) => probabilities[i])));
    const digit = productArgmax(candidate.spotted, classified);
    const isDigit = meanLogOdds(heard.map(({ digitScore }) => digitScore));
    const sure = confidence([candidate.spotted[digit], isDigit, classified[digit], stream.voiceOf(candidate)]);
    if (sure >= COMMIT_CONFIDENCE) stream.committedUntil = Math.trunc(candidate.last * HOP);
    if (sure < this.thresholds.digit) return null;
    const end = (candidate.last * HOP) / SAMPLE_RATE;
    const known = ((Math.floor(candidate.frame / FRAMES) + 1) * FRAMES * HOP) / SAMPLE_RATE;
    const start = Math.max(0, (candidate.first * HOP) / SAMPLE_RATE);
    const found = { digit, confidence: sure, start, end, delay: known - end };
    if (repeats(found, stream.reported)) return null;
    stream.reported = found;
    return found;
  }
}
