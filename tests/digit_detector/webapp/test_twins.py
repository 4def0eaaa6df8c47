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

import digit_detector
from digit_detector.acoustic_file import BLOCK, BLOCK_SECONDS, FIRST_DIGIT, OH, TOKENS
from digit_detector.audio import load_audio
from digit_detector.streaming.acoustic import load_acoustic_model
from digit_detector.streaming.config import CONTEXTS, DetectorConfig, load_config
from digit_detector.streaming.decoder import Decoder
from digit_detector.streaming.high_pass import high_pass, initial_state
from digit_detector.streaming.resampler import Resampler
from digit_detector.streaming.stream_state import StreamState

CONFIG = load_config()
TESTS = Path(__file__).parents[2] / "js"
SAMPLES = Path(digit_detector.__file__).with_name("samples")
NODE = shutil.which("node")
RANDOM_CASES = 60


def draw_config(rng: np.random.Generator, context: str) -> DetectorConfig:
    """A config with every constant of the decoder drawn anew."""
    uniform = {
        "digits_threshold": (0, 0.8), "any_threshold": (0, 0.9), "other_ratio": (0, 0.7), "posterior_floor": (0, 0.2),
        "other_weight": (0, 1), "other_floor": (0.1, 0.6), "endpoint_seconds": (0.03, 0.8),
        "speech_threshold": (0.2, 0.8), "max_utterance_seconds": (1, 6), "guard_seconds": (0, 1),
        "pair_seconds": (0, 1.5), "token_seconds": (-0.1, 0.3), "word_seconds": (0.05, 0.8),
        "confidence_offset": (-2, 2), "confidence_scale": (0.2, 3),
    }  # fmt: skip
    whole = {"beam_width": (1, 13), "commit_frames": (4, 60), "any_frames": (1, 8)}
    return DetectorConfig(
        context=context, **{name: float(rng.uniform(*bounds)) for name, bounds in uniform.items()},
        **{name: int(rng.integers(*bounds)) for name, bounds in whole.items()},
    )  # fmt: skip


def draw_posteriors(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 15) posteriors with peaks of words in bursts of speech, and (count,) speech activity."""
    scores = rng.normal(0.0, 1.0, (count, len(TOKENS)))
    scores[:, 0] += 5.0
    speech = np.full(count, 0.05)
    at = 0
    while at < count:
        for _ in range(rng.integers(1, 8)):  # words of an utterance
            token = rng.integers(OH, len(TOKENS)) if rng.random() < 0.3 else rng.integers(FIRST_DIGIT, OH)
            width, height = rng.uniform(0.5, 3.0), rng.uniform(2.0, 12.0)
            scores[:, token] += height * np.exp(-(((np.arange(count) - at) / width) ** 2))
            if rng.random() < 0.3:  # two words compete
                scores[:, rng.integers(1, len(TOKENS))] += height * np.exp(-(((np.arange(count) - at) / width) ** 2))
            speech[max(0, at - 8) : at + 4] = 0.95
            at += rng.integers(3, 25)
        at += rng.integers(5, 60)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True), np.clip(speech + rng.normal(0, 0.1, count), 0, 1)


def record_posteriors(config: DetectorConfig) -> tuple[np.ndarray, np.ndarray]:
    """Those of the acoustic model, of the bundled recordings one after the other."""
    files = [load_samples(name) for name in ("phone_number", "seven", "three")]
    sound = np.concatenate([part for samples in files for part in (samples, np.zeros(4000, np.float32))])
    model = load_acoustic_model()
    filter_state, state, posteriors, speech = initial_state()[None], model.initial_state()[None], [], []
    for block in sound[: len(sound) // BLOCK * BLOCK].reshape(-1, 1, BLOCK):
        filtered, filter_state = high_pass(block, filter_state, config.high_pass_hz)
        rows, voices, state = model(filtered, state)
        posteriors.append(rows[0])
        speech.append(voices[0])
    return np.array(posteriors), np.array(speech)


def load_samples(name: str) -> np.ndarray:
    import soundfile

    samples, rate = soundfile.read(SAMPLES / f"{name}.flac", dtype="float32")
    resampler = Resampler(CONFIG)
    return np.concatenate([resampler.feed(samples, rate), resampler.flush()])


def decode(config: DetectorConfig, posteriors: np.ndarray, speech: np.ndarray) -> dict[str, Any]:
    """A case for the decoder: each frame's digits, and the provisional ones after it."""
    decoder, rows, voices = Decoder(config), np.round(posteriors, 5).tolist(), np.round(speech, 4).tolist()
    frames = []
    for row, voice in zip(rows, voices, strict=True):
        digits = decoder.push(row, voice)
        frames.append({"digits": list(map(asdict, digits)), "provisional": list(map(asdict, decoder.provisional))})
    last = list(map(asdict, decoder.end_utterance()))
    return {"config": asdict(config), "posteriors": rows, "speech": voices, "frames": frames, "last": last}


def make_cases() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    contexts = RANDOM_CASES // 2 * [*CONTEXTS]
    decoder = [decode(draw_config(rng, context), *draw_posteriors(rng, 300)) for context in contexts]
    for context in CONTEXTS:
        for sensitive in ({}, {"digits_threshold": 0.0, "any_threshold": 0.0, "other_ratio": 1.0}):
            config = DetectorConfig(context=context, **sensitive)
            decoder.append(decode(config, *record_posteriors(config)))
    for context, reported in (("digits", 3), ("any", 10)):
        counts = [sum(len(f["digits"]) for f in c["frames"]) for c in decoder if c["config"]["context"] == context]
        assert sum(count > reported for count in counts) > len(counts) / 3, "digits are decided"
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
    stream, samples = StreamState(CONFIG, np.zeros(1, np.float32)), rng.standard_normal(5000).astype(np.float32)
    blocks = [*stream.split_blocks(samples), *stream.flush_blocks()]
    return {
        "detector": {"config": asdict(CONFIG), "tokens": TOKENS, "block": BLOCK},
        "block_seconds": BLOCK_SECONDS,
        "decoder": decoder,
        "round": [[value, round(value)] for value in (0.0, 0.5, 1.5, 2.5, 9.999999999999998, 10.3, 10.5)],
        "high_pass": {"blocks": sound.tolist(), "filtered": filtered},
        "resampler": resampled,
        "clips": clips,
        "stream": {"samples": samples.tolist(), "blocks": [block.tolist() for block in blocks]},
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
    assert "# pass 5" in done.stdout
