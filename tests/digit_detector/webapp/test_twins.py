"""The JavaScript twins of live detection give Python's results, in Node."""

import json
import os
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digit_detector.audio import load_audio
from digit_detector.spotter_file import BLOCK
from digit_detector.streaming.config import load_config
from digit_detector.streaming.fusion import FusionScores, fuse, mean_log_odds, product_argmax
from digit_detector.streaming.high_pass import high_pass, initial_state
from digit_detector.streaming.peak_picker import Candidate, Detection, PeakPicker
from digit_detector.streaming.resampler import Resampler
from digit_detector.streaming.spotter import SpotterState
from digit_detector.streaming.stream_state import StreamState
from digit_detector.streaming.vad import EnergyGate, SpeechGate

CONFIG = load_config()
TESTS = Path(__file__).parents[2] / "js"
NODE = shutil.which("node")


def as_json(candidate: Candidate) -> dict[str, Any]:
    return {**asdict(candidate), "posteriors": candidate.posteriors.tolist()}


def draw_posteriors(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 10) posteriors with a peak every 20 frames or so over a low floor."""
    posteriors = rng.uniform(0.0, 0.04, (count, 10))
    for centre in np.cumsum(rng.integers(5, 40, count // 20)):
        width, height = rng.uniform(1.0, 5.0), rng.uniform(0.05, 1.0)
        posteriors[:, rng.integers(10)] += height * np.exp(-(((np.arange(count) - centre) / width) ** 2))
    return np.minimum(posteriors, 1.0).astype(np.float32)


def make_peaks(rng: np.random.Generator) -> list[dict[str, Any]]:
    cases = []
    for _ in range(20):
        picker, posteriors, durations = PeakPicker(CONFIG), draw_posteriors(rng, 200), rng.uniform(0.0, 60.0, 200)
        found = [picker.push(i, p, float(d)) for i, (p, d) in enumerate(zip(posteriors, durations, strict=True))]
        frames = [{"posteriors": p.tolist(), "duration": float(d)} for p, d in zip(posteriors, durations, strict=True)]
        cases.append({"frames": frames, "candidates": [as_json(c) for c in found if c is not None]})
    return cases


def make_stream(rng: np.random.Generator) -> dict[str, Any]:
    """Two seconds of noise after a quiet half: which blocks are due for which network, and a word's audio."""
    samples = (rng.standard_normal(40 * BLOCK) * np.repeat([1e-4, 0.1], 20 * BLOCK)).astype(np.float32)
    voices = rng.uniform(0.0, 0.02, 40)
    stream, filter_state = StreamState(CONFIG, 0, lambda: SpotterState(np.zeros(0), np.zeros(0))), initial_state()[None]
    vad_due, spotter_due, blocks = [], [], stream.split_blocks(samples)
    for block in blocks:
        filtered, filter_state = high_pass(block[None], filter_state, CONFIG.high_pass_hz)
        vad_due.append(stream.push(filtered[0]))
        spotter_due += [stream.on_vad(number, float(voices[number])) for number in vad_due[-1]]
    candidate = Candidate(3, np.zeros(10, np.float32), first=50.25, last=65.0, frame=77)
    stream.committed_until = 40 * 128
    audio, voice = stream.word_audio(candidate), stream.max_voice(candidate)
    return {
        "samples": samples.tolist(), "voices": voices.tolist(), "split": len(blocks), "vad_due": vad_due,
        "spotter_due": spotter_due, "begin": stream.committed_until,
        "word": {"candidate": as_json(candidate), "audio": audio.tolist(), "voice": voice},
    }  # fmt: skip


def make_cases() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    energy, levels = EnergyGate(CONFIG), rng.choice([1e-5, 1e-4, 1e-3, 1e-1], 120).repeat(10)
    blocks = [(level * rng.standard_normal(BLOCK)).astype(np.float32) for level in levels]
    speech, voices = SpeechGate(CONFIG), (rng.uniform(0.0, 0.008, 300) * np.repeat([1, 0.1, 1], 100)).tolist()
    sound = (0.1 * rng.standard_normal(4 * BLOCK) + 0.2).astype(np.float32).reshape(4, BLOCK)
    filtered, state = [], initial_state()[None]
    for block in sound:
        rows, state = high_pass(block[None], state, CONFIG.high_pass_hz)
        filtered.append(rows[0].tolist())
    resampled = []
    for rate in (11_025, 16_000, 44_100, 48_000):
        resampler, samples = Resampler(CONFIG), (0.1 * rng.standard_normal(rate // 4) + 0.1).astype(np.float32)
        made = np.concatenate([resampler.feed(samples, rate), resampler.flush()])
        resampled.append({"rate": rate, "samples": samples.tolist(), "resampled": made.tolist()})
    clips = []
    for size in (3000, 8000, 12_345, 30_000):
        samples = (0.001 * rng.standard_normal(size)).astype(np.float32)
        samples[size // 2 : size // 2 + 900] += rng.standard_normal(900).astype(np.float32) / 10
        clips.append({"samples": samples.tolist(), "expected": load_audio(samples, 8000).tolist()})
    first = Detection(7, 0.5, 0.0, 1.0, 0.1)
    others = [Detection(digit, 0.5, 0.9, 1.0 + after, 0.1) for digit in (6, 7) for after in (0.1, 0.26, 0.27, 1.0)]
    scores = [rng.uniform(0, 1, 4).tolist() for _ in range(20)] + [[0.0] * 4, [1.0] * 4]
    pairs = [(rng.dirichlet([0.2] * 10).tolist(), rng.dirichlet([0.2] * 10).tolist()) for _ in range(20)]
    return {
        "config": asdict(CONFIG),
        "peaks": make_peaks(rng),
        "repeats": [
            {"later": asdict(d), "earlier": asdict(first), "expected": d.repeats(first, CONFIG.duplicate_seconds)}
            for d in others
        ],
        "fusion": [
            {"scores": s, "confidence": fuse(FusionScores(*s), CONFIG), "pooled": mean_log_odds(s, 1e-4)}
            for s in scores
        ],
        "products": [{"one": a, "other": b, "digit": product_argmax(a, b, CONFIG.probability_floor)} for a, b in pairs],
        "energy": [
            {"block": b.tolist(), "open": energy.update(b), "level_db": energy.level_db} for b in blocks
        ],
        "speech": {"voices": voices, "open": [speech.update(v) for v in voices]},
        "high_pass": {"blocks": sound.tolist(), "filtered": filtered},
        "resampler": resampled,
        "clips": clips,
        "stream": make_stream(rng),
    }  # fmt: skip


@pytest.mark.skipif(NODE is None, reason="node is not here: it runs the page's unit tests")
def test_the_javascript_of_the_page_equals_python(tmp_path):
    file = tmp_path / "cases.json"
    file.write_text(json.dumps(make_cases()))
    command = [str(NODE), "--test", "--test-reporter=tap", *map(str, sorted(TESTS.glob("*.test.mjs")))]
    done = subprocess.run(
        command, env={**os.environ, "TWINS": str(file)}, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# pass 7" in done.stdout
