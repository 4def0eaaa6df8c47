// The models in onnxruntime, on one thread of WebAssembly. Files come from the server that the page came from, once.

import * as ort from "../vendor/onnxruntime-web/ort.wasm.min.mjs";
import { SECOND, isSilent } from "./clip.js";
import { Fault } from "./fault.js";
import { FRAMES } from "./stream_state.js";

const RUNTIME = new URL("../vendor/onnxruntime-web/", import.meta.url);
const MODELS = new URL("../models/", import.meta.url);
const LABELS = 10;
const CONTEXT = 32; // samples before a block that Silero wants with it
const VOICE_STATE = 256; // numbers of Silero's state
const RATE = new ort.Tensor("int64", BigInt64Array.of(8000n), []);

ort.env.wasm.numThreads = 1; // more would need a page that is isolated from others
ort.env.wasm.wasmPaths = RUNTIME.href;
ort.env.logLevel = "error";

const fetched = new Map(); // promises of fetched files, by address

/** Ask for something once; again only where it failed. */
function once(key, make) {
  if (!fetched.has(key)) {
    fetched.set(
      key,
      make().catch((error) => {
        fetched.delete(key);
        throw error;
      }),
    );
  }
  return fetched.get(key);
}

async function download(url) {
  let answer;
  try {
    answer = await fetch(url);
    if (answer.ok) return await answer.arrayBuffer();
  } catch (error) {
    throw new Fault(
      "not_fetched",
      `${url.pathname} could not be fetched (${error.message}): see that the server runs, and try again`,
    );
  }
  const mend = answer.status === 404 ? "it has none, let another answer" : "install the server again, or use another mode";
  throw new Fault("not_fetched", `${url.pathname} could not be fetched (the server answered ${answer.status}): ${mend}`);
}

function runtime() {
  return once("runtime", async () => {
    if (typeof WebAssembly !== "object") {
      throw new Fault("no_wasm", "this browser runs no WebAssembly: let the server answer, or take another browser");
    }
    ort.env.wasm.wasmBinary = await download(new URL("ort-wasm-simd-threaded.wasm", RUNTIME));
  });
}

/** A model by the name of its file, with the inputs and outputs that it must have. */
function session(name, inputs, outputs) {
  return once(name, async () => {
    const [content] = await Promise.all([download(new URL(name, MODELS)), runtime()]);
    let made;
    try {
      made = await ort.InferenceSession.create(new Uint8Array(content), { executionProviders: ["wasm"] });
    } catch (error) {
      throw unusable(name, error);
    }
    const lacking = [...inputs, ...outputs].filter((key) => ![...made.inputNames, ...made.outputNames].includes(key));
    if (lacking.length) {
      throw new Fault("bad_model", `${name} has no ${lacking.join(", ")}: it is of another version; reload the page`);
    }
    return made;
  });
}

function unusable(name, error) {
  const reason = String(error?.message ?? error).split("\n")[0];
  return reason.startsWith("no available backend")
    ? new Fault("no_wasm", `this browser cannot run the models (${reason}): let the server answer, or take another browser`)
    : new Fault("bad_model", `${name} is damaged or no model (${reason}): reload the page, or install the server again`);
}

async function infer(model, name, feeds) {
  try {
    return await model.run(feeds);
  } catch (error) {
    throw new Fault("failed", `${name} failed (${error?.message ?? error}): reload the page`);
  }
}

/** detector.json: `config`, a DetectorConfig; the `pipelines` that verify candidates; the `earlier` frames of the spotter,
 * [convolution, how many frames before the block] each. */
export function detector() {
  return once("detector.json", async () => {
    const content = await download(new URL("detector.json", MODELS));
    let detector;
    try {
      detector = JSON.parse(new TextDecoder().decode(content));
    } catch {
      detector = undefined;
    }
    const limits = detector?.config;
    const known = ["spotter_threshold", "detection_threshold"].every((name) => limits?.[name] >= 0 && limits[name] <= 1);
    if (!known || !detector.pipelines?.length || !detector.earlier?.length) {
      throw new Fault("bad_model", "detector.json is not what the detector needs: reload the page");
    }
    return detector;
  });
}

/** Silero's: how probable speech is in 32 ms. */
export async function voiceActivity() {
  const name = "silero_vad.onnx";
  const model = await session(name, ["input", "state", "sr"], ["output", "stateN"]);
  return {
    begin: () => ({ inner: new Float32Array(VOICE_STATE), context: new Float32Array(CONTEXT) }),
    /** The next block (256) after a state -> its probability and the state after. */
    async run(block, { inner, context }) {
      const sound = new Float32Array(CONTEXT + block.length);
      sound.set(context);
      sound.set(block, CONTEXT);
      const outputs = await infer(model, name, {
        input: new ort.Tensor("float32", sound, [1, sound.length]),
        state: new ort.Tensor("float32", inner, [2, 1, VOICE_STATE / 2]),
        sr: RATE,
      });
      return { voice: outputs.output.data[0], state: { inner: outputs.stateN.data, context: sound.slice(-CONTEXT) } };
    },
  };
}

/** Which digit has just ended, in every 16 ms. Its convolutions need frames of earlier blocks, which are kept here. */
export async function spotter() {
  const name = "spotter.onnx";
  const inputs = ["sound", "state", "earlier"];
  const [{ earlier }, model] = await Promise.all([
    detector(),
    session(name, inputs, ["probabilities", "durations", "state_after", "taken"]),
  ]);
  const [, state, earlierInput] = inputs.map((input) => model.inputMetadata[model.inputNames.indexOf(input)].shape);
  const size = state[1], channels = earlierInput[2];
  const blocks = Math.ceil(Math.max(...earlier.map(([, back]) => back)) / FRAMES); // of the ring of what was taken
  const rows = FRAMES * (1 + Math.max(...earlier.map(([convolution]) => convolution))); // of a block
  if (earlierInput[1] !== earlier.length) throw new Fault("bad_model", `${name} is of another version: reload the page`);
  return {
    begin: () => ({ front: new Float32Array(size), taken: new Float32Array(blocks * rows * channels), at: 0 }),
    /** The next block (256) after a state, which is moved on -> (2, 10) probabilities and (2) durations in frames. */
    async run(block, state) {
      const frames = new Float32Array(earlier.length * channels);
      earlier.forEach(([convolution, back], n) => {
        const at = (state.at - Math.ceil(back / FRAMES) + blocks) % blocks;
        const row = at * rows + convolution * FRAMES + (back % FRAMES);
        frames.set(state.taken.subarray(row * channels, (row + 1) * channels), n * channels);
      });
      const outputs = await infer(model, name, {
        sound: new ort.Tensor("float32", block, [1, block.length]),
        state: new ort.Tensor("float32", state.front, [1, size]),
        earlier: new ort.Tensor("float32", frames, [1, earlier.length, channels]),
      });
      state.front = outputs.state_after.data;
      state.taken.set(outputs.taken.data, state.at * rows * channels);
      state.at = (state.at + 1) % blocks;
      return { probabilities: outputs.probabilities.data, durations: outputs.durations.data };
    },
  };
}

/** A pipeline's classifier: a second of sound as `clip` makes it -> ten probabilities and a digit score, 0 of silence. */
export async function classifier(pipeline) {
  const name = `${pipeline}.onnx`;
  const model = await session(name, ["waveform"], ["logits", "digit_score"]);
  return async (second) => {
    if (isSilent(second)) return { probabilities: Array(LABELS).fill(1 / LABELS), digitScore: 0 };
    const outputs = await infer(model, name, { waveform: new ort.Tensor("float32", second, [1, SECOND]) });
    return { probabilities: softmax(outputs.logits.data), digitScore: outputs.digit_score.data[0] };
  };
}

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}
