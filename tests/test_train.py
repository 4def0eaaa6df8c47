"""train.py: flags, settings, errors in one line, and runs that a signal cuts short."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ml_training
from digit_detector.classifier import load_classifier
from ml_training import train
from ml_training.training.checkpoint import load_checkpoint

SCRIPT = Path(ml_training.__file__).with_name("train.py")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """140 files named like FSDD's: each digit a chord of its own, two speakers, recordings 0 to 6."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    time = np.arange(4000) / 8000
    for digit in range(10):
        for speaker in ("ann", "ben"):
            for index in range(7):
                pitch = rng.uniform(0.97, 1.03) * (250 * 1.2**digit)
                tone = np.sin(2 * np.pi * pitch * time) * np.hanning(4000)
                noise = 0.01 * rng.standard_normal(4000)
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", 0.5 * tone + noise, 8000)
    return folder


def flags(recordings: Path, out: Path, *more: str) -> list[str]:
    return [
        "--dataset=folder", f"--data-dir={recordings}", f"--models_dir={out / 'models'}",
        "--log-dir", str(out / "logs"), "--pipeline", "mfcc", "--threads", "1", "--device", "cpu",
        "--synthetic_voices", "12", *more,
    ]  # fmt: skip


def run_script(*words: str, cwd: Path | None = None, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, str(SCRIPT), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_a_run_ends_with_a_table_and_the_report(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(flags(recordings, tmp_path, "--epochs", "3", "--keep-checkpoints=all")) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("pipeline "))
    assert lines[header].split("  ")[0] == "pipeline"
    assert re.match(r"mfcc +\d+ of 100 +[\d.]+ % +[\d.]+ to [\d.]+ +\d of 3 +\d+ s +\S+model\.onnx$", lines[header + 1])
    assert lines[-2] == f"report: {tmp_path / 'logs' / 'plots' / 'training_report.html'}"
    folder = tmp_path / "models" / "mfcc_classifier"
    assert sorted(p.name for p in folder.glob("checkpoint_*")) == [f"checkpoint_epoch_{i:03d}.pt" for i in (1, 2, 3)]
    assert (folder / "scaler.pkl").exists()
    assert load_classifier(tmp_path / "models", "mfcc").metadata["speech"] == "recordings"


def test_without_the_train_extra_the_error_names_it(tmp_path: Path) -> None:
    bare = run_script("--dataset", "synthetic", cwd=tmp_path, python=("-S",))  # -S: no installed packages
    assert bare.returncode == 1
    assert re.match(r"error: training \(torch, .*needs the \[train\] extra", bare.stderr)
    assert len(bare.stderr.splitlines()) == 1
    assert run_script("--help", cwd=tmp_path, python=("-S",)).returncode == 0


def test_the_resume_command_is_what_was_typed_and_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["digits train"])
    assert train.resume_command(["--epochs", "3"]) == "digits train --epochs 3 --resume"
    assert train.resume_command(["--resume", "12", "--log-dir", "a b"]) == "digits train --log-dir 'a b' --resume"
    monkeypatch.setattr(sys, "argv", ["ml_training/train.py"])
    words = shlex.split(train.resume_command(["--resume=3", "--seed", "4"]))
    assert words[1:] == ["ml_training/train.py", "--seed", "4", "--resume"]
    assert Path(words[0]).name.startswith("python")


def train_until(words: list[str], epoch_line: str, signum: int, cwd: Path) -> tuple[int, str]:
    """Start train.py and send a signal as soon as an epoch is printed; its exit code and later output."""
    command = [sys.executable, "-u", str(SCRIPT), *words]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if epoch_line in line:
                process.send_signal(signum)
                break
        rest = process.stdout.read()
    return process.returncode, rest


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_stopped_run_prints_the_command_that_resumes_it(
    recordings: Path, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    words = flags(recordings, tmp_path, "--epochs", "400", "--patience", "0", "--scheduler", "plateau")
    left, printed = train_until(words, "epoch   2/400", signum, tmp_path)
    assert left == code, printed
    assert "Traceback" not in printed
    command = printed.strip().splitlines()[-1].removeprefix("stopped; to go on: ")
    # The plateau schedule alone lets a run be made shorter, which keeps this test so.
    resume = shlex.split(command.replace("--epochs 400", "--epochs 4"))
    resumed = subprocess.run(resume, cwd=tmp_path, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at epoch" in resumed.stdout or "already finished" in resumed.stdout


def torchrun(*words: str, cwd: Path, python: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    start = ["-m", "torch.distributed.run", "--standalone", *python, "--nproc_per_node", "2", str(SCRIPT)]
    return subprocess.Popen(
        [sys.executable, *start, *words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.scale
@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_two_processes_are_stopped_and_resumed_with_the_printed_command(recordings: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun, which passes it on; then the command that our last line prints."""
    words = flags(recordings, tmp_path, "--epochs", "400", "--patience", "0", "--scheduler", "plateau")
    with torchrun(*words, cwd=tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "epoch   2/400" in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
    (command,) = re.findall("^stopped; to go on: (.*)$", rest, re.MULTILINE)
    assert "--standalone --nproc_per_node 2" in command
    resume = shlex.split(command.replace("--epochs 400", "--epochs 4"))
    resumed = subprocess.run(resume, cwd=tmp_path, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "2 processes train together" in resumed.stdout
    assert resumed.stdout.count("resuming at epoch") + resumed.stdout.count("already finished") == 1
    assert resumed.stdout.count("report: ") == 1
    assert len(list((tmp_path / "logs").glob("*.log"))) == 2, "one log a run"
    assert load_classifier(tmp_path / "models", "mfcc").predict(recordings / "7_ann_6.wav")


@pytest.mark.scale
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_processes_restarted_by_torchrun_resume(recordings: Path, tmp_path: Path) -> None:
    words = flags(recordings, tmp_path, "--epochs", "12", "--patience", "0")
    with torchrun(*words, cwd=tmp_path, python=("--max_restarts", "1")) as process:
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if "epoch  2/12" in line and "resuming" not in printed:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                os.kill(int(children[-1]), signal.SIGKILL)
    assert process.returncode == 0, printed
    assert len(re.findall("resuming at epoch", printed)) == 1
    assert "epoch 12/12" in printed


@pytest.mark.scale
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--epochs", "none"], "train.py: argument --epochs: invalid int value"),
        (["--dataset", "folder", "--data_dir", "nowhere"], "nowhere"),
        (["--compile", "--device", "cpu"], "compile: not supported with 2 processes"),
    ],
)
def test_an_error_of_all_processes_is_printed_once(tmp_path: Path, words: list[str], expected: str) -> None:
    with torchrun(*words, cwd=tmp_path) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
    assert process.returncode != 0
    assert printed.count(expected) == 1, printed


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("pipeline", ["mfcc", "mel_cnn", "raw_cnn"])
def test_a_killed_real_pipeline_resumes_to_the_same_bits(recordings: Path, tmp_path: Path, pipeline: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ["--pipeline", pipeline, "--epochs", "12", "--patience", "0", "--batch_size", "8"]
    assert run_script(*flags(recordings, whole, *more)).returncode == 0
    code, _ = train_until(flags(recordings, killed, *more), "epoch  2/12", signal.SIGKILL, tmp_path)
    assert code == -signal.SIGKILL
    folder = f"models/{pipeline}_classifier"
    assert not (killed / folder / "checkpoint_epoch_012.pt").exists()
    resumed = run_script(*flags(recordings, killed, *more, "--resume"))
    assert resumed.returncode == 0
    assert "resuming at epoch" in resumed.stdout
    ends = [load_checkpoint(out / folder / "checkpoint_epoch_012.pt")["state"] for out in (whole, killed)]
    for part in ("model", "averaged", "best"):
        assert ends[0][part].keys() == ends[1][part].keys()
        assert all(torch.equal(ends[0][part][name], ends[1][part][name]) for name in ends[0][part])
    answers = [(out / folder / "model.onnx").stat().st_size for out in (whole, killed)]
    assert answers[0] == answers[1]
