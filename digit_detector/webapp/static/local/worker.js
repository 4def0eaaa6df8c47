// The thread that computes, so that the page never waits. Calls run one after the other; see worker_client.js.

import { answer } from "./recognise.js";
import { LEAST_RATE, LOUDEST, checkRate } from "./clip.js";
import { Engine } from "./engine.js";
import { Fault } from "./fault.js";

const CONTEXTS = ["digits", "any"];
const streams = new Map();
let engine = null;
let last = Promise.resolve();

const calls = {
  answer,

  async open(number, rate, context) {
    checkRate(rate, LEAST_RATE);
    if (!CONTEXTS.includes(context)) {
      throw new Fault("bad_context", `the context is ${context}: expected one of ${CONTEXTS.join(", ")}`);
    }
    engine ??= await Engine.load();
    streams.set(number, engine.newStream(rate, context));
  },

  async feed(number, samples) {
    const bad = samples.findIndex((sample) => !(Math.abs(sample) <= LOUDEST));
    if (bad >= 0) {
      throw new Fault("bad_audio", `the sound holds ${samples[bad]}: expected numbers around -1 to 1; start again`);
    }
    const stream = streams.get(number);
    return process(stream, stream.feed(samples));
  },

  async stop(number) {
    const stream = streams.get(number);
    streams.delete(number);
    const update = await process(stream, stream.flush());
    update.digits.push(...stream.decoder.endUtterance());
    return { ...update, provisional: [] };
  },

  async close(number) {
    streams.delete(number);
  },
};

async function process(stream, blocks) {
  const digits = [];
  for (const block of blocks) digits.push(...(await engine.process(stream, block)));
  const { seconds, levelDb: level_db, voice, decoder } = stream;
  return { seconds, level_db, voice, digits, provisional: decoder.provisional };
}

onmessage = ({ data: { id, name, args } }) => {
  last = last.then(async () => {
    try {
      postMessage({ id, result: await calls[name](...args) });
    } catch (error) {
      const known = error instanceof Fault;
      const message = known ? error.message : `recognition in the browser failed (${error}): reload the page`;
      postMessage({ id, fault: { code: known ? error.code : "failed", message } });
    }
  });
};
