"""The benchmarks of live detection: what they count, print and store."""

from __future__ import annotations

import shutil
from pathlib import Path

import cutting
import live
import live_input
import live_load
import numpy as np
import pytest
import soundfile

from digit_detector.evaluation.streams import load_sounds, load_words
from digit_detector.labels import LABELS
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


def test_streams_are_the_same_every_time_and_scored_in_both_contexts(folders, monkeypatch, capsys):
    monkeypatch.setattr(live, "TURNS", 1)
    monkeypatch.setattr(live, "STRINGS", 4)
    words, noises = load_words(folders / "words"), load_sounds(folders / "noise")
    one, two = (live.make_streams(words, noises) for _ in range(2))
    assert [len(stream.digits) for stream in one][:2] == [20, 20]
    assert [len(stream.digits) for stream in one][3:] == [1] * 20
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.samples, b.samples)
        assert a.digits == b.digits
    flags = [word for name in ("words", "noise", "speech") for word in (f"--{name}", str(folders / name))]
    monkeypatch.setattr("sys.argv", ["live.py", *flags, "--hours", "0.01"])
    assert live.main() == 0
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {3}
    assert "context digits | context any" in printed
    assert "mel_cnn: " in printed
    assert printed.count("single: 20 digits") == 2


def test_a_few_streams_are_processed_in_time(folders, capsys):
    streams = live_load.make_streams(folders / "words", folders / "noise", 3, 2.0)
    assert [len(sound) for sound in streams] == [16_000] * 3
    live_load.feed_live(streams)
    printed = capsys.readouterr().out
    assert printed.startswith("3 streams, ")
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


def test_cutting_is_compared_with_the_live_detector(folders, monkeypatch, capsys):
    (folders / "speech" / "tune").mkdir(exist_ok=True)
    (folders / "noise" / "train").mkdir(exist_ok=True)
    for name in ("speech/line_0.wav", "noise/hiss.wav"):
        place = folders / name
        shutil.copy(place, place.parent / ("tune" if "speech" in name else "train"))
    monkeypatch.setenv("DIGIT_CORPORA_DIR", str(folders))
    monkeypatch.setattr(cutting, "_ALARMS", 1e6)
    monkeypatch.setattr("sys.argv", ["cutting.py", "--digits", str(folders / "words")])
    assert cutting.main() == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| pauses, 20 dB", "| pauses, 10 dB", "| connected, 20 dB"]
    assert all(float(share.strip(" |")) <= 100.0 for row in rows for share in row[1:])
