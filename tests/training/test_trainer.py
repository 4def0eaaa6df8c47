"""The training loop: same bits twice, exact resume, rollback, stopping."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

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
    """Asks to stop when it has been looked at so many times: once before each step."""

    looks: int

    @property
    def signum(self) -> int | None:
        self.looks -= 1
        return signal.SIGTERM if self.looks < 0 else None


class Notes(NullCallback):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_it_learns(tiny: ModuleType) -> None:
    training = tiny.train(tiny.config(epochs=12))
    assert training.history[-1].validation_accuracy == 1.0
    assert (
        training.history[-1].validation_loss < 0.7 < training.history[0].validation_loss
    )  # 0.5 is what smoothing leaves
    assert [record.epoch for record in training.history] == list(range(1, 13))
    assert training.stopped == "all epochs done"
    best = min(training.history, key=lambda r: (r.validation_loss, -r.validation_accuracy))
    assert training.best_epoch == best.epoch


def test_one_seed_gives_the_same_bits_twice_and_another_does_not(tiny: ModuleType) -> None:
    first, second, other = (tiny.train(tiny.config(seed=seed)) for seed in (3, 3, 4))
    assert same_weights(first, second)
    assert curve(first) == curve(second)
    assert not same_weights(first, other)


@pytest.mark.parametrize("scheduler", ["cosine", "step", "plateau"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_stopped_in_mid_epoch_and_resumed_gives_the_same_bits(
    tiny: ModuleType, tmp_path: Path, scheduler: str, optimizer: str
) -> None:
    config = tiny.config(scheduler=scheduler, optimizer=optimizer)
    whole = tiny.train(config)
    with pytest.raises(Interrupted):
        tiny.train(config, tmp_path, stop=StopAfter(8))
    assert load_checkpoint(tmp_path / INTERRUPTED)["step"] == 3
    resumed = tiny.train(replace(config, resume="latest"), tmp_path)
    assert same_weights(whole, resumed)
    assert curve(whole) == curve(resumed)
    assert not (tmp_path / INTERRUPTED).exists()


def test_stopped_before_the_first_step_or_between_epochs(tiny: ModuleType, tmp_path: Path) -> None:
    whole = tiny.train(tiny.config())
    for looks in (0, 5, 10):
        with pytest.raises(Interrupted):
            tiny.train(tiny.config(resume="latest"), tmp_path, stop=StopAfter(looks))
    assert same_weights(whole, tiny.train(tiny.config(resume="latest"), tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
@pytest.mark.parametrize(("action", "code"), [("SIGKILL", -9), ("SIGINT", 130), ("SIGTERM", 143)])
def test_a_process_that_a_signal_ended_in_mid_epoch_resumes_to_the_same_bits(
    tiny: ModuleType, tmp_path: Path, action: str, code: int
) -> None:
    assert tiny_process(tiny, tmp_path, action, epoch=3, step=2).returncode == code
    assert (tmp_path / INTERRUPTED).exists() == (action != "SIGKILL")
    resumed = tiny.train(tiny.config(resume="latest"), tmp_path)
    whole = tiny.train(tiny.config())
    assert same_weights(whole, resumed)
    assert curve(whole) == curve(resumed)


@pytest.mark.skipif(os.name == "nt", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_is_a_clear_error_and_the_last_checkpoint_stays(tiny: ModuleType, tmp_path: Path) -> None:
    ended = tiny_process(tiny, tmp_path, "full_disk", epoch=3, step=2)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "cannot write checkpoint" in ended.stderr
    assert "--resume continues from it" in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        BEST, "checkpoint_epoch_001.pt", "checkpoint_epoch_002.pt",
    ]  # fmt: skip
    assert load_checkpoint(tmp_path / "checkpoint_epoch_002.pt")["epoch"] == 2
    assert load_checkpoint(tmp_path / BEST)["epoch"] == 2
    assert same_weights(tiny.train(tiny.config()), tiny.train(tiny.config(resume="latest"), tmp_path))


def tiny_process(
    tiny: ModuleType, folder: Path, action: str, epoch: int, step: int
) -> subprocess.CompletedProcess[str]:
    assert tiny.__file__
    command = [sys.executable, tiny.__file__, str(folder), action, str(epoch), str(step)]
    root = Path(tiny.__file__).parents[2]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)


def test_resuming_an_earlier_epoch_forgets_the_later_ones(tiny: ModuleType, tmp_path: Path) -> None:
    config = tiny.config(keep_checkpoints="all")
    whole = tiny.train(config, tmp_path)
    notes: list[str] = []
    again = replace(config, resume="2")
    torch.manual_seed(0)
    resumed = tiny.train_model(
        tiny.TinyModel(), tiny.bursts(81), tiny.bursts(20, seed=1), again,
        store=tiny.store(tmp_path, again, report=notes.append), stop=None,
    )  # fmt: skip
    assert same_weights(whole, resumed)
    assert any("removed 2 checkpoints after epoch 2" in line for line in notes)


def test_a_finished_run_says_so_and_returns_what_it_had(tiny: ModuleType, tmp_path: Path) -> None:
    whole = tiny.train(tiny.config(), tmp_path)
    notes = Notes()
    again = tiny.train(tiny.config(resume="latest"), tmp_path, callback=notes)
    assert notes.lines == ["already finished after epoch 4 (all epochs done): nothing left to train"]
    assert same_weights(whole, again)
    assert again.history == whole.history


def test_nothing_to_resume_is_said(tiny: ModuleType, tmp_path: Path) -> None:
    notes = Notes()
    tiny.train(tiny.config(resume="latest", epochs=1), tmp_path, callback=notes)
    assert notes.lines == [f"nothing to resume in {tmp_path}: starting a new training"]


def test_best_model_is_written_again_when_it_is_gone(tiny: ModuleType, tmp_path: Path) -> None:
    whole = tiny.train(tiny.config(), tmp_path)
    (tmp_path / BEST).unlink()
    tiny.train(tiny.config(resume="latest"), tmp_path)
    best = load_checkpoint(tmp_path / BEST)
    assert best["epoch"] == whole.best_epoch
    assert all(torch.equal(best["weights"][name], whole.best_weights[name]) for name in whole.best_weights)


def test_a_checkpoint_of_another_network_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.train(tiny.config(), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit this version's network"):
        tiny.train(tiny.config(resume="latest"), tmp_path, build=lambda: torch.nn.Linear(8000, 10))


def test_nan_goes_back_one_epoch_with_half_the_rate(tiny: ModuleType) -> None:
    notes = Notes()
    plain = tiny.train(tiny.config())
    training = tiny.train(tiny.config(), build=lambda: tiny.DivergingModel((3, 2, 0)), callback=notes)
    assert len(notes.lines) == 1
    assert "the loss became nan in epoch 3, step 3" in notes.lines[0]
    assert "going back to the end of epoch 2" in notes.lines[0]
    assert curve(training)[:2] == curve(plain)[:2]
    assert [r.learning_rate for r in training.history[2:]] == [r.learning_rate / 2 for r in plain.history[2:]]
    assert all(math.isfinite(r.train_loss) for r in training.history)


def test_a_run_that_rolled_back_resumes_to_the_same_bits(tiny: ModuleType, tmp_path: Path) -> None:
    bad = [(2, 1, 0), (2, 4, 1), (4, 0, 2)]
    whole = tiny.train(tiny.config(), build=lambda: tiny.DivergingModel(*bad))
    # Looks: 5 in epoch 1, then 2 and 5 until the loss is bad, then the third attempt.
    with pytest.raises(Interrupted):
        tiny.train(tiny.config(), tmp_path, build=lambda: tiny.DivergingModel(*bad), stop=StopAfter(15))
    state = load_checkpoint(tmp_path / INTERRUPTED)["state"]
    assert (state["progress"]["rollbacks"], state["progress"]["step"]) == (2, 3)
    resumed = tiny.train(tiny.config(resume="latest"), tmp_path, build=lambda: tiny.DivergingModel(*bad))
    assert same_weights(whole, resumed)
    assert curve(whole) == curve(resumed)


def test_nan_four_times_is_a_clear_error(tiny: ModuleType, tmp_path: Path) -> None:
    bad = [(2, 1, attempt) for attempt in range(4)]
    notes = Notes()
    with pytest.raises(TrainingError, match=r"became nan in epoch 2, step 2, at learning rate .*after 3 attempts"):
        tiny.train(tiny.config(), tmp_path, build=lambda: tiny.DivergingModel(*bad), callback=notes)
    assert len(notes.lines) == 3
    assert load_checkpoint(tmp_path / "checkpoint_epoch_001.pt")["epoch"] == 1


def test_early_stopping_waits_for_patience_epochs(tiny: ModuleType) -> None:
    # Labels that mean nothing: what is learnt by heart makes validation worse.
    torch.manual_seed(0)
    train, validation = tiny.bursts(81), tiny.bursts(40, seed=1)
    validation = replace(validation, labels=(validation.labels + 1) % 10)
    config = tiny.config(epochs=60, patience=3, scheduler="step")
    training = tiny.train_model(tiny.TinyModel(), train, validation, config)
    assert training.stopped == "no better validation loss for 3 epochs"
    assert len(training.history) == training.best_epoch + 3 < 60
    forever = tiny.train_model(tiny.TinyModel(), train, validation, replace(config, patience=0, epochs=12))
    assert forever.stopped == "all epochs done"


def test_plateau_halves_the_rate_when_validation_gets_no_better(tiny: ModuleType) -> None:
    validation = replace(tiny.bursts(40, seed=1), labels=(torch.arange(40) + 1) % 10)
    config = tiny.config(epochs=16, patience=0, scheduler="plateau")
    torch.manual_seed(0)
    training = tiny.train_model(tiny.TinyModel(), tiny.bursts(81), validation, config)
    rates = [record.learning_rate for record in training.history]
    assert rates[0] == 0.01
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] in (0.005, 0.0025)


def test_a_last_batch_of_one_clip_is_left_out_and_any_other_kept(tiny: ModuleType) -> None:
    steps: list[int] = []

    class Steps(NullCallback):
        def step(self, epoch: int, step: int, steps_: int, loss: float, accuracy: float, rate: float) -> None:
            steps.append(steps_)

    for clips in (81, 82):
        config = tiny.config(epochs=1)
        tiny.train_model(tiny.TinyModel(), tiny.bursts(clips), tiny.bursts(20), config, callback=Steps())
    assert steps == [5] * 5 + [6] * 6


def test_too_few_clips_are_refused(tiny: ModuleType) -> None:
    with pytest.raises(TrainingError, match="got 1 and 20"):
        tiny.train_model(tiny.TinyModel(), tiny.bursts(1), tiny.bursts(20), tiny.config())
    with pytest.raises(TrainingError, match="got 20 and 0"):
        tiny.train_model(tiny.TinyModel(), tiny.bursts(20), tiny.bursts(0), tiny.config())
    with pytest.raises(TrainingError, match="2 clips of digits and validation 1 at least, got 1 and 0"):
        tiny.train_model(tiny.TinyModel(), tiny.both(1, 20), tiny.hisses(20), tiny.config())


def test_what_is_kept_is_the_average_and_without_one_the_weights_themselves(tiny: ModuleType) -> None:
    for decay in (0.0, 0.9):
        torch.manual_seed(0)
        model = tiny.TinyModel()
        training = tiny.train(tiny.config(ema_decay=decay, epochs=8, patience=0), build=lambda model=model: model)
        assert training.best_epoch == 8
        name = "layers.1.weight"
        assert torch.equal(training.best_weights[name], model.state_dict()[name]) == (decay == 0.0)
        assert int(training.best_weights["layers.0.num_batches_tracked"]) == 40


@pytest.mark.parametrize("change", [{"clip_norm": 0.01}, {"label_smoothing": 0.0}, {"weight_decay": 0.5}])
def test_settings_reach_the_weights(tiny: ModuleType, change: dict[str, float]) -> None:
    usual, changed = tiny.train(tiny.config(epochs=1)), tiny.train(tiny.config(epochs=1, **change))
    assert not same_weights(usual, changed)


def test_no_clipping_is_the_same_as_a_norm_never_reached(tiny: ModuleType) -> None:
    without, with_ = tiny.train(tiny.config(epochs=1, clip_norm=0.0)), tiny.train(tiny.config(epochs=1, clip_norm=1e6))
    assert same_weights(without, with_)


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


def test_an_unresolved_configuration_is_a_mistake_of_the_caller(tiny: ModuleType) -> None:
    with pytest.raises(TypeError, match="resolved"):
        tiny.train_model(tiny.TinyModel(), tiny.bursts(81), tiny.bursts(20), replace(tiny.config(), epochs=None))


def test_the_process_keeps_its_own_choice_of_algorithms(tiny: ModuleType) -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    tiny.train(tiny.config(epochs=1))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_clips_of_two_digits_are_learnt_from(tiny: ModuleType, kind: str) -> None:
    plain = tiny.config()
    settings = replace(plain, augmentation=replace(plain.augmenting, **{f"{kind}_probability": 1.0}))
    mixed, straight = tiny.train(settings), tiny.train(plain)
    assert mixed.history[-1].validation_accuracy > 0.3
    assert mixed.history[-1].train_loss != straight.history[-1].train_loss


def test_with_clips_that_are_no_digits_resuming_gives_the_same_bits(tiny: ModuleType, tmp_path: Path) -> None:
    config = tiny.config(negative_share=0.25)
    whole, without = tiny.train(config, others=30), tiny.train(tiny.config())
    assert not same_weights(whole, without)
    with pytest.raises(Interrupted):
        tiny.train(config, tmp_path, others=30, stop=StopAfter(8))
    resumed = tiny.train(replace(config, resume="latest"), tmp_path, others=30)
    assert same_weights(whole, resumed)
    assert curve(whole) == curve(resumed)


# --- a task of another kind ----------------------------------------------------------------------


class Regression(Task):
    """Fits a line to points made anew for each step; no validation."""

    def start_epoch(self, epoch: int, seed: int) -> None:
        self.epoch = epoch

    def batch(self, step: int) -> torch.Tensor:
        return torch.randn(8, 1)

    def forward(self, network: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = network(batch)
        return outputs

    def loss(self, outputs: torch.Tensor, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        errors = (outputs - 3.0 * batch).abs()
        return errors.square().mean(), torch.tensor([int((errors < 0.5).sum()), len(batch)])


def test_another_task_without_validation_and_with_a_shorter_last_epoch(tiny: ModuleType, tmp_path: Path) -> None:
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
