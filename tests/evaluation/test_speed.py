"""`digits benchmark`: speed, size and accuracy of exported models."""

import json
import sys

import numpy as np
import pytest
import soundfile

from digit_detector.audio import load_audio
from digit_detector.classifier import load_classifier
from digit_detector.labels import FILE_PRECISIONS, PIPELINES
from ml_training import benchmark
from ml_training.evaluation.speed import BenchmarkError, list_models, run_once

QUICK = ["--samples", "3", "--starts", "1"]


def test_figures_of_a_model_as_table_and_as_json(tiny_models, tmp_path, capsys):
    clips, log = tmp_path / "clips", tmp_path / "scored.md"
    clips.mkdir()
    rng = np.random.default_rng(0)
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
    predicted = [classifier.predict(load_audio(path), 8000)["predicted_digit"] for path in sorted(clips.iterdir())]
    right = sum(digit == label for label, digit in enumerate(predicted))
    assert model["accuracy"] == {"unseen_speakers": {"right": right, "clips": 10}}
    assert f"{10 * right:.1f}" in row.split()
    assert 0 < model["latency_ms"]["p50"] <= model["latency_ms"]["p95"] <= model["latency_ms"]["p99"]
    assert set(model["clips_per_second"]["1"]) == {"1", "32", "256"}
    assert min(model["clips_per_second"]["1"].values()) > 0
    assert model["start_ms"] > 0
    assert model["memory_mb"] is None or 20 < model["memory_mb"] < 2000
    assert model["model_mb"] == classifier.model_file.stat().st_size / 1e6
    assert result["machine"]["numpy"] == np.__version__
    assert "unseen_speakers" in log.read_text()


def test_the_models_that_ship_are_the_default(tmp_path, capsys):
    assert benchmark.main(["--pipeline", "raw_cnn", *QUICK, "--json", "--output", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(m["name"], m["accuracy"]) for m in printed["models"]] == [("raw_cnn", {}), ("raw_cnn, int8", {})]
    assert printed == json.loads((tmp_path / "benchmark.json").read_text())
    assert list_models("pretrained") == [(name, precision) for precision in FILE_PRECISIONS for name in PIPELINES]


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ("--models_dir nowhere", 1, "error: no folder "),
        ("--contenders svm mfcc", 2, "--contenders: benchmarks/peers.py of the repository"),
        ("--rounds 3", 2, "--rounds: benchmarks/peers.py of the repository"),
        ("--samples 0", 2, "expected a whole number from 1 on"),
    ],
)
def test_faults_are_one_line(words, code, expected, capsys):
    try:
        found = benchmark.main(words.split())
    except SystemExit as left:
        found = int(str(left.code))
    (line,) = capsys.readouterr().err.splitlines()
    assert (found, expected in line) == (code, True)


def test_a_process_that_fails_is_named():
    with pytest.raises(BenchmarkError, match="exit code 3: so it ends"):
        run_once([sys.executable, "-c", "import sys; print('so it ends', file=sys.stderr); sys.exit(3)"])
