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

const view = new WaveformView(byId("scope"));
const statistics = new Statistics(byId("stats"));
const compare = new Compare({ onlist: (processors) => statistics.show(processors), onanswer: (result) => statistics.count(result), onproblem: problem });
const history = new History(byId("words"), byId("no-words"), { onchoose: choose, onproblem: problem });
let processors;
const quiz = new Quiz(history, () => processors, () => ({ kind: compare.kind, level: compare.level }));

let microphone = null, session = null, buffer = null, mixer = null;
let connecting = null; // the session while it is being opened, which may never end
let toggling = Promise.resolve(); // queue of starts and stops
let switching = Promise.resolve(); // queue of switches between server and browser
let loading = null; // the session that loads the models of this browser, while it does

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
    session = isLocal() ? new LocalSession() : new ServerSession();
    buffer = new RingBuffer(rate);
    session.onready = () => {
      buffer = new RingBuffer(rate);
      view.start(rate);
      status("Listening. Say a digit.");
      compare.refresh();
    };
    session.onlevel = ({ seconds, voice }) => {
      view.voice(seconds, voice);
      byId("voice").dataset.on = String(voice > 0.3);
    };
    session.ondigit = showDigit;
    session.onerror = ({ message }) => toggle(message);
    session.onlost = (why) => status(`The server is ${why}. Trying to reach it again …`);
    status(isLocal() ? "Loading the recogniser into this browser …" : "Reaching the server …");
    chooseMixer();
    view.start(rate); // audio also arrives while the server is unreachable
    connecting = session;
    await session.open(rate);
    connecting = null;
    microphone.onsamples = (samples) => {
      const mixed = mixer ? mixer.mix(samples) : samples;
      buffer.push(mixed);
      view.push(mixed);
      session.send(mixed);
    };
  } catch (error) {
    await stop();
    problem(error.message);
  }
}

async function stop() {
  await microphone?.close();
  await session?.stop();
  microphone = session = null;
  byId("microphone").textContent = "";
  view.stop();
  byId("voice").dataset.on = "false";
  listening(false);
  status(IDLE);
}

/** Start, or stop for this reason. */
function toggle(reason = null) {
  connecting?.stop();
  toggling = toggling.then(async () => {
    if (reason !== null && !microphone) return; // already stopped for another reason
    await (microphone ? stop() : start());
    if (reason !== null) problem(reason);
  });
  return toggling;
}

function listening(is) {
  byId("listen").setAttribute("aria-pressed", String(is));
  byId("listen-label").textContent = is ? "Stop" : "Listen";
}

function chooseMixer() {
  const rate = buffer?.rate;
  mixer = rate && byId("noise-live").checked && compare.level > 0 ? new LiveMixer(makeNoise(compare.kind, rate), compare.level, rate) : null;
}

/** Show a detected digit. */
function showDigit({ digit, confidence, start: from, end }) {
  const delay = Math.max(0, buffer.seconds - end); // until it is displayed, including the round trip
  byId("digit").textContent = digit;
  byId("sure").textContent = `${percent(confidence)} sure, ${Math.round(1000 * delay)} ms after the word`;
  byId("announcement").textContent = NAMES[digit];
  byId("strip").append(String(digit));
  updateButtons();
  view.word({ digit, start: from, end });
  addWord({ name: `${digit}, at ${clock(from)}`, samples: buffer.word(from, end), rate: buffer.rate, label: String(digit), confidence, delay });
}

/** Add a word to the history and compare the recognisers on it. */
function addWord(word) {
  history.add(word);
  quiz.refresh();
  return choose(word);
}

function choose(word) {
  history.mark(word);
  return compare.choose(word);
}

async function openFile(file) {
  problem("");
  try {
    await addWord(await opened(file));
  } catch (error) {
    problem(error.message);
  }
}

function updateButtons() {
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

/** Fetch the models of the live detector and run them once, so that listening starts without delay. */
async function loadLocal() {
  byId("where").textContent = "Loading the recogniser into this browser …";
  let where = "Everything runs in this browser. No sound leaves it.";
  const first = new LocalSession();
  first.onerror = ({ message }) => {
    problem(`The recogniser was not loaded: ${message}.`);
    where = "No sound leaves this browser, and nothing is recognised in it yet.";
  };
  loading = first;
  await first.open(48000);
  loading = null;
  await first.stop();
  byId("where").textContent = where;
}

/** Use the recognisers of the server, or those of this browser. */
async function switchMode() {
  const was = microphone !== null;
  if (was) await toggle();
  problem("");
  if (isLocal()) await loadLocal();
  else byId("where").textContent = `Sound goes to the server at ${location.host}${["127.0.0.1", "localhost", "[::1]"].includes(location.hostname) ? ", which is this machine" : ""}. It is not kept.`;
  processors = isLocal() ? new LocalProcessors() : new ServerProcessors();
  await compare.use(processors);
  if (was && !microphone) await toggle(); // unless it was started meanwhile
}

byId("listen").onclick = () => toggle();
byId("copy").onclick = copy;
byId("clear").onclick = () => {
  byId("strip").textContent = "";
  byId("digit").textContent = "–";
  byId("sure").textContent = "the last digit";
  view.clear();
  updateButtons();
};
byId("local").onchange = () => {
  loading?.stop();
  switching = switching.then(switchMode);
};
byId("file").onchange = ({ target }) => {
  if (target.files.length) openFile(target.files[0]);
  target.value = ""; // the same file may be chosen again
};
for (const id of ["noise-kind", "noise-level", "noise-live"]) byId(id).addEventListener("change", chooseMixer);
droppable(byId("drop"), openFile);
document.addEventListener("keydown", (event) => {
  if (event.code !== "Space" || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.closest("button, input, select, textarea, a, [contenteditable]")) return; // these use the space bar
  event.preventDefault();
  toggle();
});
switching = switchMode();
