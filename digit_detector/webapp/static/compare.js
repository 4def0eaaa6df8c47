import { byId, make, percent } from "./dom.js";
import { drawLogMel, logMel } from "./logmel.js";
import { clip } from "./local/clip.js";
import { KINDS, makeNoise, mixed } from "./noise.js";
import { play } from "./wav.js";

const AT_FIRST = ["ml_mfcc", "ml_cnn", "ml_raw", "ensemble"]; // the others are slow, or send the recording to a service
const LEVELS = Array.from({ length: 11 }, (_, n) => n / 20);

/** All recognisers on one word, with or without noise. */
export class Compare {
  /** `onlist(processors)` once the recognisers are known; `onanswer(result)` for each result; `onproblem(sentence)`. */
  constructor({ onlist, onanswer, onproblem }) {
    Object.assign(this, { _onlist: onlist, _onanswer: onanswer, _onproblem: onproblem, _selected: new Set(AT_FIRST), _run: 0, word: null });
    for (const [kind, title] of Object.entries(KINDS)) byId("noise-kind").append(make("option", { value: kind }, title));
    byId("noise-kind").onchange = byId("noise-level").oninput = () => this._update();
    byId("play").onclick = () => play(this._mixed(this.level), this.word.rate).catch((error) => this._onproblem(error.message));
    byId("sweep").onclick = () => this._sweep();
    this._showNoise();
  }

  get kind() {
    return byId("noise-kind").value;
  }

  /** RMS of the noise, as a share of the word's loudest sample. */
  get level() {
    return Number(byId("noise-level").value);
  }

  /** Use the recognisers of a server or of this browser. */
  async use(processors) {
    this._processors = processors;
    this._list = null;
    byId("answers").tBodies[0].replaceChildren();
    if ((await this.refresh()) && this.word) this._update();
  }

  /** Fetch the list of recognisers unless it is known; returns whether it is. */
  async refresh() {
    const processors = this._processors;
    if (this._list || !processors) return Boolean(this._list);
    let list;
    try {
      list = await processors.list();
    } catch (error) {
      this._onproblem(error.message);
      return false;
    }
    if (processors !== this._processors) return false;
    if (!this._list) {
      this._list = list;
      this._rows = new Map();
      byId("answers").tBodies[0].replaceChildren(...list.map((processor) => this._row(processor)));
      this._onlist(list);
    }
    return true;
  }

  /** Compare this word from now on. */
  choose(word) {
    this.word = word;
    byId("word-name").textContent = word.name;
    for (const id of ["play", "sweep"]) byId(id).disabled = !word.samples;
    byId("sweep-scroll").hidden = true;
    return this._update();
  }

  /** The samples with the chosen noise. */
  _mixed(level) {
    const { samples, rate } = this.word;
    return level > 0 ? mixed(samples, this._noise(rate), level) : samples;
  }

  /** The same noise for as long as the word and the kind stay, so that all get the same input. */
  _noise(rate) {
    if (this._made?.word !== this.word || this._made.kind !== this.kind) {
      this._made = { word: this.word, kind: this.kind, noise: makeNoise(this.kind, rate) };
    }
    return this._made.noise;
  }

  _names() {
    return this._list.filter(({ name, available }) => available && this._selected.has(name)).map(({ name }) => name);
  }

  async _update() {
    this._showNoise();
    const run = ++this._run, word = this.word;
    if (!word || !(await this.refresh()) || run !== this._run) return;
    const { samples, rate, file } = word;
    const asFile = !samples && this._processors.answerFile; // the server knows formats that this browser does not
    if (!samples) {
      const how = asFile ? "so the server decodes it, without noise" : "and no sound is sent to the server";
      this._onproblem(`This browser cannot decode ${word.name}, ${how}. A WAV file works everywhere.`);
      if (!asFile) return;
    }
    const sound = samples && this._mixed(this.level);
    if (sound) this._picture(sound, rate);
    await Promise.all(
      this._names().map(async (name) => {
        const result = await (asFile ? this._processors.answerFile(name, file) : this._processors.answer(name, sound, rate));
        if (run !== this._run) return; // another word, or other noise, since
        this._show(result);
        this._onanswer(result);
      }),
    );
  }

  _picture(sound, rate) {
    try {
      drawLogMel(byId("logmel"), logMel(clip(sound, rate)));
    } catch (fault) {
      this._onproblem(fault.message); // for example silence: the recognisers report it too
    }
  }

  _row({ name, title, available, reason, detail }) {
    const box = make("input", { type: "checkbox", checked: available && this._selected.has(name), disabled: !available, "aria-label": `Use: ${title}` });
    box.onchange = () => {
      if (box.checked) this._selected.add(name);
      else this._selected.delete(name);
      this._update();
    };
    const row = make("tr", {}, make("td", {}, box));
    row.dataset.name = name;
    if (!available) {
      row.className = "off";
      row.append(make("th", { scope: "row", colSpan: 4 }, title, make("small", { title: detail ?? "" }, reason ?? "cannot run here")));
      return row;
    }
    const [answer, sure, time] = ["answer", "sure", "time"].map((className) => make("td", { className }));
    answer.textContent = "–";
    this._rows.set(name, { answer, sure, time });
    row.append(make("th", { scope: "row" }, title), answer, sure, time);
    return row;
  }

  _show({ name, text, confidence, milliseconds, error, detail }) {
    const { answer, sure, time } = this._rows.get(name);
    answer.textContent = error ? "failed" : text || "no digit";
    sure.colSpan = error ? 2 : 1; // a sentence needs the room
    time.hidden = Boolean(error);
    sure.replaceChildren(...(error ? [make("small", { title: detail ?? "" }, error)] : confidence === null ? [] : [bar(confidence), percent(confidence)]));
    time.textContent = error ? "" : `${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`;
  }

  _showNoise() {
    const level = this.level;
    byId("noise-text").textContent = level === 0 ? "none" : `${level.toFixed(2)} of the word's peak`;
  }

  /** Each recogniser at each level of the noise, and where it first errs. */
  async _sweep() {
    const { word, kind } = this, button = byId("sweep");
    button.disabled = true;
    try {
      if (!(await this.refresh())) return;
      const names = this._names();
      const rows = [];
      for (const level of LEVELS) {
        const sound = this._mixed(level);
        rows.push(await Promise.all(names.map((name) => this._processors.answer(name, sound, word.rate))));
        if (word !== this.word || kind !== this.kind) return;
        rows.at(-1).forEach(this._onanswer);
        this._showSweep(names, rows, word.label ?? null);
      }
    } finally {
      button.disabled = !this.word?.samples;
    }
  }

  _showSweep(names, rows, label) {
    const head = make("tr", {}, make("th", { scope: "col" }, `${KINDS[this.kind]} noise`), ...LEVELS.map((level) => make("th", { scope: "col" }, level.toFixed(2))), make("th", { scope: "col" }, "Breaks at"));
    const body = names.map((name, n) => {
      const answers = rows.map((row) => (row[n].error ? "failed" : row[n].text || "–"));
      const expected = label ?? answers[0];
      const first = answers.findIndex((answer) => answer !== expected);
      const cells = LEVELS.map((_, at) => {
        const answer = answers[at];
        return make("td", { className: answer === undefined ? "" : answer === expected ? "right" : "wrong" }, answer ?? "");
      });
      const breaks = first >= 0 ? LEVELS[first].toFixed(2) : answers.length === LEVELS.length ? "not up to 0.50" : "";
      return make("tr", {}, make("th", { scope: "row" }, this._list.find((processor) => processor.name === name).title), ...cells, make("td", {}, breaks));
    });
    byId("sweep-answers").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
    byId("sweep-scroll").hidden = false;
  }
}

function bar(share) {
  const filled = make("i");
  filled.style.width = `${100 * share}%`;
  return make("span", { className: "bar" }, filled);
}
