import { byId, make } from "./dom.js";
import { makeNoise, mixed } from "./noise.js";
import { play } from "./wav.js";

/** A word of the history in noise, for a person to guess and the recognisers beside them. */
export class Quiz {
  /** `processors()` are those in use; `noise()` is {kind, level} as chosen on the page. */
  constructor(history, processors, noise) {
    Object.assign(this, { _history: history, _processors: processors, _noise: noise, _right: 0, _count: 0 });
    byId("quiz").onclick = () => this._ask();
    for (let digit = 0; digit < 10; digit++) {
      const button = make("button", { type: "button", disabled: true }, String(digit));
      button.onclick = () => this._guess(String(digit));
      byId("guesses").append(button);
    }
  }

  /** Whether there is something to play has changed. */
  refresh() {
    byId("quiz").disabled = !this._words().length;
  }

  _words() {
    return this._history.words.filter(({ label, samples }) => label !== undefined && samples);
  }

  async _ask() {
    const words = this._words();
    const word = words[Math.floor(Math.random() * words.length)];
    const { kind, level } = this._noise();
    const sound = level > 0 ? mixed(word.samples, makeNoise(kind, word.rate), level) : word.samples;
    this._open = { word, sound };
    this._enable(true);
    byId("quiz-result").textContent = level > 0 ? "What was it?" : "What was it? Turn the noise up above to make it harder.";
    await play(sound, word.rate).catch((error) => (byId("quiz-result").textContent = error.message));
  }

  async _guess(digit) {
    const { word, sound } = this._open;
    this._enable(false);
    this._count++;
    if (digit === word.label) this._right++;
    const result = await this._processors().answer("ensemble", sound, word.rate);
    const outcome = result.error ? "could not answer" : result.text ? `recognised ${result.text}` : "recognised no digit";
    const verdict = digit === word.label ? `Yes, ${word.label}.` : `It was detected as ${word.label}, you chose ${digit}.`;
    byId("quiz-result").textContent = `${verdict} The ensemble ${outcome}. You: ${this._right} of ${this._count}.`;
  }

  _enable(open) {
    for (const button of byId("guesses").children) button.disabled = !open;
  }
}
