// Shows /openapi.json: each route with what it takes, what it gives and how to ask for it.
import { byId, make } from "./dom.js";

const ORDER = ["recordings", "sessions", "models", "server"];
const TITLES = { recordings: "Recordings", sessions: "Sessions", models: "Models", server: "The server" };

let schemas;

async function show() {
  const answer = await fetch("openapi.json").catch(() => null);
  if (!answer?.ok) {
    byId("routes").replaceChildren();
    byId("problem").textContent = "The server does not answer. Start it again, and reload this page.";
    byId("problem").hidden = false;
    return;
  }
  const described = await answer.json();
  schemas = described.components.schemas;
  const routes = Object.entries(described.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, route]) => ({ path, method, route })));
  byId("routes").replaceChildren(...ORDER.map((tag) => section(tag, routes.filter(({ route }) => route.tags?.[0] === tag))));
}

function section(tag, routes) {
  const title = make("h2", { id: `${tag}-title` }, TITLES[tag]);
  return make("section", { className: "card", "aria-labelledby": title.id }, make("div", { className: "heading" }, title), ...routes.map(shown));
}

function shown({ path, method, route }) {
  const [title, ...more] = route.description.split("\n\n").map((paragraph) => paragraph.replaceAll("\n", " "));
  const parts = more.map((paragraph) => make("p", {}, ...worded(paragraph)));
  const inputs = [...(route.parameters ?? []).map((parameter) => [parameter.name, parameter.in, parameter.schema, parameter.description, parameter.required]), ...bodyFields(route)];
  if (inputs.length) parts.push(make("h4", {}, "It takes"), fields(inputs));
  const [status, answer] = Object.entries(route.responses).find(([code]) => code.startsWith("2"));
  const [kind, content] = Object.entries(answer.content ?? {})[0] ?? [null, {}];
  parts.push(make("h4", {}, kind ? `It answers ${status}, ${kind}` : `It answers ${status}, and nothing more`));
  if (kind === "application/json" && content.schema) parts.push(block(written(example(content.schema))));
  parts.push(make("h4", {}, "For instance"), block(curl(path, method, route)));
  const name = make("summary", {}, make("code", { className: `method ${method}` }, method.toUpperCase()), " ", make("code", {}, path), " ", make("span", {}, ...worded(title.replace(/\.$/, ""))));
  return make("details", {}, name, ...parts);
}

/** The fields of a request's body: [name, where, schema, description, required]. */
function bodyFields(route) {
  const content = route.requestBody?.content;
  if (!content) return [];
  const [kind, { schema }] = Object.entries(content)[0];
  const body = resolved(schema);
  return Object.entries(body.properties).map(([name, field]) => [name, kind.includes("form") ? "form" : "JSON", field, field.description, (body.required ?? []).includes(name)]);
}

function fields(rows) {
  const lines = rows.map(([name, where, schema, description, required]) => {
    const kind = schema.contentMediaType || schema.format === "binary" ? "file" : (resolved(schema).type ?? "any");
    const usual = schema.default === undefined ? (required ? "needed" : "") : `${JSON.stringify(schema.default)} unless said`;
    return make("tr", {}, make("th", { scope: "row" }, make("code", {}, name)), make("td", {}, `${where}, ${kind}`), make("td", {}, usual), make("td", {}, ...worded(description ?? "")));
  });
  const head = make("tr", {}, ...["Name", "Where and what", "Usually", "Meaning"].map((title) => make("th", { scope: "col" }, title)));
  return make("div", { className: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines)));
}

/** Text with what stands between backticks as code. */
function worded(text) {
  return text.split("`").map((part, n) => (n % 2 ? make("code", {}, part) : part));
}

/** JSON as people write it: lists of numbers in one line. */
function written(value) {
  return JSON.stringify(value, null, 2).replace(/\[[\s\d.,]+\]/g, (list) => `[${list.match(/[\d.]+/g).join(", ")}]`);
}

function block(text) {
  return make("pre", { tabIndex: 0 }, make("code", {}, text));
}

/** A command that asks for a route of this very server. */
function curl(path, method, route) {
  const address = new URL(".", location.href).href.replace(/\/$/, "") + path.replace("{method}", "ml_cnn").replace("{name}", "mel_cnn.onnx").replace("{session_id}", "ID");
  const form = bodyFields(route);
  if (form[0]?.[1] === "form") return `curl ${form.map(([name, , schema]) => `-F ${name}=${schema.default ?? "@x.wav"}`).join(" ")} ${address}`;
  const json = form.length ? ` -H "Content-Type: application/json" -d '${JSON.stringify(Object.fromEntries(form.map(([name, , schema]) => [name, schema.default])))}'` : "";
  const file = path.endsWith("/audio") ? "-o said.wav " : path.includes("{name}") ? "-O " : "";
  return `curl ${file}${method === "get" ? "" : `-X ${method.toUpperCase()} `}${address}${json}`;
}

function resolved(schema) {
  return schema.$ref ? schemas[schema.$ref.split("/").at(-1)] : schema;
}

/** A value as a schema describes it, made of its examples. */
function example(schema) {
  const known = resolved(schema);
  if (known.examples) return known.examples[0];
  if (known.default !== undefined) return known.default;
  if (known.anyOf) return example(known.anyOf[0]);
  if (known.type === "object") {
    if (known.properties) return Object.fromEntries(Object.entries(known.properties).map(([name, field]) => [name, example(field)]));
    return known.additionalProperties ? { ml_cnn: example(known.additionalProperties) } : {};
  }
  if (known.type === "array") return Array.from({ length: known.minItems ?? 1 }, () => example(known.items));
  return { string: known.format === "date-time" ? "2026-01-31T12:00:00Z" : "…", integer: 0, number: 0, boolean: true }[known.type] ?? null;
}

const live = new URL("ws", location.href);
live.protocol = live.protocol === "https:" ? "wss:" : "ws:";
byId("socket").textContent = live.href;
show();
