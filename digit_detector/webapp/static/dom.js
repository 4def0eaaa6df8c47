/** The element of this id. */
export const byId = (id) => document.getElementById(id);

/** A new element: `make("td", {className: "answer"}, "7")`. Children are elements or text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** 0.973 as "97 %". */
export const percent = (share) => `${Math.round(100 * share)} %`;

/** Seconds as "1:04.2". */
export function clock(seconds) {
  const tenths = Math.round(10 * seconds);
  return `${Math.floor(tenths / 600)}:${String(Math.floor((tenths % 600) / 10)).padStart(2, "0")}.${tenths % 10}`;
}

/** Give a canvas as many pixels as the screen shows of it -> its context, in CSS pixels, and its size in them. */
export function sized(canvas) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  const wide = Math.round(width * scale), high = Math.round(height * scale);
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return { context, width, height };
}

/** A colour of the style sheet, `colour("--ink")`. */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
