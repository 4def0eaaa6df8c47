// The thread that computes, so that the page never waits. Calls run one after the other; see worker_client.js.

import { answer } from "./recognise.js";
import { LEAST_RATE, LOUDEST, checkRate } from "./clip.js";
import { Engine } from "./engine.js";
import { Fault } from "./fault.js";

const streams = new Map();
let engine = null;
let last = Promise.resolve();

const calls = {
  answer,

  async open(number, rate) {
    checkRate(rate, LEAST_RATE);
    engine ??= await Engine.load();
    streams.set(number, engine.stream(rate));
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
    return process(stream, stream.flush());
  },

  async close(number) {
    streams.delete(number);
  },
};

async function process(stream, blocks) {
  const digits = [];
  for (const block of blocks) digits.push(...(await engine.process(stream, block)));
  return { seconds: stream.seconds, level_db: stream.energy.levelDb, voice: stream.voice, digits };
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
