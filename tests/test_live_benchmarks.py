"""The benchmarks of live detection: what they count, print and store."""

from __future__ import annotations

from pathlib import Path

import live
import live_input
import live_load
import numpy as np
import pytest
import soundfile

from digit_detector.evaluation.streams import LabelledDigit, TestStream
from digit_detector.labels import LABELS
from digit_detector.streaming.engine import Detection
from ml_training.data.tts import VOICES, synthesize_words


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpora")
    for name in ("words", "noise", "speech"):
        (root / name).mkdir()
    for i, clip in enumerate(synthesize_words([(voice, name) for voice in VOICES[:2] for name in LABELS], seed=4)):
        soundfile.write(root / "words" / f"{i % 10}_voice{i // 10}_0.wav", clip, 8000)
    for i, clip in enumerate(synthesize_words([(VOICES[3], "please turn the lights off in the kitchen")], seed=5)):
        soundfile.write(root / "speech" / f"line_{i}.wav", clip, 8000)
    rng = np.random.default_rng(0)
    soundfile.write(root / "noise" / "hiss.wav", 0.1 * rng.standard_normal(40_000), 8000)
    return root


def test_streams_are_the_same_every_time(folders, monkeypatch):
    monkeypatch.setattr(live, "TURNS", 1)
    monkeypatch.setattr(live, "STRINGS", 4)
    one, two = (live.make_streams(folders / "words", folders / "noise") for _ in range(2))
    assert [len(stream.digits) for stream in one][:2] == [20, 20]
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.samples, b.samples)
        assert a.digits == b.digits


def test_a_row_is_evaluated_once_and_stored(tmp_path):
    streams = [TestStream(np.zeros(8000, dtype=np.float32), (LabelledDigit(7, 0.2, 0.5),)) for _ in range(3)]
    silence, calls = np.zeros(8000, dtype=np.float32), []

    def load() -> live.Detect:
        def detect(samples: np.ndarray) -> list[Detection]:
            calls.append(len(samples))
            return [Detection(7, 1.0, 0.2, 0.5, 0.1)]

        return detect

    first, again = (live.evaluate_once(tmp_path, "name", streams, silence, silence, load) for _ in range(2))
    assert first.strings.accuracy == again.strings.accuracy == 1.0
    assert again.noise_per_hour == 3600.0
    assert len(calls) == 5
    table = live.format_table({"ours": first, "Whisper tiny": again})
    assert "| digits with pauses, noise at 20 dB: right, % | 100.0 | 100.0 |" in table
    assert "| delay p50 / p95, ms | 100 / 100 | - |" in table
    assert "1 digits, 1 right" in live.format_errors(first)


def test_a_few_streams_are_processed_in_time(folders, capsys):
    streams = live_load.make_streams(folders / "words", folders / "noise", 3, 2.0)
    assert [len(sound) for sound in streams] == [16_000] * 3
    live_load.feed_live(streams)
    printed = capsys.readouterr().out
    assert printed.startswith("3 streams, 2 s:")
    assert "of a core" in printed


def test_inputs_are_varied_and_scored(folders, monkeypatch, capsys):
    words, noise = str(folders / "words"), str(folders / "noise")
    monkeypatch.setattr("sys.argv", ["live_input.py", "--words", words, "--noise", noise, "--most", "4"])
    monkeypatch.setattr(live_input, "RATES", (16_000,))
    assert live_input.main() == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:]] == [
        "8,000 Hz", "half the level, offset of 0.1", "half the level, offset of 0.3", "hum at the level of the words",
        "16,000 Hz", "16,000 Hz, soxr's LQ", "16,000 Hz, soxr's HQ",
    ]  # fmt: skip
    assert {row[1] for row in rows[2:5]} == {rows[2][1]}, "an offset changes nothing"
