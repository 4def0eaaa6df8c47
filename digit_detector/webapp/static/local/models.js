// The models in onnxruntime, on one thread of WebAssembly. Files come from the server that the page came from, once.

import * as ort from "../vendor/onnxruntime-web/ort.wasm.min.mjs";
import { SECOND, isSilent } from "./clip.js";
import { Fault } from "./fault.js";

const RUNTIME = new URL("../vendor/onnxruntime-web/", import.meta.url);
const MODELS = new URL("../models/", import.meta.url);
const LABELS = 10;
const TOKENS = ["", "zero", "oh", "double", "triple", "other"]; // by which the decoder finds the others

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

/** detector.json: `config`, a DetectorConfig; the `tokens` of the posteriors; the samples of a `block`. */
export function detector() {
  return once("detector.json", async () => {
    const content = await download(new URL("detector.json", MODELS));
    let detector;
    try {
      detector = JSON.parse(new TextDecoder().decode(content));
    } catch {
      detector = undefined;
    }
    const config = detector?.config;
    const known = ["digits_threshold", "any_threshold"].every((name) => config?.[name] >= 0 && config[name] <= 1);
    if (!known || !TOKENS.every((token) => detector.tokens?.includes(token)) || !(detector.block > 0)) {
      throw new Fault("bad_model", "detector.json is not what the detector needs: reload the page");
    }
    return detector;
  });
}

/** The acoustic model: posteriors of tokens and speech activity of each block. */
export async function acousticModel() {
  const name = "acoustic.onnx";
  const model = await session(name, ["sound", "state"], ["posteriors", "speech", "state_after"]);
  const size = model.inputMetadata[model.inputNames.indexOf("state")].shape[1];
  return {
    initialState: () => new Float32Array(size),
    /** The next block after a state -> its posteriors, its speech probability, and the state after. */
    async run(block, state) {
      const outputs = await infer(model, name, {
        sound: new ort.Tensor("float32", block, [1, block.length]),
        state: new ort.Tensor("float32", state, [1, size]),
      });
      const { posteriors, speech, state_after } = outputs;
      return { posteriors: posteriors.data, speech: speech.data[0], state: state_after.data };
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
