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
import { keep, kept } from "./settings.js";
import { Statistics } from "./statistics.js";
import { RingBuffer } from "./ring_buffer.js";
import { Transcript } from "./transcript.js";

const IDLE = "Press the button or the space bar, then say digits, for example a phone number.";
const LISTENING = {
  digits: "Listening. Say digits, then pause.",
  any: "Listening. Say digits, in sentences, too.",
};
const CONTEXTS = {
  digits: "Digits count when nothing else is said with them. They are grey until you pause.",
  any: "Digits count at once, also within sentences. Words that sound like digits may count as well.",
};
const NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];

const view = new WaveformView(byId("scope"));
const transcript = new Transcript(byId("strip"), byId("provisional"));
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
let lastDigit = { digit: "–", note: "the last digit" }; // as it is shown

function problem(sentence) {
  byId("problem").textContent = sentence;
  byId("problem").hidden = !sentence;
}

function status(sentence) {
  byId("status").textContent = sentence;
}

const isLocal = () => byId("local").checked;
const contextChoices = document.querySelectorAll("input[name=context]");
const chosenContext = () => [...contextChoices].find(({ checked }) => checked).value;

async function start() {
  problem("");
  listening(true);
  status("Asking for the microphone …");
  try {
    microphone = new Microphone();
    const rate = await microphone.open();
    microphone.onended = (sentence) => toggle(sentence);
    microphone.onstate = (sentence) => (byId("microphone").textContent = sentence);
    const context = chosenContext();
    session = isLocal() ? new LocalSession() : new ServerSession();
    buffer = new RingBuffer(rate);
    session.onready = () => {
      buffer = new RingBuffer(rate);
      view.start(rate);
      transcript.startStream(context);
      showProvisional([]);
      status(LISTENING[context]);
      compare.refresh();
    };
    session.onlevel = ({ seconds, voice, provisional }) => {
      view.voice(seconds, voice);
      byId("voice").dataset.on = String(voice > 0.3);
      showProvisional(provisional);
    };
    session.ondigits = showDigits;
    session.onerror = ({ message }) => toggle(message);
    session.onlost = (why) => status(`The server is ${why}. Trying to reach it again …`);
    status(isLocal() ? "Loading the recogniser into this browser …" : "Reaching the server …");
    chooseMixer();
    view.start(rate); // audio also arrives while the server is unreachable
    connecting = session;
    await session.open(rate, context);
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
  showProvisional([]);
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

/** Show detected digits that were reported together; the recognisers are compared on the last. */
function showDigits(digits) {
  const last = digits.at(-1);
  const delay = Math.max(0, buffer.seconds - last.end); // until it is displayed, including the round trip
  showDigit({ digit: last.digit, note: `${percent(last.confidence)} sure, ${Math.round(1000 * delay)} ms after the word` });
  byId("announcement").textContent = digits.map(({ digit }) => NAMES[digit]).join(" ");
  digits.forEach((digit, i) => {
    const { start: from, end, confidence } = digit;
    const samples = buffer.word(from, end, digits[i - 1]?.end, digits[i + 1]?.start);
    transcript.add(digit);
    view.word(digit);
    history.add({ name: `${digit.digit}, at ${clock(from)}`, samples, rate: buffer.rate, label: String(digit.digit), confidence, delay: digit === last ? delay : undefined });
  });
  updateButtons();
  quiz.refresh();
  choose(history.words[0]);
}

function showDigit(shown) {
  lastDigit = shown;
  byId("digit").textContent = shown.digit;
  byId("sure").textContent = shown.note;
  byId("digit").dataset.provisional = "false";
}

/** Show the digits of the utterance that has not ended, which replace those shown before. */
function showProvisional(digits) {
  transcript.showProvisional(digits);
  view.provisional(digits);
  if (digits.length) {
    byId("digit").textContent = digits.at(-1).digit;
    byId("sure").textContent = "counts when you pause";
    byId("digit").dataset.provisional = "true";
  } else if (byId("digit").dataset.provisional === "true") {
    showDigit({ ...lastDigit, note: "not counted: other words, or unclear" });
  }
}

/** Add a recording to the history and compare the recognisers on it. */
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
  const nothing = transcript.text === "";
  byId("copy").disabled = byId("clear").disabled = nothing;
}

async function copy() {
  const button = byId("copy");
  try {
    await navigator.clipboard.writeText(transcript.text);
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

function showContext() {
  byId("context-hint").textContent = CONTEXTS[chosenContext()];
}

/** Choose the context that was chosen last, or else that of the server. */
async function restoreContext() {
  showContext();
  let context = kept("context");
  if (context === null) {
    const answer = await fetch("models/detector.json").catch(() => null);
    context = kept("context") ?? (answer?.ok ? (await answer.json()).config.context : null);
  }
  for (const choice of contextChoices) choice.checked ||= choice.value === context;
  showContext();
}

/** Go on listening in the chosen context. */
async function restart() {
  if (!microphone) return;
  await toggle();
  if (!microphone) await toggle();
}

byId("listen").onclick = () => toggle();
byId("copy").onclick = copy;
byId("clear").onclick = () => {
  transcript.clear();
  showDigit({ digit: "–", note: "the last digit" });
  view.clear();
  updateButtons();
};
byId("local").onchange = () => {
  loading?.stop();
  switching = switching.then(switchMode);
};
for (const choice of contextChoices) {
  choice.onchange = () => {
    keep("context", choice.value);
    showContext();
    switching = switching.then(restart);
  };
}
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
restoreContext();
