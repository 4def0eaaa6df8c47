"""Training of the acoustic model: what it learns, exact resume, export, the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from digit_detector.acoustic_file import BLANK, BLOCK, FIRST_DIGIT, acoustic_metadata
from digit_detector.errors import CheckpointError, ConfigError, Interrupted
from digit_detector.streaming.acoustic import AcousticSession
from ml_training import train_live as command
from ml_training.acoustic import train as module
from ml_training.acoustic.dataset import AcousticData, Source, draw_utterance, load_acoustic_data
from ml_training.acoustic.export import export_acoustic
from ml_training.acoustic.model import AcousticModel
from ml_training.acoustic.scene import AcousticScene
from ml_training.acoustic.train import AcousticConfig, AcousticTask, read_config, train_acoustic
from ml_training.training.checkpoint import load_checkpoint

from .conftest import SOURCES
from .test_dataset import NOISES, PLAIN

TINY = AcousticConfig(SOURCES, steps=6, batch_seconds=10.0, channels=16)


def test_blocks_give_what_the_whole_stream_gives() -> None:
    torch.manual_seed(0)
    model = AcousticModel(24).eval()
    sound = 0.1 * torch.randn(3, 40 * BLOCK)
    whole, state, parts = model(sound), model.initial_state(3), []
    with torch.no_grad():
        for size in (1, 7, 2, 30):
            part, sound = sound[:, : size * BLOCK], sound[:, size * BLOCK :]
            output, state = model.step(part, state)
            parts.append(output)
    for name in ("logits", "speech"):
        assert torch.allclose(torch.cat([getattr(part, name) for part in parts], 1), getattr(whole, name), atol=1e-5)


def test_a_trained_model_hears_digits_in_its_file(corpora: Path, tmp_path: Path) -> None:
    two_words = Source("words", "words", 1.0, include=("3_*", "7_*"))
    acoustic_data = load_acoustic_data(corpora, [two_words])
    scene = replace(PLAIN, snr_db=(25.0, 40.0), output_peak_dbfs=(-20.0, -3.0))
    config = replace(TINY, steps=200, batch_seconds=16.0, channels=32, learning_rate=1e-2, mask=(0, 0), scene=scene)
    model = train_acoustic(AcousticTask(acoustic_data, NOISES, config), tmp_path)
    rng = np.random.default_rng(5)
    file = tmp_path / "acoustic.onnx"
    noise = rng.standard_normal(20 * BLOCK).astype(np.float32) * np.float32(0.01)
    export_acoustic(model, file, acoustic_metadata("tiny", "tiny", 200, 0), noise)
    session, right, total = AcousticSession(file), 0, 0
    for samples, tokens in (draw_utterance(acoustic_data, rng, 30_000) for _ in range(20)):
        sound = np.pad(0.2 * samples, (800, 4000))
        state, last, found, active = session.initial_state()[None], BLANK, [], []
        for block in sound[: len(sound) // BLOCK * BLOCK].astype(np.float32).reshape(-1, 1, BLOCK):
            posteriors, speech, state = session(block, state)
            best = int(posteriors[0].argmax())
            found += [best] if best not in (BLANK, last) else []
            last = best
            active.append(float(speech[0]))
        assert np.mean(active[4:-12]) > np.mean(active[-4:])
        right += sum(token in found for token in tokens)
        total += len(tokens)
        assert all(token in (FIRST_DIGIT + 3, FIRST_DIGIT + 7) for token in found)
    assert right / total > 0.7


def test_noise_alone_has_no_tokens(acoustic_data: AcousticData) -> None:
    torch.manual_seed(0)
    batch = AcousticTask(acoustic_data, NOISES, replace(TINY, scene=AcousticScene(noise_only_probability=1.0))).batch(0)
    assert not batch.tokens.numel()
    assert not batch.lengths.any()
    assert not batch.speech.any()


class StopAfter:
    """Stops a training at a step."""

    def __init__(self, step: int) -> None:
        self.checks, self.step = -1, step

    @property
    def signum(self) -> int | None:
        self.checks += 1
        return signal.SIGTERM if self.checks >= self.step else None


def equal(a: AcousticModel, b: AcousticModel) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_training_that_was_stopped_ends_with_the_same_weights(acoustic_data: AcousticData, tmp_path: Path) -> None:
    task = AcousticTask(acoustic_data, NOISES, TINY)
    whole = train_acoustic(task, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train_acoustic(task, tmp_path / "parts", stop=StopAfter(3))
    assert equal(whole, train_acoustic(task, tmp_path / "parts"))
    assert equal(whole, train_acoustic(task, tmp_path / "parts"))  # nothing is left to train
    with pytest.raises(CheckpointError, match="seed was 0, is 1"):
        train_acoustic(AcousticTask(acoustic_data, NOISES, replace(TINY, seed=1)), tmp_path / "parts")
    with pytest.raises(CheckpointError, match="hash of data"):
        train_acoustic(AcousticTask(replace(acoustic_data, data_hash="other"), NOISES, TINY), tmp_path / "parts")
    (tmp_path / "parts" / "checkpoint_epoch_001.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="damaged"):
        train_acoustic(task, tmp_path / "parts")


def write_config(folder: Path, **changes: object) -> Path:
    values = {"sources": [asdict(source) for source in SOURCES], "steps": 2, "batch_seconds": 10.0, "channels": 16}
    for source in values["sources"]:
        del source["hold_out"]
    file = folder / "live.json"
    file.write_text(json.dumps(values | changes))
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: expected a number from 1 on, got 0"),
        ({"sources": None}, "list of sources"),
        ({"stepz": 1}, "stepz"),
        ({"sources": [{"folder": "x", "kind": "words"}]}, "share"),
        ({"scene": {"snr": [0, 1]}}, "snr"),
    ],
)
def test_faults_of_a_configuration_are_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(write_config(tmp_path, **changes))


def test_the_configuration_that_ships_is_valid() -> None:
    config = read_config(command.CONFIG, hold_out=("3",), seed=7)
    assert (config.seed, config.sources[0].hold_out) == (7, ("3",))
    assert sum(source.share for source in config.sources) == pytest.approx(1.0)


def test_the_command_trains_and_exports(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EPOCH", 1)
    out, words = tmp_path / "acoustic.onnx", ["--config", str(write_config(tmp_path)), "--corpora_dir", str(corpora)]
    assert command.main([*words, "--work", str(tmp_path / "work"), "--out", str(out)]) == 0
    metadata = AcousticSession(out).metadata
    assert (metadata["steps"], metadata["data"]) == ("2", "words + strings")
    assert "step 2 of 2" in capsys.readouterr().err
    for fault in (["--out", "."], ["--work", str(out)], ["--steps", "0"], ["--config", "nowhere.json"]):
        assert command.main([*words, *fault]) == 2
        assert fault[0][2:] in (printed := capsys.readouterr().err) or fault[1] in printed
    for seed in ("1", "2"):
        file = str(tmp_path / f"{seed}.onnx")
        assert command.main([*words, "--seed", seed, "--work", str(tmp_path / seed), "--out", file]) == 0
    one, two = str(tmp_path / "1.onnx"), str(tmp_path / "2.onnx")
    assert command.main(["--average", one, two, "--out", str(tmp_path / "mean.onnx")]) == 0
    weights = [
        {each.name: numpy_helper.to_array(each) for each in onnx.load(tmp_path / f"{name}.onnx").graph.initializer}
        for name in ("1", "2", "mean")
    ]
    assert all(np.allclose(a / 2 + b / 2, mean) for a, b, mean in zip(*map(dict.values, weights), strict=True))
    assert any(not np.array_equal(a, mean) for a, mean in zip(weights[0].values(), weights[2].values(), strict=True))
    assert AcousticSession(tmp_path / "mean.onnx").metadata["seed"] == "2"
    capsys.readouterr()
    assert command.main(["--average", one, "--out", str(tmp_path / "mean.onnx")]) == 2
    assert "two files" in capsys.readouterr().err
    assert command.main(["--write_texts", str(tmp_path / "texts.tsv")]) == 0
    assert (tmp_path / "texts.tsv").stat().st_size > 10_000


@pytest.mark.slow
def test_a_killed_command_resumes_to_the_same_bits(corpora: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=110)

    def start(name: str) -> subprocess.Popen[str]:
        words = ["--config", str(config), "--corpora_dir", str(corpora), "--work", str(tmp_path / name)]
        program = [sys.executable, "-m", "ml_training.train_live", *words, "--out", str(tmp_path / f"{name}.onnx")]
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
