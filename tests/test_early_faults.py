"""Errors in arguments and data are reported before torch is loaded, which takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Runs a command as the console script does; prints which of the heavy modules are loaded at its end.
CODE = """
import sys
from ml_training import cli
try:
    code = cli.main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print([name for name in ("torch", "matplotlib", "scipy") if name in sys.modules])
sys.exit(code)
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    (folder / "empty").mkdir()
    (folder / "names").mkdir()
    (folder / "names" / "hello.wav").write_bytes(b"")
    (folder / "good" / "3").mkdir(parents=True)
    (folder / "good" / "3" / "x.wav").write_bytes(b"")
    (folder / "table.csv").write_text("name,age\nx,3\n", encoding="utf-8")
    (folder / "bad.json").write_text('{"epoch": 3, "seed": "x"}', encoding="utf-8")
    (folder / "space.json").write_text('{"learning_rat": [1, 2]}', encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("train --pipeline nosuch", 2, "got 'nosuch'"),
        ("train --nosuch 3", 2, "unknown argument --nosuch"),
        ("train --epochs 0", 2, "epochs: expected a number from 1"),
        ("train --config bad.json", 2, "2 faults in bad.json"),
        ("train --config missing.json", 2, "missing.json"),
        ("train --precision fp16 --device cpu", 2, "fp16 needs a CUDA device"),
        ("train --models_dir pretrained", 2, "models_dir: pretrained are the models that ship"),
        ("train --data_dir nowhere", 1, "--data_dir is nowhere, where nothing is"),
        ("train --data_dir empty", 1, "empty holds no recordings of digits (0 audio files)"),
        ("train --data_dir names", 1, "(1 audio files, first hello.wav: its name is not {digit}_{speaker}_{index})"),
        ("train --data_dir table.csv", 1, "table.csv begins with 'name,age': expected a header"),
        ("train --data_dir good --dataset fsdd", 1, "good is not FSDD"),
        ("train --dataset folder", 1, "dataset 'folder' needs a folder or table"),
        ("train --data_dir good --extra_digits_dir nowhere", 1, "nowhere is not a folder"),
        ("train --data_dir good --non_digit_dir good", 1, "non_digit_dir good holds no recordings of words"),
        ("train --data_dir good --augmentation.noise_dir empty", 1, "noise_dir empty holds no recordings"),
        ("train --data_dir good --models_dir bad.json", 2, "models_dir: "),
        ("train --data_dir good --log_dir bad.json/x", 2, "log_dir: "),
        ("train --cv 3 --data_dir empty", 1, "empty holds no recordings"),
        ("tune --pipeline mfcc --sampler nosuch", 2, "sampler: expected one of tpe, random, grid"),
        ("tune --space space.json --pipeline mfcc", 2, "learning_rat"),
        ("tune --pipeline mfcc --data_dir empty", 1, "empty holds no recordings"),
        ("evaluate --protocol nosuch", 2, "invalid choice"),
        ("evaluate --protocol unseen_speakers", 2, "needs a folder of labelled clips"),
        ("evaluate --protocol unseen_speakers --folder empty --models_dir empty", 1, "empty"),
        ("evaluate --protocol cv --data_dir empty", 1, "empty holds no recordings"),
        ("export --models_dir empty", 1, "empty holds no mfcc_classifier/best_model.pt"),
        ("export nowhere.pt", 1, "no checkpoint at nowhere.pt"),
        ("train-spotter --data_dir empty", 2, "see digits train-live"),
    ],
)  # fmt: skip
def test_faults_of_arguments_and_data_need_no_torch(desk: Path, words: str, code: int, message: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DIGIT_DATA_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words.split()],
        cwd=desk, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "[]\n"), done.stderr
    (line,) = done.stderr.splitlines()
    assert message in line
    names = ["bad.json", "empty", "good", "names", "space.json", "table.csv"]
    assert sorted(path.name for path in desk.iterdir()) == names
