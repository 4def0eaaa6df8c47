"""`digits benchmark`: speed, size and accuracy of exported models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector.audio import load_audio
from digit_detector.classifier import load_classifier
from digit_detector.labels import FILE_PRECISIONS, PIPELINES
from ml_training import benchmark
from ml_training.evaluation import speed
from ml_training.evaluation.speed import BenchmarkError, list_models, run_once

QUICK = ["--samples", "3", "--starts", "1"]


def test_figures_of_a_model_as_table_and_as_json(
    tiny_models: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips, log = tmp_path / "clips", tmp_path / "scored.md"
    clips.mkdir()
    rng = np.random.default_rng(0)  # other recordings than those of the training
    for digit in range(10):
        soundfile.write(clips / f"{digit}_somebody_0.wav", 0.1 * rng.standard_normal(8000), 8000)
    words = ["--models_dir", str(tiny_models), "--folder", str(clips), "--log_scoring", str(log), *QUICK]
    assert benchmark.main([*words, "--pipeline", "mfcc", "--output", str(tmp_path / "out")]) == 0
    heads, row, *_ = capsys.readouterr().out.splitlines()
    assert heads.split("  ")[-1] == "model, MB"
    assert row.startswith("mfcc ")
    result = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    (model,) = result["models"]
    classifier = load_classifier(tiny_models, "mfcc")
    right = sum(
        classifier.predict(load_audio(clips / f"{digit}_somebody_0.wav"), 8000)["predicted_digit"] == digit
        for digit in range(10)
    )
    assert model["accuracy"] == {"strangers": {"right": right, "clips": 10}}
    assert f"{10 * right:.1f}" in row.split()
    assert 0 < model["latency_ms"]["p50"] <= model["latency_ms"]["p95"] <= model["latency_ms"]["p99"]
    assert set(model["clips_per_second"]["1"]) == {"1", "32", "256"}
    assert min(model["clips_per_second"]["1"].values()) > 0
    assert model["start_ms"] > 0
    assert model["memory_mb"] is None or 20 < model["memory_mb"] < 2000
    assert model["model_mb"] == classifier.model_file.stat().st_size / 1e6
    assert result["machine"]["numpy"] == np.__version__
    assert "strangers" in log.read_text()


def test_the_models_that_ship_are_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--pipeline", "raw_cnn", *QUICK, "--json", "--output", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in printed["models"]] == ["raw_cnn", "raw_cnn, int8"]
    assert printed["models"][0]["accuracy"] == {}
    assert printed == json.loads((tmp_path / "benchmark.json").read_text())


def test_exported_files_of_a_folder_are_found(tiny_models: Path, tmp_path: Path) -> None:
    assert list_models("pretrained") == [(name, precision) for precision in FILE_PRECISIONS for name in PIPELINES]
    assert list_models(str(tiny_models), ["mfcc"]) == [("mfcc", "fp32")]


def test_a_folder_without_models_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--models_dir", str(tmp_path / "nowhere"), "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: no folder ")


@pytest.mark.parametrize("flag", ["--contenders svm mfcc", "--rounds 3", "--singles=2", "--seconds 1.5"])
def test_flags_that_compare_with_others_name_the_script_that_does(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        benchmark.main(flag.split())
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{flag.replace('=', ' ').split()[0]}: benchmarks/peers.py of the repository" in line


def test_a_process_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchmarkError, match="exit code 3: so it ends"):
        run_once([speed.sys.executable, "-c", "import sys; print('so it ends', file=sys.stderr); sys.exit(3)"])
