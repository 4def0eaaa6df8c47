"""digits export: from a trained checkpoint to model files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = "models/mfcc_classifier/best_model.pt"
SPLIT = "recordings has no official test part: splitting it at random, 70/10/20, evenly by digit\n"
KEPT = "version 1 keeps the model.onnx that it has; --output writes another one\n"


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    """A folder in which mfcc was trained on the tiny corpus."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(tiny_folder, folder / "recordings")
    words = ["--pipeline", "mfcc", "--dataset", "folder", "--data_dir", "recordings", "--epochs", "12"]
    command = [sys.executable, str(ROOT / "ml_training/train.py"), *words, "--negative_ratio", "0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def desk(trained, tmp_path):
    """A copy of it as the current folder."""
    return Path(shutil.copytree(trained, tmp_path, dirs_exist_ok=True))


def test_both_files_are_written_and_predict(run_door, desk):
    done = run_door("export.py")
    assert (done.returncode, done.stderr) == (0, SPLIT + KEPT)
    head, *rows = done.stdout.splitlines()
    assert head.split()[:2] == ["pipeline", "kB"]
    assert [row.split()[:2] for row in rows] == [["mfcc", "fp32"], ["mfcc", "int8"]]
    assert [row.split()[-1] for row in rows] == [
        str(Path("models/mfcc_classifier") / name) for name in ("model.onnx", "model_int8.onnx")
    ]
    sizes = [(desk / row.split()[-1]).stat().st_size for row in rows]
    assert sizes[1] < sizes[0] / 2
    assert "agreement" in rows[1]
    for precision in ("fp32", "int8"):
        words = ["recordings/7_speaker0_0.wav", "--model_dir", "models", "--precision", precision, "--json"]
        answer = json.loads(run_door("inference.py", *words).stdout)
        assert answer["predicted_digit"] == 7
        assert ("int8" in answer["model"]) == (precision == "int8")
    inspected = json.loads(run_door("inspect_model.py", "models/mfcc_classifier/model_int8.onnx", "--json").stdout)
    assert inspected["intact"]
    assert inspected["metadata"]["precision"] == "int8"
    assert inspected["graph"]["int8_multiply_adds"] > 0
    assert inspected["graph"]["numbers"]["int8"] > 100_000


def test_recordings_that_moved_are_named(run_door, desk):
    os.rename(desk / "recordings", desk / "moved")
    done = run_door("export.py", CHECKPOINT, "--precision", "fp32")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {CHECKPOINT}: --data_dir is recordings, where nothing is: ")
    done = run_door("export.py", CHECKPOINT, "--precision", "fp32", "--data-dir", "moved")
    assert (done.returncode, done.stderr) == (0, SPLIT.replace("recordings", "moved", 1) + KEPT)
    (desk / "moved" / "3_speaker0_0.wav").unlink()
    done = run_door("export.py", CHECKPOINT, "--precision", "fp32", "--data-dir", "moved", "--output", "out")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    assert "trained on recordings of hash " in done.stderr
    assert not (desk / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ((), 1, "error: models holds no mfcc_classifier/best_model.pt: train first, or name a checkpoint"),
        (("--pipeline", "raw_cnn"), 1, "error: models holds no raw_cnn_classifier/best_model.pt: train first"),
        (
            ("--models_dir", "pretrained"),
            2,
            "error: 1 fault in settings: models_dir: pretrained are the models that ship",
        ),
        (("nothing.pt",), 1, "error: no checkpoint at nothing.pt: train first, or look at --models_dir"),
        (("notes.txt",), 1, "error: notes.txt is damaged or no checkpoint"),
        (("--precision", "int4"), 2, "export.py: argument --precision: invalid choice: 'int4'"),
        (("--precison", "int8"), 2, "export.py: unknown argument --precison, did you mean --precision?"),
    ],
)
def test_faults_are_one_line(run_door, tmp_path, words, code, line):
    (tmp_path / "notes.txt").write_text("no checkpoint")
    done = run_door("export.py", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == 1
