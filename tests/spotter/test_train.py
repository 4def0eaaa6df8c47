"""Training of the spotter: what it learns, exact resume, the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from digit_detector.errors import CheckpointError, Interrupted
from digit_detector.spotter_file import BLOCK, HOP, spotter_metadata
from digit_detector.streaming.spotter import load_spotter
from ml_training import train_spotter as command
from ml_training.spotter.dataset import SAMPLES, AcousticScene, SpotterData, join_words
from ml_training.spotter.export import export_spotter
from ml_training.spotter.model import Spotter
from ml_training.spotter.targets import frame_targets
from ml_training.spotter.train import Batch, SpotterConfig, SpotterTask, train_spotter
from ml_training.training.checkpoint import load_checkpoint

CLEAN = AcousticScene(snr_db=(20.0, 40.0), noise_only_probability=0.05, peak_dbfs=(-20.0, -3.0))
TINY = ["--dataset", "synthetic", "--voices", "1", "--variants", "1", "--batch_size", "2"]


def test_a_trained_spotter_spots_digits_in_a_stream(spotter_data: SpotterData, tmp_path: Path) -> None:
    digits, fillers = spotter_data.digits[:1], spotter_data.fillers[1:]  # without synthetic digits
    data = replace(spotter_data, digits=digits, fillers=fillers, tts_utterances=[])
    model = train_spotter(SpotterTask(data, SpotterConfig(steps=120, batch_size=4, scene=CLEAN)), tmp_path)
    file = tmp_path / "spotter.onnx"
    export_spotter(model, file, spotter_metadata("tiny", "tiny", 120, 0), np.zeros(8 * BLOCK, dtype=np.float32))
    spotter, rng = load_spotter(file), np.random.default_rng(5)
    recalled, false = [], []
    for utterance in (join_words(data, rng) for _ in range(12)):
        states = [spotter.initial_state()]
        blocks = (0.2 * utterance.samples).reshape(-1, 1, BLOCK)
        posteriors = np.concatenate([spotter(block, states)[0][0] for block in blocks])  # (F, 10)
        classes, _ = frame_targets(utterance.digits, SAMPLES // HOP)
        digit = (classes >= 0) & (classes < 10)
        recalled += (posteriors.argmax(axis=1) == classes)[digit].tolist()
        false += (posteriors.max(axis=1) > 0.5)[classes == 10].tolist()
    assert np.mean(recalled) > 0.75
    assert np.mean(false) < 0.05


def batch_of(data: SpotterData, seed: int = 0, **settings: float) -> Batch:
    torch.manual_seed(seed)
    scene = replace(CLEAN, noise_only_probability=settings.pop("noise_only", 0.0))
    return SpotterTask(data, replace(SpotterConfig(batch_size=3, scene=scene), **settings)).batch(0)


def test_noise_alone_has_no_target(spotter_data: SpotterData) -> None:
    assert (batch_of(spotter_data, noise_only=1.0)[1] == 10).all()
    sentences = replace(spotter_data, tts_utterances=[u for u in spotter_data.tts_utterances if not u.digits])
    assert (batch_of(sentences, tts_ratio=1.0)[1] == 10).all()
    assert (batch_of(replace(spotter_data, tts_utterances=[]), tts_ratio=1.0)[1] < 10).any()  # joined words instead


class StopAfter:
    """Stops a training at a step."""

    def __init__(self, step: int) -> None:
        self.checks, self.step = -1, step

    @property
    def signum(self) -> int | None:
        self.checks += 1
        return signal.SIGTERM if self.checks >= self.step else None


def equal(a: Spotter, b: Spotter) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_training_that_was_stopped_ends_with_the_same_weights(spotter_data: SpotterData, tmp_path: Path) -> None:
    task = SpotterTask(spotter_data, SpotterConfig(steps=6, batch_size=2))
    whole = train_spotter(task, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train_spotter(task, tmp_path / "parts", stop=StopAfter(3))
    assert equal(whole, train_spotter(task, tmp_path / "parts"))
    assert equal(whole, train_spotter(task, tmp_path / "parts"))  # nothing is left to train
    with pytest.raises(CheckpointError, match="seed was 0, is 1"):
        train_spotter(SpotterTask(spotter_data, replace(task.config, seed=1)), tmp_path / "parts")
    with pytest.raises(CheckpointError, match="hash of data"):
        train_spotter(SpotterTask(replace(spotter_data, data_hash="other"), task.config), tmp_path / "parts")
    (tmp_path / "parts" / "checkpoint_epoch_001.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="damaged"):
        train_spotter(task, tmp_path / "parts")
    torch.save({"identity": "0.1"}, tmp_path / "whole" / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="another --work"):
        train_spotter(task, tmp_path / "whole")


@pytest.mark.parametrize("words", [["--out", "."], ["--work", "file"], ["--voices", "0"], ["--threads", "0"]])
def test_faults_are_reported_before_training(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert command.main(["--dataset", "synthetic", *words]) == 2
    assert f"{words[0][2:]}: " in capsys.readouterr().err


def test_the_command_trains_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "spotter.onnx"
    assert command.main([*TINY, "--steps", "2", "--work", str(tmp_path / "work"), "--out", str(out)]) == 0
    session = onnxruntime.InferenceSession(out.read_bytes())
    assert session.get_modelmeta().custom_metadata_map["steps"] == "2"
    assert [value.name for value in session.get_inputs()] == ["sound", "state", "earlier"]
    assert [value.name for value in session.get_outputs()] == ["probabilities", "durations", "state_after", "taken"]
    assert "step 2 of 2" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_command_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[str]:
        words = [*TINY, "--steps", "110", "--work", str(tmp_path / name), "--out", str(tmp_path / f"{name}.onnx")]
        program = [sys.executable, "-m", "ml_training.train_spotter", *words]
        return subprocess.Popen(program, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)

    killed = start("killed")
    while killed.poll() is None and not (tmp_path / "killed" / "checkpoint_epoch_001.pt").exists():
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "killed.onnx").exists()
    for name in ("killed", "whole"):
        process = start(name)
        printed = process.communicate()[1]
        assert process.returncode == 0, printed
        assert ("resuming" in printed) == (name == "killed")
    one, other = (load_checkpoint(tmp_path / name / "best_model.pt")["weights"] for name in ("killed", "whole"))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
