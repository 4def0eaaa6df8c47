"""Training of the spotter: what it learns, exact resume, the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from digit_detector.errors import CheckpointError, Interrupted
from digit_detector.spotter_file import BLOCK, FRAMES, HOP, spotter_metadata
from digit_detector.streaming.spotter import load_spotter
from ml_training import train_spotter as command
from ml_training.spotter.dataset import SAMPLES, AcousticScene, SpotterData, join_words
from ml_training.spotter.export import export_spotter
from ml_training.spotter.targets import frame_targets
from ml_training.spotter.train import Report, SpotterConfig, make_batch, train_spotter

CLEAN = AcousticScene(snr_db=(20.0, 40.0), noise_only_probability=0.05, peak_dbfs=(-20.0, -3.0))


def test_a_trained_spotter_spots_digits_in_a_stream(spotter_data: SpotterData, tmp_path: Path) -> None:
    digits, fillers = spotter_data.digits[:1], spotter_data.fillers[1:]  # without synthetic digits
    data = replace(spotter_data, digits=digits, fillers=fillers, tts_utterances=[])
    reports: list[Report] = []
    model = train_spotter(data, SpotterConfig(steps=120, batch_size=4), tmp_path, reports.append, CLEAN)
    assert reports[-1].loss < 1.5
    file = tmp_path / "spotter.onnx"
    export_spotter(model, file, spotter_metadata("tiny", "tiny", 120, 0), np.zeros(8 * BLOCK, dtype=np.float32))
    spotter, rng = load_spotter(file), np.random.default_rng(5)
    recalled, false = [], []
    for utterance in (join_words(data, rng) for _ in range(12)):
        states = [spotter.initial_state()]
        sound = (0.2 * utterance.samples).reshape(-1, 1, BLOCK)
        posteriors = np.concatenate([spotter(block, states)[0][0] for block in sound])  # (F, 10)
        classes, _ = frame_targets(utterance.digits, SAMPLES // HOP)
        digit = (classes >= 0) & (classes < 10)
        recalled += (posteriors.argmax(axis=1) == classes)[digit].tolist()
        false += (posteriors.max(axis=1) > 0.5)[classes == 10].tolist()
    assert np.mean(recalled) > 0.75
    assert np.mean(false) < 0.05


def test_a_batch_follows_from_its_seed(spotter_data: SpotterData) -> None:
    config = SpotterConfig(batch_size=3)
    a, b, c = (make_batch(spotter_data, config, AcousticScene(), np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])
    sound, classes, log_durations = a
    assert sound.shape == (3, SAMPLES)
    assert classes.shape == log_durations.shape == (3, SAMPLES // HOP)
    assert SAMPLES % (HOP * FRAMES) == 0


def test_noise_alone_has_no_target(spotter_data: SpotterData) -> None:
    noise = replace(CLEAN, noise_only_probability=1.0)
    _, classes, _ = make_batch(spotter_data, SpotterConfig(batch_size=8), noise, np.random.default_rng(0))
    assert (classes == 10).all()
    config, always = SpotterConfig(batch_size=8, tts_share=1.0), replace(CLEAN, noise_only_probability=0.0)
    _, classes, _ = make_batch(replace(spotter_data, tts_utterances=[]), config, always, np.random.default_rng(0))
    assert (classes < 10).any()  # joined words where nothing is synthesised


class StopAfter:
    """Stops a training at the given look."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    @property
    def signum(self) -> int | None:
        self.looks -= 1
        return 2 if self.looks <= 0 else None


def test_a_training_that_was_stopped_ends_with_the_same_weights(spotter_data: SpotterData, tmp_path: Path) -> None:
    config, reports = SpotterConfig(steps=6, batch_size=2), list[Report]()
    whole = train_spotter(spotter_data, config, tmp_path / "whole", lambda report: None)
    with pytest.raises(Interrupted):
        train_spotter(spotter_data, config, tmp_path / "parts", reports.append, stop=StopAfter(3))
    assert reports[-1].step == 3
    parts = train_spotter(spotter_data, config, tmp_path / "parts", reports.append)
    assert reports[-1].step == 6
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name


def test_checkpoints_of_other_settings_and_damaged_ones_are_refused(spotter_data: SpotterData, tmp_path: Path) -> None:
    config = SpotterConfig(steps=1, batch_size=2)
    train_spotter(spotter_data, config, tmp_path, lambda report: None)
    with pytest.raises(CheckpointError, match="other settings"):
        train_spotter(spotter_data, replace(config, seed=1), tmp_path, lambda report: None)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="damaged"):
        train_spotter(spotter_data, config, tmp_path, lambda report: None)


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
    words = ["--dataset", "synthetic", "--voices", "1", "--variants", "1", "--steps", "2", "--batch_size", "2"]
    assert command.main([*words, "--work", str(tmp_path / "work"), "--out", str(out)]) == 0
    session = onnxruntime.InferenceSession(out.read_bytes())
    assert session.get_modelmeta().custom_metadata_map["steps"] == "2"
    assert [value.name for value in session.get_inputs()] == ["sound", "state", "earlier"]
    assert [value.name for value in session.get_outputs()] == ["probabilities", "durations", "state_after", "taken"]
    assert "step 2 of 2" in capsys.readouterr().err
