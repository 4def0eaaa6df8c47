import { make, percent } from "./dom.js";
import { play } from "./wav.js";

const KEPT = 50;

/** The words of this page, newest first. A word is {name, samples, rate, label, confidence, delay, file}. */
export class History {
  /** `onchoose(word)`: it is to be compared. `onproblem(sentence)`. */
  constructor(list, empty, { onchoose, onproblem }) {
    Object.assign(this, { _list: list, _empty: empty, _onchoose: onchoose, _onproblem: onproblem, words: [] });
  }

  add(word) {
    this.words.unshift(word);
    const listen = make("button", { type: "button", "aria-label": `Play ${word.name}` }, "Play");
    listen.disabled = !word.samples;
    listen.onclick = () => play(word.samples, word.rate).catch((error) => this._onproblem(error.message));
    const compare = make("button", { type: "button", "aria-label": `Compare ${word.name}` }, "Compare");
    compare.onclick = () => this._onchoose(word);
    const details = [word.confidence === undefined ? "" : `${percent(word.confidence)} sure`, word.delay === undefined ? "" : `after ${Math.round(1000 * word.delay)} ms`];
    word.item = make("li", {}, make("strong", { title: word.name, className: word.label ? "" : "file" }, word.label ?? word.name), make("small", {}, details.filter(Boolean).join(", ")), listen, compare);
    this._list.prepend(word.item);
    this._empty.hidden = true;
    while (this.words.length > KEPT) this.words.pop().item.remove();
  }

  /** Mark the word that is compared. */
  mark(word) {
    for (const { item } of this.words) item.classList.toggle("chosen", item === word.item);
  }
}
