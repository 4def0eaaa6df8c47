"""benchmarks/comparison.py: what is recognised, stored and tabulated."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
from recognisers import RecogniserSpec, recognisers

from digit_detector.processors.baselines import NOTHING
from ml_training.data.dataset_loader import load_folder
from ml_training.evaluation import records
from ml_training.evaluation.protocols import TestClips
from ml_training.report.tables import tables_of, title_of

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "comparison.py"
DIGITS = (7, 3)


@pytest.fixture(scope="module")
def comparison() -> ModuleType:
    spec = importlib.util.spec_from_file_location("comparison", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def few(tiny_folder: Path, tmp_path: Path) -> Path:
    """Two speakers' first recordings of two digits."""
    folder = tmp_path / "few"
    folder.mkdir()
    for name in (f"{digit}_speaker{speaker}_0.wav" for digit in DIGITS for speaker in (0, 1)):
        shutil.copyfile(tiny_folder / name, folder / name)
    return folder


# --- recognition ---------------------------------------------------------------------------------


class FirstSample:
    """Recognises the digit that is a clip's first sample, nothing in silence."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, samples: np.ndarray) -> int:
        self.calls += 1
        return int(samples[0]) or NOTHING


def test_results_are_counted_and_stored(
    comparison: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.array([3, 5, 7, 9])
    clips = {"clean": np.array([[3], [5], [7], [0]]), "5 dB": np.array([[3], [1], [1], [0]])}
    recognise = FirstSample()
    results = comparison.run("one", recognise, clips, labels, tmp_path)
    assert {label: of["right"] for label, of in results.items()} == {"clean": 3, "5 dB": 1}
    assert all(0 < of["ms"] < 1000 for of in results.values())
    assert recognise.calls == 8
    assert "one, clean: 75.0 %" in capsys.readouterr().out
    assert comparison.run("one", recognise, clips, labels, tmp_path) == results
    assert recognise.calls == 8
    next(tmp_path.glob("one_5_dB_*.json")).unlink()
    again = comparison.run("one", recognise, clips, labels, tmp_path)
    assert recognise.calls == 12
    assert again["clean"] == results["clean"]
    comparison.run("another", recognise, clips, labels, tmp_path)
    assert recognise.calls == 20
    comparison.run("another", recognise, clips, labels, tmp_path, "a later version")
    assert recognise.calls == 28
    other = comparison.run("another", recognise, {"clean": clips["clean"][::-1]}, labels, tmp_path)
    assert (other["clean"]["right"], recognise.calls) == (0, 32)


def test_conditions_are_seconds_of_8_khz_and_whole_recordings(
    comparison: ModuleType, few: Path, tmp_path: Path
) -> None:
    stereo = few / "3_speaker1_0.wav"
    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    soundfile.write(stereo, np.stack([tone, np.zeros_like(tone)], axis=1), 44100)
    corpus = load_folder(few)
    narrow, originals = comparison.conditions(corpus, few, None)
    assert list(narrow) == ["clean"]
    np.testing.assert_array_equal(narrow["clean"], corpus.waveforms)
    seconds = {file: soundfile.info(few / file).duration for file in corpus.files}
    assert [len(samples) for samples in originals] == [
        pytest.approx(comparison.WIDE * seconds[file], abs=1) for file in corpus.files
    ]
    middle = originals[corpus.files.index(stereo.name)][4000:12000]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.01), "the mean of its channels"
    (tmp_path / "noises").mkdir()
    soundfile.write(tmp_path / "noises" / "rain.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 8000)
    noisy, _ = comparison.conditions(corpus, few, tmp_path / "noises")
    assert list(noisy) == ["clean", "20 dB", "10 dB", "5 dB", "0 dB", "-5 dB"]
    assert all(clips.shape == (4, 8000) for clips in noisy.values())
    assert not np.array_equal(noisy["5 dB"], corpus.waveforms)


@pytest.mark.parametrize("layout", ["recordings", "data"])
def test_the_recordings_are_found_in_every_layout(
    comparison: ModuleType, few: Path, tmp_path: Path, layout: str
) -> None:
    for path in few.iterdir():
        inside = path.stem.split("_")[1] if layout == "data" else ""
        (tmp_path / "public" / layout / inside).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, tmp_path / "public" / layout / inside / path.name)
    corpus = load_folder(tmp_path / "public")
    assert len(comparison.conditions(corpus, tmp_path / "public", None)[1]) == len(corpus) == 4


def test_a_fault_is_one_line(tmp_path: Path) -> None:
    for words, message in (
        (["--recognisers", "mfcc"], "error: nowhere is not a folder: expected a folder of recordings"),
        (["--recognisers", "mfcc", "sphinx"], "invalid choice: 'sphinx'"),
    ):
        command = [sys.executable, str(SCRIPT), "--folder", "nowhere", "--work", "work", *words]
        env = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode in (1, 2)
        assert message in done.stderr
        assert "Traceback" not in done.stderr


# --- tables --------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_recogniser(comparison: ModuleType, few: Path, tmp_path: Path) -> None:
    clips = TestClips(load_folder(few), official=False)
    results = {
        "mel_cnn": {"clean": {"right": 4, "ms": 1.25}, "5 dB": {"right": 2, "ms": 9.0}},
        "pocketsphinx": {
            "clean": {"right": 3, "ms": 20.0}, "5 dB": {"right": 1, "ms": 9.0}, "original": {"right": 2, "ms": 9.0}
        },
    }  # fmt: skip
    sizes, noises = {"mel_cnn": 0.5, "pocketsphinx": 36.914}, tmp_path / "rain"
    result = comparison.collect(clips, results, sizes, ["clean", "5 dB"], noises)
    (table,) = tables_of(result)
    assert table.header == ("recogniser", "8 kHz, clean (95 % interval)", "16 kHz", "5 dB", "MB", "ms a clip")
    assert table.rows == (
        ("mel_cnn", "100.0 % (51.0 to 100.0)", "-", "50.0 %", "0.50", "1.25"),
        ("pocketsphinx", "75.0 % (30.1 to 95.4)", "50.0 %", "25.0 %", "36.91", "20.00"),
    )
    assert title_of(result) == "Beside other recognisers: few, backgrounds from rain"
    assert (result.clips, result.speakers, result.details["noise_seed"]) == (4, 2, comparison.SEED)
    quiet = comparison.collect(clips, results, sizes, ["clean"], None)
    (table,) = tables_of(quiet)
    assert table.header == ("recogniser", "8 kHz, clean (95 % interval)", "16 kHz", "MB", "ms a clip")
    assert "noise_seed" not in quiet.details
    assert not quiet.curves, "one point is none"


@pytest.mark.parametrize("noisy", [True, False])
def test_the_script_writes_results_and_resumes(
    comparison: ModuleType, few: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], noisy: bool,
) -> None:  # fmt: skip
    calls: list[int] = []

    class Sevens:
        megabytes = 12.5

        def one(self, samples: np.ndarray) -> int:
            calls.append(len(samples))
            return 7

    available = {**recognisers(), "pocketsphinx": RecogniserSpec("pocketsphinx", "", lambda sources, threads: Sevens())}
    monkeypatch.setattr(comparison, "recognisers", lambda: available)
    output, work = tmp_path / "results", tmp_path / "work"
    words = ["--folder", few, "--work", work, "--models_dir", tiny_models, "--output", output]
    words += ["--recognisers", "mfcc", "pocketsphinx"]
    if noisy:
        (tmp_path / "rain").mkdir()
        soundfile.write(tmp_path / "rain" / "rain.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 8000)
        words += ["--noise_dir", tmp_path / "rain"]
    monkeypatch.setattr(sys, "argv", ["comparison.py", *map(str, words)])
    assert comparison.main() == 0
    assert "mfcc          100.0 %" in capsys.readouterr().out, "the tiny model is trained on these clips"
    count = 6 if noisy else 1
    assert calls[: 4 * count] == [comparison.WIDE] * 4 * count
    assert len(calls) == 4 * count + 4, "and the unchanged recordings"
    (result,) = records.load_results(output)
    assert [(s.pipeline, s.all.right) for s in result.scores] == [("mfcc", 4), ("pocketsphinx", 2)]
    assert result.details["megabytes"] == {"mfcc": pytest.approx(0.03, abs=0.03), "pocketsphinx": 12.5}
    assert math.isfinite(result.details["milliseconds"]["mfcc"])
    page = tmp_path / "results.md"
    assert records.update_docs(output, page) == 1
    text = page.read_text(encoding="utf-8")
    assert "| pocketsphinx | 50.0 %" in text
    assert text.count("](results/plots/comparison_") == len(list((output / "plots").iterdir())) == 1
    assert comparison.main() == 0
    assert len(calls) == 4 * count + 4, "nothing is recognised twice"
    assert len(list(output.glob("*.json"))) == 1
    assert {path.name.partition("_")[0] for path in work.iterdir()} == {"mfcc", "pocketsphinx"}
    (original,) = work.glob("pocketsphinx_original_*.json")
    assert json.loads(original.read_text())["right"] == 2
