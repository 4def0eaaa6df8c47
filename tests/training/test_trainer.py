"""The training loop: same bits twice, exact resume, rollback, stopping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from digit_detector.errors import CheckpointError, ConfigError, Interrupted, TrainingError
from ml_training.training.checkpoint import BEST, INTERRUPTED, CheckpointStore, RunIdentity, load_checkpoint
from ml_training.training.task import Task
from ml_training.training.trainer import NullCallback, Trainer, TrainerOptions, Training


def same_weights(first: Training, second: Training) -> bool:
    return first.best_weights.keys() == second.best_weights.keys() and all(
        torch.equal(first.best_weights[name], second.best_weights[name]) for name in first.best_weights
    )


def curve(training: Training) -> list[tuple[float, ...]]:
    """The history without its times."""
    return [tuple(vars(replace(record, seconds=0.0)).values()) for record in training.history]


@dataclass
class StopAfter:
    """Asks to stop after a number of checks: one before each step."""

    checks: int

    @property
    def signum(self) -> int | None:
        self.checks -= 1
        return signal.SIGTERM if self.checks < 0 else None


class Notes(NullCallback):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_it_learns_and_keeps_the_best_epoch(tiny: ModuleType) -> None:
    training = tiny.train(tiny.config(epochs=12))
    losses = [record.validation_loss for record in training.history]
    assert training.history[-1].validation_accuracy == 1.0
    assert losses[-1] < 0.7 < losses[0]  # 0.5 is what smoothing leaves
    assert [record.epoch for record in training.history] == list(range(1, 13))
    assert training.stopped == "all epochs done"
    best = min(training.history, key=lambda r: (r.validation_loss, -r.validation_accuracy))
    assert training.best_epoch == best.epoch


def test_one_seed_gives_the_same_bits_twice_and_another_does_not(tiny: ModuleType) -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    first, second, other = (tiny.train(tiny.config(seed=seed)) for seed in (3, 3, 4))
    assert same_weights(first, second)
    assert curve(first) == curve(second)
    assert not same_weights(first, other)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({"scheduler": "cosine", "optimizer": "adam"}, 0),
        ({"scheduler": "step"}, 0),
        ({"scheduler": "plateau"}, 0),
        ({"negative_ratio": 0.25}, 30),
    ],
)
def test_stopped_in_mid_epoch_and_resumed_gives_the_same_bits(
    tiny: ModuleType, tmp_path: Path, changes: dict[str, Any], others: int
) -> None:
    config = tiny.config(**changes)
    whole = tiny.train(config, others=others)
    with pytest.raises(Interrupted):
        tiny.train(config, tmp_path, others=others, stop=StopAfter(8))
    assert load_checkpoint(tmp_path / INTERRUPTED)["step"] == 3
    resumed = tiny.train(replace(config, resume="latest"), tmp_path, others=others)
    assert same_weights(whole, resumed)
    assert curve(whole) == curve(resumed)
    assert not (tmp_path / INTERRUPTED).exists()


def test_stopped_before_the_first_step_or_between_epochs(tiny: ModuleType, tmp_path: Path) -> None:
    whole = tiny.train(tiny.config())
    for checks in (0, 5, 10):
        with pytest.raises(Interrupted):
            tiny.train(tiny.config(resume="latest"), tmp_path, stop=StopAfter(checks))
    assert same_weights(whole, tiny.train(tiny.config(resume="latest"), tmp_path))


def tiny_process(tiny: ModuleType, folder: Path, action: str) -> subprocess.CompletedProcess[str]:
    """A training that gets a signal, or a full disk, after step 2 of epoch 3."""
    assert tiny.__file__
    command = [sys.executable, tiny.__file__, str(folder), action, "3", "2"]
    root = Path(tiny.__file__).parents[2]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
@pytest.mark.parametrize(("action", "code"), [("SIGKILL", -9), ("SIGTERM", 143)])
def test_a_process_ended_by_a_signal_in_mid_epoch_resumes_to_the_same_bits(
    tiny: ModuleType, tmp_path: Path, action: str, code: int
) -> None:
    assert tiny_process(tiny, tmp_path, action).returncode == code
    assert (tmp_path / INTERRUPTED).exists() == (action != "SIGKILL")
    resumed, whole = tiny.train(tiny.config(resume="latest"), tmp_path), tiny.train(tiny.config())
    assert same_weights(whole, resumed)
    assert curve(whole) == curve(resumed)


@pytest.mark.skipif(os.name == "nt", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_is_a_clear_error_and_the_last_checkpoint_stays(tiny: ModuleType, tmp_path: Path) -> None:
    ended = tiny_process(tiny, tmp_path, "full_disk")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "cannot write checkpoint" in line
    assert "checkpoint_epoch_002.pt, --resume" in line
    names = [BEST, "checkpoint_epoch_001.pt", "checkpoint_epoch_002.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert same_weights(tiny.train(tiny.config()), tiny.train(tiny.config(resume="latest"), tmp_path))


def test_a_finished_run_returns_what_it_had_and_writes_a_missing_best_model(tiny: ModuleType, tmp_path: Path) -> None:
    first, again = Notes(), Notes()
    whole = tiny.train(tiny.config(resume="latest"), tmp_path, callback=first)
    assert first.lines == [f"nothing to resume in {tmp_path}: starting a new training"]
    (tmp_path / BEST).unlink()
    resumed = tiny.train(tiny.config(resume="latest"), tmp_path, callback=again)
    assert again.lines == ["already finished after epoch 4 (all epochs done): nothing left to train"]
    assert same_weights(whole, resumed)
    assert resumed.history == whole.history
    best = load_checkpoint(tmp_path / BEST)
    assert best["epoch"] == whole.best_epoch
    assert all(torch.equal(best["weights"][name], value) for name, value in whole.best_weights.items())


def test_checkpoints_of_another_network_or_of_version_0_1_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.train(tiny.config(), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit"):
        tiny.train(tiny.config(resume="latest"), tmp_path, build=lambda: torch.nn.Linear(8000, 10))
    path = tmp_path / "checkpoint_epoch_004.pt"
    content = load_checkpoint(path)
    state = content["state"]
    state["right"], state["progress"]["at_once"] = state.pop("counts")[0], state["progress"].pop("micro_batch")
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="without --resume"):
        tiny.train(tiny.config(resume="latest"), tmp_path)


def test_nan_goes_back_one_epoch_with_half_the_rate(tiny: ModuleType) -> None:
    notes, plain = Notes(), tiny.train(tiny.config())
    training = tiny.train(tiny.config(), build=lambda: tiny.DivergingModel((3, 2, 0)), callback=notes)
    (line,) = notes.lines
    assert "nan in epoch 3, step 3" in line
    assert "back to the end of epoch 2" in line
    assert curve(training)[:2] == curve(plain)[:2]
    assert [r.learning_rate for r in training.history[2:]] == [r.learning_rate / 2 for r in plain.history[2:]]


def test_a_run_that_rolled_back_resumes_to_the_same_bits(tiny: ModuleType, tmp_path: Path) -> None:
    bad = [(2, 1, 0), (2, 4, 1), (4, 0, 2)]
    whole = tiny.train(tiny.config(), build=lambda: tiny.DivergingModel(*bad))
    # Checks: 5 in epoch 1, then 2 and 5 until the loss is bad, then the third attempt.
    with pytest.raises(Interrupted):
        tiny.train(tiny.config(), tmp_path, build=lambda: tiny.DivergingModel(*bad), stop=StopAfter(15))
    progress = load_checkpoint(tmp_path / INTERRUPTED)["state"]["progress"]
    assert (progress["rollbacks"], progress["step"]) == (2, 3)
    resumed = tiny.train(tiny.config(resume="latest"), tmp_path, build=lambda: tiny.DivergingModel(*bad))
    assert same_weights(whole, resumed)
    assert curve(whole) == curve(resumed)


def test_nan_four_times_is_a_clear_error(tiny: ModuleType, tmp_path: Path) -> None:
    bad, notes = [(2, 1, attempt) for attempt in range(4)], Notes()
    with pytest.raises(TrainingError, match="nan in epoch 2, step 2"):
        tiny.train(tiny.config(), tmp_path, build=lambda: tiny.DivergingModel(*bad), callback=notes)
    assert len(notes.lines) == 3
    assert load_checkpoint(tmp_path / "checkpoint_epoch_001.pt")["epoch"] == 1


def test_early_stopping_and_the_plateau_schedule_follow_the_validation_loss(tiny: ModuleType) -> None:
    # Wrong labels: what is learnt makes validation worse.
    validation = tiny.bursts(40, seed=1)
    validation = replace(validation, labels=(validation.labels + 1) % 10)

    def train(**changes: Any) -> Training:
        torch.manual_seed(0)
        training: Training = tiny.train_model(tiny.TinyModel(), tiny.bursts(81), validation, tiny.config(**changes))
        return training

    stopped = train(epochs=60, patience=3, scheduler="step")
    assert stopped.stopped == "no better validation loss for 3 epochs"
    assert len(stopped.history) == stopped.best_epoch + 3 < 60
    plateau = train(epochs=16, patience=0, scheduler="plateau")
    rates = [record.learning_rate for record in plateau.history]
    assert plateau.stopped == "all epochs done"
    assert rates[0] == 0.01
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] in (0.005, 0.0025)


@pytest.mark.parametrize(("clips", "steps"), [(81, 5), (82, 6)])
def test_a_last_batch_of_one_clip_is_left_out_and_any_other_kept(tiny: ModuleType, clips: int, steps: int) -> None:
    seen: list[tuple[int, int]] = []

    class Steps(NullCallback):
        def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float, rate: float) -> None:
            seen.append((step, steps))

    tiny.train_model(tiny.TinyModel(), tiny.bursts(clips), tiny.bursts(20), tiny.config(epochs=1), callback=Steps())
    assert seen == [(step, steps) for step in range(1, steps + 1)]


@pytest.mark.parametrize(("digits", "others", "validated"), [(1, 0, 20), (20, 0, 0), (1, 20, 0)])
def test_too_few_clips_are_refused(tiny: ModuleType, digits: int, others: int, validated: int) -> None:
    train = tiny.both(digits, others) if others else tiny.bursts(digits)
    validation = tiny.bursts(validated) if validated else tiny.hisses(others)
    with pytest.raises(TrainingError, match=f"got {digits} and {validated}"):
        tiny.train_model(tiny.TinyModel(), train, validation, tiny.config())


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_averaged_weights_are_kept_or_without_averaging_the_weights_themselves(
    tiny: ModuleType, decay: float
) -> None:
    model = tiny.TinyModel()
    training = tiny.train(tiny.config(ema_decay=decay, epochs=8, patience=0), build=lambda: model)
    assert training.best_epoch == 8
    name = "layers.1.weight"
    assert torch.equal(training.best_weights[name], model.state_dict()[name]) == (decay == 0.0)
    assert int(training.best_weights["layers.0.num_batches_tracked"]) == 40


@pytest.mark.parametrize(
    ("change", "same"),
    [({"clip_norm": 0.01}, False), ({"label_smoothing": 0.0}, False), ({"weight_decay": 0.5}, False),
     ({"augmentation": {"mixup_probability": 1.0}}, False), ({"augmentation": {"cutmix_probability": 1.0}}, False),
     ({"clip_norm": 0.0}, True)],
)  # fmt: skip
def test_settings_reach_the_weights(tiny: ModuleType, change: dict[str, Any], same: bool) -> None:
    plain = tiny.train(tiny.config(epochs=1, clip_norm=1e6))
    assert same_weights(plain, tiny.train(tiny.config(**{"epochs": 1, "clip_norm": 1e6, **change}))) == same


def test_bfloat16_trains_on_a_cpu_and_fp16_is_refused(tiny: ModuleType) -> None:
    training = tiny.train(tiny.config(epochs=8, precision="bf16"))
    assert training.history[-1].validation_accuracy > 0.5
    assert {w.dtype for w in training.best_weights.values() if w.is_floating_point()} == {torch.float32}
    with pytest.raises(ConfigError, match="fp16"):
        tiny.train(tiny.config(precision="fp16"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_mixed_precision_on_cuda_stops_and_resumes(tiny: ModuleType, tmp_path: Path) -> None:
    config = tiny.config(device="cuda", epochs=8)
    with pytest.raises(Interrupted):
        tiny.train(config, tmp_path, stop=StopAfter(8))
    resumed = tiny.train(replace(config, resume="latest"), tmp_path)
    assert resumed.history[-1].validation_accuracy > 0.9


class Regression(Task):
    """Fits a line to points made anew for each step; no validation."""

    def batch(self, step: int) -> torch.Tensor:
        return torch.randn(8, 1)

    def forward(self, network: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = network(batch)
        return outputs

    def loss(self, outputs: torch.Tensor, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        errors = (outputs - 3.0 * batch).abs()
        return errors.square().mean(), torch.tensor([int((errors < 0.5).sum()), len(batch)])


def test_another_task_without_validation_and_with_a_shorter_last_epoch(tmp_path: Path) -> None:
    def train(stop: StopAfter | None = None, folder: str = "whole") -> Training:
        torch.manual_seed(0)
        options = TrainerOptions(3, 40, 0.1, total_steps=100, clip_norm=0.0, ema_decay=0.9, resume="latest")
        store = CheckpointStore(tmp_path / folder, RunIdentity("line", {"steps": 100}, "none"))
        return Trainer(torch.nn.Linear(1, 1), Regression(), options, store=store, stop=stop).run()

    whole = train()
    assert whole.best_epoch == len(whole.history) == 3
    assert whole.history[-1].train_accuracy == 1.0
    assert float(whole.best_weights["weight"]) == pytest.approx(3.0, abs=0.1)
    with pytest.raises(Interrupted):
        train(StopAfter(95), "stopped")
    assert load_checkpoint(tmp_path / "stopped" / INTERRUPTED)["step"] == 15
    assert same_weights(whole, train(folder="stopped"))
