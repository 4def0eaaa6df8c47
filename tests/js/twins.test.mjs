// The JavaScript twins of live detection equal Python. $TWINS is a JSON file of inputs and Python's outputs; see
// tests/digit_detector/webapp/test_twins.py, which runs this.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const local = new URL("../../digit_detector/webapp/static/local/", import.meta.url);
const load = (name) => import(new URL(name, local));
const cases = JSON.parse(readFileSync(process.env.TWINS, "utf8"));
const { detector } = cases;
const { config } = detector;

function close(actual, expected, tolerance, what) {
  assert.equal(actual.length, expected.length, what);
  actual.forEach((value, i) => {
    assert.ok(Math.abs(value - expected[i]) <= tolerance, `${what} ${i}: ${value}, expected ${expected[i]}`);
  });
}

/** The same digits, with the same confidences and times. */
function same(actual, expected, what) {
  const keys = ["digit", "confidence", "start", "end", "delay"];
  actual.forEach((digit) => assert.deepEqual(Object.keys(digit), keys));
  close(actual.map(({ digit }) => digit), expected.map(({ digit }) => digit), 0, what);
  const values = (digits) => digits.flatMap((digit) => keys.map((key) => digit[key]));
  close(values(actual), values(expected), 1e-6, what);
}

test("decoder", async () => {
  const { Decoder, round } = await load("decoder.js");
  for (const [value, expected] of cases.round) assert.equal(round(value), expected);
  for (const [n, { config, posteriors, speech, frames, last }] of cases.decoder.entries()) {
    const decoder = new Decoder({ ...detector, config });
    assert.equal(decoder.blockSeconds, cases.block_seconds);
    frames.forEach(({ digits, provisional }, frame) => {
      same(decoder.push(posteriors[frame], speech[frame]), digits, `case ${n}, frame ${frame}`);
      same(decoder.provisional, provisional, `case ${n}, provisional after frame ${frame}`);
    });
    same(decoder.endUtterance(), last, `case ${n}, end`);
  }
});

test("high-pass", async () => {
  const { HighPass } = await load("high_pass.js");
  const filter = new HighPass(config);
  const filtered = cases.high_pass.blocks.flatMap((block) => [...filter.filter(Float32Array.from(block))]);
  close(filtered, cases.high_pass.filtered.flat(), 1e-6, "high-pass");
});

test("resampler", async () => {
  const { Resampler, streamFilter } = await load("resampler.js");
  for (const { rate, samples, resampled } of cases.resampler) {
    const resampler = new Resampler(rate, 8000, streamFilter(config));
    const input = Float32Array.from(samples);
    const made = [];
    for (let at = 0; at < input.length; at += 313) made.push(...resampler.feed(input.subarray(at, at + 313)));
    made.push(...resampler.flush());
    close(made, resampled, 2e-6, `${rate} Hz`);
  }
});

test("clips of one second", async () => {
  const { clip } = await load("clip.js");
  for (const { samples, expected } of cases.clips) {
    close([...clip(Float32Array.from(samples), 8000)], expected, 0, "clip");
  }
});

test("stream state", async () => {
  const { StreamState } = await load("stream_state.js");
  const stream = new StreamState(8000, detector, new Float32Array(1));
  const { samples, blocks } = cases.stream;
  const made = [];
  for (let at = 0; at < samples.length; at += 1000) {
    made.push(...stream.feed(Float32Array.from(samples.slice(at, at + 1000))));
  }
  made.push(...stream.flush());
  assert.equal(made.length, blocks.length);
  made.forEach((block, i) => close([...block], blocks[i], 0, `block ${i}`));
});
