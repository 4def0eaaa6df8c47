"""Each script of examples/ does what its first line says, on tiny data and from another folder."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def run(name: str, *args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, args)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300
    )


def test_every_example_is_tested_here():
    here = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in here
        assert f"python examples/{path.name}" in path.read_text(encoding="utf-8"), "its docstring says how to call it"


def test_train_on_your_recordings(tiny_folder, tmp_path):
    for path in tiny_folder.iterdir():
        digit, speaker, index = path.stem.split("_")
        place = tmp_path / "my_digits" / digit / speaker / f"take {index}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    done = run("train_on_your_recordings.py", "my_digits", "--epochs", "2", "--output", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^mfcc: \d+ of 40 test clips misclassified", done.stdout, re.MULTILINE)
    assert (tmp_path / "mine" / "models" / "mfcc_classifier" / "model.onnx").is_file()
    assert done.stdout.endswith(f"open {Path('mine/train_logs/plots/training_report.html')} in a browser\n")
    assert (tmp_path / "mine" / "train_logs" / "plots" / "training_report.html").is_file()


def test_own_network(tiny_folder, tmp_path, capsys):
    main = runpy.run_path(str(EXAMPLES / "own_network.py"))["main"]
    words = ["--dataset", "folder", "--data_dir", str(tiny_folder), "--epochs", "2", "--output", str(tmp_path / "own")]
    assert main(words) == 0
    assert re.search(r"^60,939 parameters, [\d.]+ ms a clip$", capsys.readouterr().out, re.MULTILINE)
    assert (tmp_path / "own" / "models" / "raw_cnn_classifier" / "model.onnx").is_file()


def test_answer_is_the_same_by_all_four_ways(tiny_models, tiny_folder, tmp_path):
    done = run("answer.py", tiny_folder / "7_speaker1_2.wav", "--model_dir", tiny_models, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line[:12].rstrip() + line[12:].split("ms")[0].rsplit(maxsplit=1)[0] for line in done.stdout.splitlines()]
    assert [row.split(" 7 ")[0] for row in rows] == ["path", "bytes", "file object", "array"]
    assert len({row[row.index(" 7 ") :] for row in rows}) == 1


def test_examples_use_the_bundled_models_and_recordings_by_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for script, expected in (
        ("answer.py", "path         7 "),
        ("cut_a_long_recording.py", "digits: 4 1 3 5 5 5 0 1 2 7\n"),
        ("folder_to_csv.py", "3 answers and 0 errors in answers.csv\n"),
    ):
        assert runpy.run_path(str(EXAMPLES / script))["main"]([]) == 0
        assert expected in capsys.readouterr().out


def test_folder_to_csv(tiny_models, tmp_path):
    recordings = tmp_path / "recordings"
    (recordings / "more").mkdir(parents=True)
    for place, frequency in (("a.wav", 500), ("more/b.flac", 900)):
        soundfile.write(recordings / place, 0.2 * np.sin(np.arange(8000) * 2 * np.pi * frequency / 8000), 8000)
    (recordings / "bad.wav").write_bytes(b"no sound")
    (recordings / "notes.txt").write_text("not audio")
    done = run("folder_to_csv.py", recordings, "answers.csv", "--model_dir", tiny_models, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "2 answers and 1 error in answers.csv\n"), done.stderr
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["a.wav", "bad.wav", "b.flac"]
    assert ["not audio" in row["error"] for row in rows] == [False, True, False]
    shares = [float(rows[0][word]) for word in list(rows[0])[3:13]]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert max(shares) == float(rows[0]["confidence"]) == shares[int(rows[0]["digit"])]
    assert rows[0]["is_digit"] == str(int(float(rows[0]["digit_score"]) >= 0.5))
    assert (rows[1]["digit"], rows[1]["is_digit"], rows[1]["digit_score"]) == ("", "", "")


@pytest.mark.parametrize("words", [("nowhere", "answers.csv"), (".", "nowhere/answers.csv")])
def test_folder_to_csv_says_which_folder_is_missing(words, tiny_models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(EXAMPLES / "folder_to_csv.py"))["main"]
    assert main([*words, "--model_dir", str(tiny_models)]) == 1
    assert capsys.readouterr().err == "error: no folder nowhere\n"
    assert not list(tmp_path.iterdir())


def test_a_recording_too_short_to_cut_holds_no_digit(tiny_models, tmp_path, capsys):
    soundfile.write(tmp_path / "click.wav", np.array([0.5, -0.5]), 8000)
    main = runpy.run_path(str(EXAMPLES / "cut_a_long_recording.py"))["main"]
    assert main([str(tmp_path / "click.wav"), "--model_dir", str(tiny_models)]) == 0
    assert capsys.readouterr().out == "digits: none\n"


def test_cut_a_long_recording(tiny_models, tiny_corpus, tmp_path):
    digits = [4, 0, 7, 7, 1]
    rng = np.random.default_rng(0)
    quiet, hiss = rng.normal(0, 1e-4, 4000), rng.normal(0, 0.1, 3000)
    parts = [quiet]
    for place, digit in enumerate(digits):
        at = tiny_corpus.files.index(f"{digit}_speaker{place % 4}_0.wav")
        start = (8000 - tiny_corpus.lengths[at]) // 2
        parts += [tiny_corpus.waveforms[at, start : start + tiny_corpus.lengths[at]], quiet]
    soundfile.write(tmp_path / "number.wav", np.concatenate([*parts, hiss, quiet]), 8000)
    done = run("cut_a_long_recording.py", "number.wav", "--model_dir", tiny_models, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *pieces, cough, last = done.stdout.splitlines()
    assert last == "digits: 4 0 7 7 1"
    assert len(pieces) == len(digits)
    assert cough.endswith(" s   - no digit")


def test_compare_runs(tmp_path):
    for stamp, pipeline, right in (("20260102_030405", "mfcc", 0.9), ("20260101_000000", "raw_cnn", 0.8)):
        summary = {
            "pipeline": pipeline, "best_epoch": 7, "train_seconds": 12.34, "model_bytes": 450_000, "latency_ms": 0.5,
            "test": {"accuracy": right, "clips": 300, "protocol": "official"}, "data": {"name": "mine"},
            "config": {"seed": 0, "epochs": 30, "batch_size": 32, "learning_rate": 0.003},
        }  # fmt: skip
        (tmp_path / f"metrics_summary_{pipeline}_{stamp}.json").write_text(json.dumps(summary))
    done = run("compare_runs.py", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _, *rows = done.stdout.splitlines()
    assert [row.split()[:3] for row in rows] == [
        ["20260101_000000", "raw_cnn", "80.00%"], ["20260102_030405", "mfcc", "90.00%"]
    ]  # fmt: skip
    assert run("compare_runs.py", "nowhere", cwd=tmp_path).returncode == 1
