"""The training loop of the digit classifiers and of the acoustic model.

A `Task` (task.py) supplies batch k of an epoch, the forward pass, the loss and the validation. `Trainer` does the rest:
learning-rate schedule, AdamW with weight decay on matrices alone, gradient clipping, mixed precision, micro-batches
when memory is short, averaged (EMA) weights, rollback when the loss is not finite, stop signals, checkpoints, resume.

    options = TrainerOptions(epochs=80, steps_per_epoch=100, learning_rate=4e-3, weight_decay=0.02, resume="latest")
    store = CheckpointStore(folder, RunIdentity("acoustic", settings, data_hash))
    training = Trainer(model, task, options, store=store, callback=callback, stop=signals).run()
    model.load_state_dict(training.best_weights)

A checkpoint is written after every epoch and, with a stop signal, after the current step. Everything random in a step
and its learning rate follow from (seed, epoch, step, rollbacks), so a checkpoint needs no generator state: a run that
was killed and resumed ends with the same bits as one that never stopped (same machine, same number of threads).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from digit_detector.errors import CheckpointError, Interrupted, TrainingError
from digit_detector.memory import halving, is_out_of_memory
from ml_training.results import EpochRecord
from ml_training.training.checkpoint import CheckpointStore, Weights
from ml_training.training.distributed import SingleProcess
from ml_training.training.gradients import compute_gradients
from ml_training.training.schedules import WARM_UP, Progress, Schedule
from ml_training.training.seeding import CPU, deterministic, step_seed
from ml_training.training.task import Task

MAX_ROLLBACKS = 3
_CUDA_CHECK = 16  # steps between checks of the loss on a GPU: each check waits for it
_STATEFUL = ("model", "averaged", "optimizer", "grad_scaler")

State = dict[str, Any]


@dataclass(frozen=True)
class TrainerOptions:
    """Settings of one training."""

    epochs: int
    steps_per_epoch: int
    learning_rate: float  # peak
    weight_decay: float = 0.0
    total_steps: int | None = None  # for a shorter last epoch; None: epochs * steps_per_epoch
    optimizer: str = "adamw"  # or "adam"
    scheduler: str = "cosine"  # one of config.SCHEDULERS
    warm_up: float = WARM_UP  # share of all steps, of the cosine schedule
    clip_norm: float = 5.0  # largest gradient norm; 0: no clipping
    ema_decay: float = 0.99  # of the averaged weights; 0: no averaging
    patience: int = 0  # epochs without a better validation loss before stopping; 0: never
    seed: int = 0
    resume: str | None = None  # "latest" or an epoch of the store
    compile: bool = False
    device: torch.device = CPU
    dtype: torch.dtype | None = None  # of mixed precision; None: float32


@dataclass(frozen=True)
class Training:
    """The outcome of a training."""

    history: tuple[EpochRecord, ...]
    best_epoch: int
    best_weights: Weights  # averaged weights of the best epoch, on the CPU
    stopped: str  # why it ended
    seconds: float  # of all sessions together


class Callback(Protocol):
    """Follows a training. Epochs and steps count from 1."""

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float, rate: float) -> None:
        return

    def epoch(self, history: Sequence[EpochRecord], better: bool) -> None:
        return

    def note(self, line: str) -> None:
        return


class NullCallback(Callback):
    """Ignores everything; a base for callbacks that need some of the methods."""


class StopFlag(Protocol):
    """The number of the signal that asks a training to stop, None without one."""

    @property
    def signum(self) -> int | None: ...


class _Diverged(Exception):  # noqa: N818 (handled in this module)
    """The loss of a step (from 1) is not finite: args are the step and the loss."""


class Trainer:
    """Trains `model` in place; validated, chosen as best and kept are its averaged weights.

    All ranks of a `group` train the same model with the same options and end with the same weights; only rank 0 has a
    `store`, and all resume from it.
    """

    def __init__(
        self, model: nn.Module, task: Task, options: TrainerOptions, *, store: CheckpointStore | None = None,
        callback: Callback | None = None, stop: StopFlag | None = None, group: SingleProcess | None = None,
    ) -> None:  # fmt: skip
        self.task, self.options, self.store, self.stop = task, options, store, stop
        self.callback = callback or NullCallback()
        self.group = group or SingleProcess()
        self.stop_signal: int | None = None  # the one that all ranks have seen
        self.total_steps = options.total_steps or options.epochs * options.steps_per_epoch
        self.schedule = Schedule(
            options.scheduler, options.learning_rate, options.epochs, options.steps_per_epoch, self.total_steps,
            options.warm_up,
        )  # fmt: skip
        device = options.device
        self.model = model.to(device)
        self.optimizer = make_optimizer(model, options)
        self.grad_scaler = torch.amp.GradScaler(device.type, enabled=options.dtype is torch.float16)
        self.network = cast(nn.Module, torch.compile(model)) if options.compile else self.group.wrap(model)
        self.averaged = copy.deepcopy(model).eval()
        self.best: Weights = {}
        self.progress = Progress()
        self.losses = torch.zeros(options.steps_per_epoch, device=device)
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)
        self.epoch_end: State = {}  # what a rollback returns to

    def run(self) -> Training:
        """Train to the end, resuming as `options.resume` says.

        Raises TrainingError when the loss stays NaN or infinite after three rollbacks or memory is too small for any
        batch, CheckpointError when a checkpoint cannot be written or read, Interrupted after a stop signal,
        PeerLostError when another rank is gone.
        """
        try:
            with deterministic(self.options.compile):
                return self._run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"not enough memory to train even with the smallest batch ({' '.join(str(error).split())[:120]}): "
                "use a smaller --batch_size, fewer recordings or another --device"
            ) from error

    def _run(self) -> Training:
        self._start()
        while (stopped := self._reason_to_end()) is None:
            try:
                self._train_epoch()
            except _Diverged as diverged:
                self._roll_back(diverged)
        if (signum := self._signal()) is not None:
            raise Interrupted(signum)
        progress = self.progress
        return Training(progress.records, progress.best_epoch, self.best, stopped, progress.seconds)

    def _reason_to_end(self) -> str | None:
        done, patience = self.progress.epoch, self.options.patience
        if patience and done and done - self.progress.best_epoch >= patience:
            return f"no better validation loss for {patience} epochs"
        return "all epochs done" if done >= self.options.epochs else None

    def _signal(self) -> int | None:
        """The stop signal; ranks learn of it after the same step."""
        if self.group.world_size > 1:
            return self.stop_signal
        return None if self.stop is None else self.stop.signum

    def _steps(self) -> int:
        """Steps of the current epoch."""
        return min(self.options.steps_per_epoch, self.total_steps - self.progress.epoch * self.options.steps_per_epoch)

    def _rate(self, step: int) -> float:
        progress = self.progress
        return self.schedule.rate(progress.epoch, step, progress.plateau_halvings) * 0.5**progress.rollbacks

    def _start(self) -> None:
        state: State | None = None
        if self.store is not None and self.options.resume is not None:
            if (checkpoint := self.store.resume(self.options.resume)) is not None:
                state = checkpoint["state"]
            else:
                self.callback.note(f"nothing to resume in {self.store.folder}: starting a new training")
        elif self.store is not None:
            self.store.start_anew()
        if (state := self.group.broadcast_state(state)) is None:
            self.epoch_end = self._capture()
            return
        try:
            self._restore(state)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit this version or network ({str(error).splitlines()[0]}): "
                "start a new training without --resume"
            ) from error
        self.epoch_end = state.get("epoch_end") or self._capture()
        done, step = self.progress.epoch, self.progress.step
        if (stopped := self._reason_to_end()) is not None:
            self.callback.note(f"already finished after epoch {done} ({stopped}): nothing left to train")
        else:
            where = f"epoch {done + 1}" + (f", step {step + 1} of {self._steps()}" if step else "")
            self.callback.note(f"resuming at {where} of {self.options.epochs} epochs")
        if self.best:  # best_model.pt may be of a later epoch, or gone
            self._save_best()

    def _train_epoch(self) -> None:
        started, progress, options = time.perf_counter(), self.progress, self.options
        self.task.start_epoch(progress.epoch, step_seed(options.seed, progress.epoch + 1, -1, progress.rollbacks))
        self.model.train()
        steps = self._steps()
        for step in range(progress.step, steps):
            if (signum := self._signal()) is not None:
                self._interrupt(signum, started)
            self._step(step)
            if options.device.type == "cpu" or step % _CUDA_CHECK == 0 or step + 1 == steps:
                loss = float(self._check_losses(step + 1).mean())
                self.callback.step(progress.epoch + 1, step + 1, steps, loss, self._accuracy(), self._rate(step))
        validation_loss, validation_accuracy = self._validate(steps)
        seconds = progress.epoch_seconds + time.perf_counter() - started
        record = EpochRecord(
            progress.epoch + 1, float(self.losses[:steps].mean()), self._accuracy(), validation_loss,
            validation_accuracy, self._rate(steps - 1), seconds,
        )  # fmt: skip
        better = progress.finish_epoch(record)
        self.losses.zero_()
        self.counts.zero_()
        if better:
            self.best = copy_to_cpu(self.averaged.state_dict())
        self.epoch_end = self._capture()
        if self.store is not None:
            if better:
                self._save_best()
            self.store.save_epoch(record.epoch, self.epoch_end)
        self.callback.epoch(progress.records, better)

    def _step(self, step: int) -> None:
        progress, options = self.progress, self.options
        seed = step_seed(options.seed, progress.epoch + 1, step, progress.rollbacks) + self.group.rank
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step)
        loss, counts = compute_gradients(
            self.model, self.network, self.task, step, seed, progress.micro_batch, options.dtype, self.grad_scaler,
            self._on_split,
        )  # fmt: skip
        if self.group.world_size > 1:
            signum = None if self.stop is None else self.stop.signum
            loss, counts, self.stop_signal = self.group.reduce_step(loss, counts, signum)
        if options.clip_norm > 0:
            self.grad_scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), options.clip_norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        warm_up = (1 + progress.updates) / (10 + progress.updates)
        update_average(self.averaged, self.model, min(options.ema_decay, warm_up))
        self.losses[step] = loss
        self.counts += counts
        progress.updates += 1
        progress.step = step + 1

    def _on_split(self, clips: int, fewer: int) -> None:
        self.progress.micro_batch = fewer
        self.callback.note(
            f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1}: not enough memory for {clips} clips at "
            f"once, continuing with micro-batches of {fewer} (batch norm sees {fewer})"
        )

    def _check_losses(self, done: int) -> Tensor:
        """(done,) losses of this epoch so far. Raises _Diverged at the first that is not finite."""
        losses = self.losses[:done].cpu()
        if not bool(losses.isfinite().all()):
            first = int((~losses.isfinite()).nonzero()[0])
            raise _Diverged(first + 1, float(losses[first]))
        return losses

    def _accuracy(self) -> float:
        correct, clips = self.counts.tolist()
        return correct / clips if clips else 0.0

    def _validate(self, steps: int) -> tuple[float, float]:
        """Loss and accuracy; rank 0 validates, the others wait. NaN without validation."""
        if not self.task.validation_batch:
            return math.nan, math.nan
        figures = 0.0, 0.0
        if self.group.rank == 0:
            figures, self.progress.validation_batch = halving(
                lambda size: self.task.validate(self.averaged, size),
                self.progress.validation_batch or self.task.validation_batch, 1,
                lambda clips, fewer: self.callback.note(
                    f"not enough memory to validate {clips} clips at once: continuing with {fewer}"
                ),
            )  # fmt: skip
        loss, accuracy = self.group.broadcast(*figures)
        if not math.isfinite(loss):
            raise _Diverged(steps, loss)
        return loss, accuracy

    def _roll_back(self, diverged: _Diverged) -> None:
        epoch, rollbacks, micro_batch = self.progress.epoch + 1, self.progress.rollbacks, self.progress.micro_batch
        step, loss = diverged.args
        where = f"the loss became {loss} in epoch {epoch}, step {step}, at learning rate {self._rate(step - 1):.3g}"
        if rollbacks == MAX_ROLLBACKS:
            raise TrainingError(
                f"{where}, after {MAX_ROLLBACKS} attempts with a smaller rate: use a smaller --learning_rate, "
                "a smaller --clip_norm or --precision fp32, and look for broken recordings"
            )
        self._restore(self.epoch_end)
        self.progress.rollbacks, self.progress.micro_batch = rollbacks + 1, micro_batch
        self.callback.note(
            f"{where}: going back to the end of epoch {epoch - 1}, learning rates halved "
            f"(attempt {rollbacks + 1} of {MAX_ROLLBACKS})"
        )

    def _interrupt(self, signum: int, started: float) -> None:
        progress, seconds = self.progress, time.perf_counter() - started
        progress.epoch_seconds += seconds
        progress.seconds += seconds
        if self.store is not None and (progress.step or not progress.epoch):
            self._check_losses(progress.step)
            self.store.save_interrupted(progress.epoch, progress.step, {**self._capture(), "epoch_end": self.epoch_end})
        self.group.barrier()  # torchrun ends all ranks when one leaves
        raise Interrupted(signum)

    def _capture(self) -> State:
        """A copy on the CPU of everything that decides how training goes on."""
        parts = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        state: State = copy_to_cpu(
            {
                **parts,
                "best": self.best,
                "losses": self.losses,
                "counts": self.counts,
                "progress": asdict(self.progress),
            }
        )
        return state

    def _restore(self, state: State) -> None:
        state = copy_to_cpu(state)  # the optimizer keeps the tensors it gets
        for name in _STATEFUL:
            if name != "grad_scaler" or (state[name] and self.grad_scaler.is_enabled()):  # neither on a CPU
                getattr(self, name).load_state_dict(state[name])
        self.best = state["best"]
        self.losses.copy_(state["losses"])
        self.counts.copy_(state["counts"])
        self.progress = Progress(**state["progress"])

    def _save_best(self) -> None:
        figures = {"loss": self.progress.best_loss, "accuracy": self.progress.best_accuracy}
        if self.store is not None:
            self.store.save_best(self.progress.best_epoch, self.best, figures)


def make_optimizer(model: nn.Module, options: TrainerOptions) -> torch.optim.Optimizer:
    """AdamW or Adam; biases and normalization weights (vectors) do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind([group for group in groups if group["params"]], lr=options.learning_rate, fused=True)


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move averaged weights towards the current ones; integers (counters of batch norms) are copied."""
    mean, now = averaged.state_dict(), model.state_dict()
    floating = [name for name, value in now.items() if value.is_floating_point()]
    torch._foreach_lerp_([mean[n] for n in floating], [now[n] for n in floating], 1.0 - decay)
    for name in now.keys() - set(floating):
        mean[name].copy_(now[name])


def copy_to_cpu(value: Any) -> Any:
    """A deep copy whose tensors are on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {k: copy_to_cpu(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copy_to_cpu(v) for v in value)
    return value
