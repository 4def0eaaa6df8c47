import { make } from "./dom.js";

const PAUSE = 0.5; // seconds without a digit that end a group in context "any"
const BLOCK = 0.032; // seconds; digits of an utterance are reported by the same block

/** The detected digits in groups, one for each utterance, and behind them the provisional digits. */
export class Transcript {
  constructor(strip, provisional) {
    Object.assign(this, { _strip: strip, _provisional: provisional });
    this.startStream("digits");
  }

  /** Digits in groups belong to one stream. */
  startStream(context) {
    this._isAny = context === "any";
    this._last = null;
  }

  get text() {
    return this._strip.textContent;
  }

  add(digit) {
    if (!this._last || !this._continues(digit)) this._strip.append(make("span", { className: "group" }));
    this._strip.lastChild.append(String(digit.digit));
    this._last = digit;
  }

  /** Whether a digit belongs to the same group as the last. */
  _continues({ start, end, delay }) {
    if (this._isAny) return start - this._last.end < PAUSE;
    return Math.abs(end + delay - this._last.end - this._last.delay) < BLOCK / 2;
  }

  /** The digits of the utterance that has not ended. */
  showProvisional(digits) {
    this._provisional.textContent = digits.map(({ digit }) => digit).join("");
  }

  clear() {
    this._strip.replaceChildren();
    this._last = null;
  }
}
