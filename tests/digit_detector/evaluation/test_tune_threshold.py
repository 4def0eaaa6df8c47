"""`digits tune-threshold`: the thresholds that it writes, and the curves that it reads them from."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector import tune_threshold
from digit_detector.errors import DataError
from digit_detector.evaluation import det
from digit_detector.evaluation.det import Detections, accept, choose_threshold, run
from digit_detector.evaluation.streams import LabelledDigit, TestStream, load_words
from digit_detector.labels import LABELS
from digit_detector.streaming.config import ANY, CONTEXTS, DetectorConfig, load_config
from digit_detector.streaming.detector import StreamingDetector
from digit_detector.streaming.engine import Detection, Engine
from ml_training.data.tts import VOICES, synthesize_words


def detections(*confidences: float, digit: int = 7) -> list[Detection]:
    return [Detection(digit, sure, i + 0.5, i + 1.0, 0.1) for i, sure in enumerate(confidences)]


def stream(count: int) -> TestStream:
    return TestStream(np.zeros(8000, dtype=np.float32), tuple(LabelledDigit(7, i + 0.5, i + 1.0) for i in range(count)))


def test_the_lowest_threshold_within_the_limits_is_chosen():
    scored = Detections(
        DetectorConfig(),
        ((stream(4), detections(0.9, 0.7, 0.4, 0.2)),),
        {"speech": (detections(0.6, 0.5, 0.3), 0.5), "noise": (detections(0.35), 2.0)},
    )
    assert scored.false_alarms_per_hour("speech", 0.0) == 6.0
    assert scored.score(0.4).correct == 3
    assert choose_threshold(scored, {"speech": 2.0, "noise": 1.0}) == 0.51
    assert choose_threshold(scored, {"speech": 6.0, "noise": 0.0}) == 0.36
    assert choose_threshold(scored, {"speech": 0.0}) == 0.61
    with pytest.raises(DataError, match="allow more"):
        choose_threshold(Detections(DetectorConfig(), (), {"speech": (detections(1.0), 1.0)}), {"speech": 0.5})
    assert scored.thresholds() == sorted({0.0, 0.9, 0.7, 0.4, 0.2, 0.6, 0.5, 0.3, 0.35})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpora")
    for name in ("digits", "speech", "noise"):
        (root / name).mkdir()
    clips = synthesize_words([(voice, name) for voice in VOICES[:2] for name in LABELS], seed=4)
    for i, clip in enumerate(clips):
        soundfile.write(root / "digits" / f"{i % 10}_voice{i // 10}_0.wav", clip, 8000)
    lines = ("what a lovely evening", "please turn the kitchen lights off", "I think it is going to rain tomorrow")
    for i, clip in enumerate(synthesize_words([(VOICES[3], line) for line in lines], seed=5)):
        soundfile.write(root / "speech" / f"line_{i}.wav", clip, 8000)
    rng = np.random.default_rng(0)
    for i in range(3):
        soundfile.write(root / "noise" / f"hiss_{i}.wav", 0.1 * rng.standard_normal(40_000), 8000)
    return root


def run_command(root: Path, folder: Path, *words: str) -> int:
    """Run the command in a folder, with few streams and few candidates; returns its exit code."""
    named = [word for name in ("digits", "speech", "noise") for word in (f"--{name}", str(root / name))]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tune_threshold, "_MOST_WORDS", 30)
        patch.setattr(det, "OTHER_RATIOS", (0.2, 0.5))
        return tune_threshold.main([*named, "--noise_hours", "0.02", *words])


@pytest.mark.parametrize("context", CONTEXTS)
def test_decoding_posteriors_equals_a_detector_with_these_thresholds(context, folders):
    sounds = [word.samples for word in load_words(folders / "digits")]
    sound = np.concatenate([part for each in sounds for part in (each, np.zeros(4000, np.float32))])
    outputs = run(Engine(), [TestStream(sound, ()), TestStream(sound[:30_000], ())], {"speech": sounds[:3]})
    assert outputs.negatives["speech"][0].seconds == len(sounds[0]) / 8000
    for ratio in (0.0, 0.2, 0.6):
        config = replace(load_config(context=context), other_ratio=ratio)
        found = outputs.detect(config).digits[0][1]
        for threshold in (0.05, 0.5, 0.8):
            detector = StreamingDetector(config=replace(config, digits_threshold=threshold, any_threshold=threshold))
            expected = detector.feed(sound) + detector.flush()
            accepted = accept(found, threshold, context)
            assert [(d.digit, d.start, d.end, d.delay) for d in accepted] == [
                (d.digit, d.start, d.end, d.delay) for d in expected
            ]
            assert [d.confidence for d in accepted] == pytest.approx([d.confidence for d in expected], abs=1e-3)
    assert found


LIMITS = ("--false-alarms", "1000", "--digits-alarms", "1000", "--noise-alarms", "500")


@pytest.fixture(scope="module")
def chosen(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of chosen thresholds, and what the command printed."""
    folder = tmp_path_factory.mktemp("chosen")
    (folder / "clips.tsv").write_text(f"file\tdigits\n{folders / 'digits' / '7_voice0_0.wav'}\t7\n")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run_command(folders, folder, *LIMITS, "--strings", str(folder), "--spotter", "old.onnx") == 0
    return folder, printed.getvalue()


def test_a_threshold_is_chosen_drawn_and_used(folders, chosen):
    folder, message = chosen
    result = json.loads((folder / "thresholds.json").read_text())
    assert result.keys() == {"thresholds", "chosen_on", "target", "measured", "hours", "created"}
    for context in CONTEXTS:
        assert result["measured"][context]["speech"] <= 1000
        assert result["target"][context] == {"speech": 1000.0, "noise": 500.0}
        assert f"{context}_threshold {result['thresholds'][f'{context}_threshold']:.2f}" in message
    assert (
        result["measured"][ANY]["digits"] > 3 * 20 + 1
    )  # streams with pauses, strings of joined words, a recorded string
    config = load_config(folder / "thresholds.json")
    assert 0.0 < config.any_threshold < 1.0
    assert 0.0 < config.other_ratio < 1.0
    assert (folder / "thresholds.png").read_bytes().startswith(b"\x89PNG")
    talk = str(folders / "digits" / "7_voice0_0.wav")
    words = ["listen", "--file", talk, "--thresholds", "thresholds.json"]
    done = subprocess.run(
        [sys.executable, "-m", "ml_training.cli", *words], cwd=folder, capture_output=True, timeout=60
    )
    assert done.returncode == 0


def test_the_same_seed_chooses_the_same(folders, chosen, tmp_path):
    words = (*LIMITS, "--strings", str(chosen[0]), "--out", "again.json")
    assert run_command(folders, tmp_path, *words) == 0
    a, b = (json.loads(file.read_text()) for file in (chosen[0] / "thresholds.json", tmp_path / "again.json"))
    assert {**a, "created": ""} == {**b, "created": ""}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--noise_hours", "0"], "noise_hours: expected a number above 0, got 0.0"),
        (["--noise_hours", "nan"], "noise_hours"),
        (["--false-alarms", "-1"], "false_alarms: expected a number from 0 on"),
        (["--seed", "-1"], "seed"),
        (["--out", "."], "out: . is a folder"),
        (["--out", "digits/7_voice0_0.wav/a.json"], "is a file, expected a folder"),
        (["--out", "curve.png"], "is the file of the plot"),
    ],
)
def test_invalid_flags_are_reported_first(words, message, folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    assert tune_threshold.main(["--digits", "none", "--noise", "none", "--speech", "none", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_used_is_one_line(folders, tmp_path, capsys):
    assert run_command(folders, tmp_path, "--digits", str(tmp_path / "none")) == 1
    assert run_command(folders, tmp_path, "--strings", str(tmp_path)) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "holds no recordings" in first
    assert "clips.tsv" in second
