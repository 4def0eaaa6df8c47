import { Compare } from "./compare.js";
import { byId, clock, percent } from "./dom.js";
import { droppable, opened } from "./files.js";
import { History } from "./history.js";
import { LocalSession } from "./local/local_session.js";
import { LocalProcessors } from "./local/processors.js";
import { Microphone } from "./microphone.js";
import { LiveMixer, makeNoise } from "./noise.js";
import { Quiz } from "./quiz.js";
import { WaveformView } from "./waveform_view.js";
import { ServerProcessors } from "./server_processors.js";
import { ServerSession } from "./server_session.js";
import { Statistics } from "./statistics.js";
import { RingBuffer } from "./ring_buffer.js";

const IDLE = "Press the button or the space bar, then say a digit from zero to nine.";
const NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];

const scope = new WaveformView(byId("scope"));
const statistics = new Statistics(byId("stats"));
const compare = new Compare({ onlist: (processors) => statistics.show(processors), onanswer: (result) => statistics.count(result), onproblem: problem });
const history = new History(byId("words"), byId("no-words"), { onchoose: chosen, onproblem: problem });
let processors;
const quiz = new Quiz(history, () => processors, () => ({ kind: compare.kind, level: compare.level }));

let microphone = null, hearing = null, tape = null, mixer = null;
let reached = null; // whoever hears, while it is being reached; it may take for ever
let turning = Promise.resolve(); // starting and stopping, one after the other
let switching = Promise.resolve(); // and choosing who hears
let loaded = null; // whoever is to hear in this browser, while it is being loaded

function problem(sentence) {
  byId("problem").textContent = sentence;
  byId("problem").hidden = !sentence;
}

function status(sentence) {
  byId("status").textContent = sentence;
}

const isLocal = () => byId("local").checked;

async function start() {
  problem("");
  listening(true);
  status("Asking for the microphone …");
  try {
    microphone = new Microphone();
    const rate = await microphone.open();
    microphone.onended = (sentence) => toggle(sentence);
    microphone.onstate = (sentence) => (byId("microphone").textContent = sentence);
    hearing = isLocal() ? new LocalSession() : new ServerSession();
    tape = new RingBuffer(rate);
    hearing.onready = () => {
      tape = new RingBuffer(rate);
      scope.start(rate);
      status("Listening. Say a digit.");
      compare.refresh();
    };
    hearing.onlevel = ({ seconds, voice }) => {
      scope.voice(seconds, voice);
      byId("voice").dataset.on = String(voice > 0.3);
    };
    hearing.ondigit = told;
    hearing.onerror = ({ message }) => toggle(message);
    hearing.onlost = (why) => status(`The server is ${why}. Trying to reach it again …`);
    status(isLocal() ? "Loading the recogniser into this browser …" : "Reaching the server …");
    chooseMixer();
    scope.start(rate); // sound comes also while the server is gone
    reached = hearing;
    await hearing.open(rate);
    reached = null;
    microphone.onsamples = (samples) => {
      const heard = mixer ? mixer.mix(samples) : samples;
      tape.push(heard);
      scope.push(heard);
      hearing.send(heard);
    };
  } catch (error) {
    await stop();
    problem(error.message);
  }
}

async function stop() {
  await microphone?.close();
  await hearing?.stop();
  microphone = hearing = null;
  byId("microphone").textContent = "";
  scope.stop();
  byId("voice").dataset.on = "false";
  listening(false);
  status(IDLE);
}

/** Start, or stop for this reason. */
function toggle(reason = null) {
  reached?.stop();
  turning = turning.then(async () => {
    if (reason !== null && !microphone) return; // two reasons at once
    await (microphone ? stop() : start());
    if (reason !== null) problem(reason);
  });
  return turning;
}

function listening(is) {
  byId("listen").setAttribute("aria-pressed", String(is));
  byId("listen-label").textContent = is ? "Stop" : "Listen";
}

function chooseMixer() {
  const rate = tape?.rate;
  mixer = rate && byId("noise-live").checked && compare.level > 0 ? new LiveMixer(makeNoise(compare.kind, rate), compare.level, rate) : null;
}

/** A digit was heard. */
function told({ digit, confidence, start: from, end }) {
  const delay = Math.max(0, tape.seconds - end); // until it is seen here, the way to the recogniser and back included
  byId("digit").textContent = digit;
  byId("sure").textContent = `${percent(confidence)} sure, ${Math.round(1000 * delay)} ms after the word`;
  byId("told").textContent = NAMES[digit];
  byId("strip").append(String(digit));
  offer();
  scope.word({ digit, start: from, end });
  take({ name: `${digit}, said at ${clock(from)}`, samples: tape.word(from, end), rate: tape.rate, label: String(digit), confidence, delay });
}

/** A word joins the history, and is compared. */
function take(word) {
  history.add(word);
  quiz.refresh();
  return chosen(word);
}

function chosen(word) {
  history.mark(word);
  return compare.choose(word);
}

async function heardFile(file) {
  problem("");
  try {
    await take(await opened(file));
  } catch (error) {
    problem(error.message);
  }
}

function offer() {
  const nothing = byId("strip").textContent === "";
  byId("copy").disabled = byId("clear").disabled = nothing;
}

async function copy() {
  const button = byId("copy");
  try {
    await navigator.clipboard.writeText(byId("strip").textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("strip")); // the browser does not let pages copy: a key does it
    button.textContent = "Now press Ctrl+C";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

/** Fetch the live recogniser and let it compute once: whoever then listens need not wait. */
async function loadLocal() {
  byId("where").textContent = "Loading the recogniser into this browser …";
  let told = "Everything runs in this browser. No sound leaves it.";
  const first = new LocalSession();
  first.onerror = ({ message }) => {
    problem(`The recogniser was not loaded: ${message}.`);
    told = "No sound leaves this browser, and nothing is heard in it yet.";
  };
  loaded = first;
  await first.open(48000);
  loaded = null;
  await first.stop();
  byId("where").textContent = told;
}

/** Take the recognisers of the server, or those of this browser. */
async function switched() {
  const was = microphone !== null;
  if (was) await toggle();
  problem("");
  if (isLocal()) await loadLocal();
  else byId("where").textContent = `Sound goes to the server at ${location.host}${["127.0.0.1", "localhost", "[::1]"].includes(location.hostname) ? ", which is this machine" : ""}. It is not kept.`;
  processors = isLocal() ? new LocalProcessors() : new ServerProcessors();
  await compare.use(processors);
  if (was && !microphone) await toggle(); // unless it was asked for meanwhile
}

byId("listen").onclick = () => toggle();
byId("copy").onclick = copy;
byId("clear").onclick = () => {
  byId("strip").textContent = "";
  byId("digit").textContent = "–";
  byId("sure").textContent = "the last digit";
  scope.clear();
  offer();
};
byId("local").onchange = () => {
  loaded?.stop();
  switching = switching.then(switched);
};
byId("file").onchange = ({ target }) => {
  if (target.files.length) heardFile(target.files[0]);
  target.value = ""; // the same file may be chosen again
};
for (const id of ["noise-kind", "noise-level", "noise-live"]) byId(id).addEventListener("change", chooseMixer);
droppable(byId("drop"), heardFile);
document.addEventListener("keydown", (event) => {
  if (event.code !== "Space" || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.closest("button, input, select, textarea, a, [contenteditable]")) return; // space is theirs there
  event.preventDefault();
  toggle();
});
switching = switched();
