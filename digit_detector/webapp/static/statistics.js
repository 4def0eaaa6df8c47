import { make } from "./dom.js";

/** What each recogniser answered on this page, in the table that shows it. */
export class Statistics {
  constructor(table) {
    this._rows = table.tBodies[0];
    this._all = new Map();
  }

  /** The recognisers that can answer now, in their order: [{name, title, available}]. What was counted stays. */
  show(processors) {
    for (const { name, title, available } of processors) {
      if (available && !this._all.has(name)) this._all.set(name, { title, times: [], nothing: 0, failed: 0, digits: Array(10).fill(0) });
    }
    this._draw();
  }

  count({ name, text, milliseconds, error }) {
    const counts = this._all.get(name);
    if (error) counts.failed++;
    else {
      counts.times.push(milliseconds);
      if (text === "") counts.nothing++;
      else counts.digits[Number(text)]++;
    }
    this._draw();
  }

  _draw() {
    const shown = [...this._all.values()].map(({ title, times, nothing, failed, digits }) => {
      const sorted = times.toSorted((a, b) => a - b);
      const at = (share) => (sorted.length ? `${sorted[Math.floor(share * (sorted.length - 1) + 0.5)].toFixed(1)} ms` : "–");
      const most = Math.max(1, ...digits);
      const tally = make("span", { className: "tally", role: "img", "aria-label": digits.map((n, digit) => `${digit}: ${n}`).join(", ") });
      digits.forEach((count, digit) => {
        const bar = make("i", { title: `${digit}: ${count}` });
        bar.style.height = `${(100 * count) / most}%`;
        tally.append(bar);
      });
      return make("tr", {}, make("th", { scope: "row" }, title), ...[times.length, nothing, failed, at(0.5), at(0.95)].map((value) => make("td", {}, String(value))), make("td", {}, tally));
    });
    this._rows.replaceChildren(...shown);
  }
}
