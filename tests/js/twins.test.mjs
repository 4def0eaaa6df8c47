// The JavaScript twins of live detection equal Python. $TWINS is a JSON file of inputs and Python's outputs; see
// tests/digit_detector/webapp/test_twins.py, which runs this.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const local = new URL("../../digit_detector/webapp/static/local/", import.meta.url);
const load = (name) => import(new URL(name, local));
const cases = JSON.parse(readFileSync(process.env.TWINS, "utf8"));
const { config } = cases;

function close(actual, expected, tolerance, what) {
  assert.equal(actual.length, expected.length, what);
  actual.forEach((value, i) => {
    assert.ok(Math.abs(value - expected[i]) <= tolerance, `${what} ${i}: ${value}, expected ${expected[i]}`);
  });
}

test("peak picker", async () => {
  const { PeakPicker, repeats } = await load("peak_picker.js");
  for (const { frames, candidates } of cases.peaks) {
    const picker = new PeakPicker(config);
    const found = frames.map(({ posteriors, duration }, i) => picker.push(i, posteriors, duration)).filter(Boolean);
    assert.deepEqual(found, candidates);
  }
  assert.ok(cases.peaks.some(({ candidates }) => candidates.length > 2));
  for (const { later, earlier, expected } of cases.repeats) {
    assert.equal(repeats(later, earlier, config.duplicate_seconds), expected);
  }
});

test("fusion", async () => {
  const { fuse, meanLogOdds, productArgmax } = await load("fusion.js");
  for (const { scores, confidence, pooled } of cases.fusion) {
    close([fuse(scores, config), meanLogOdds(scores, config.probability_floor)], [confidence, pooled], 1e-12, "fusion");
  }
  for (const { one, other, digit } of cases.products) {
    assert.equal(productArgmax(one, other, config.probability_floor), digit);
  }
});

test("energy and speech gates", async () => {
  const { EnergyGate, SpeechGate } = await load("vad.js");
  const energy = new EnergyGate(config);
  for (const [i, { block, open, level_db }] of cases.energy.entries()) {
    assert.equal(energy.update(Float32Array.from(block)), open, `block ${i}`);
    close([energy.levelDb], [level_db], 1e-3, "level");
  }
  const speech = new SpeechGate(config);
  assert.deepEqual(cases.speech.voices.map((voice) => speech.update(voice)), cases.speech.open);
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
  const stream = new StreamState(8000, config);
  const { samples, split, vad_due, spotter_due, word, begin } = cases.stream;
  const vad = [], spotter = [];
  let blocks = 0;
  for (let at = 0; at < samples.length; at += 1000) {
    for (const block of stream.feed(Float32Array.from(samples.slice(at, at + 1000)))) {
      const due = stream.push(block);
      vad.push(due);
      for (const number of due) spotter.push(stream.onVad(number, cases.stream.voices[number]));
      blocks++;
    }
  }
  assert.equal(blocks, split);
  assert.deepEqual(vad, vad_due);
  assert.deepEqual(spotter, spotter_due);
  stream.committedUntil = begin;
  close([...stream.wordAudio(word.candidate)], word.audio, 1e-6, "word");
  assert.equal(stream.maxVoice(word.candidate), Math.fround(word.voice));
});
