"""The training loop: tensors in memory, one seed per step, averaged weights, exact resume.

Everything random in a step follows from (seed, epoch, step, number of rollbacks), and the learning
rate from the same numbers, so a checkpoint needs no generator state: a run that was killed and
resumed ends with the same bits as one that never stopped (same machine, same number of threads).
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from digit_detector.errors import CheckpointError, Interrupted, TrainingError
from digit_detector.memory import halving, is_out_of_memory
from ml_training.config import TrainConfig
from ml_training.data.corpus import NOT_A_DIGIT
from ml_training.results import EpochRecord
from ml_training.training.callbacks import Observer, StopRequest, Unobserved
from ml_training.training.checkpoint import CheckpointStore
from ml_training.training.distributed import SingleProcess
from ml_training.training.gradients import Gradients
from ml_training.training.objective import Objective, validation_loss
from ml_training.training.precomputed_features import features_for_training, with_features
from ml_training.training.progress import Progress
from ml_training.training.schedules import Schedule
from ml_training.training.setup import (
    EVALUATION_BATCH,
    Clips,
    Weights,
    choose_device,
    choose_precision,
    compiled,
    copied,
    deterministic,
    make_optimizer,
    predict_by,
    step_seed,
)

MAX_ROLLBACKS = 3
_CUDA_CHECK = 16  # steps between looks at the loss on a GPU: each look waits for it

State = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """How a training ended."""

    history: tuple[EpochRecord, ...]
    best_epoch: int
    best_weights: Weights  # averaged weights of the best epoch, on the CPU
    stopped: str  # why it ended
    seconds: float  # of all sessions together


class _Diverged(Exception):  # noqa: N818 (it is handled here)
    def __init__(self, step: int, loss: float) -> None:
        self.step = step
        self.loss = loss


# --- the loop ------------------------------------------------------------------------------------


def train_model(
    model: nn.Module,
    train: Clips,
    validation: Clips,
    config: TrainConfig,
    *,
    store: CheckpointStore | None = None,
    observer: Observer | None = None,
    stop: StopRequest | None = None,
    group: SingleProcess | None = None,
) -> Training:
    """Train `model` in place as the resolved `config` says, going on from `store` if config.resume asks for it.

    Validated, chosen as best (lowest validation loss, then highest accuracy) and kept are the averaged weights.
    A batch that memory does not hold is taken in parts whose gradients add up. All ranks of a `group` call this with
    the same clips and settings and end with the same weights; only rank 0 has a `store`, and all resume from it.
    Raises TrainingError when the loss stays NaN or infinite after three rollbacks or memory is too small for any batch,
    CheckpointError when a checkpoint cannot be written or read, Interrupted when `stop` says so, PeerLostError when
    another rank is gone.
    """
    with deterministic(config.compile):
        try:
            return _Loop(model, train, validation, config, store, observer or Unobserved(), stop, group).run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"not enough memory to train, however few clips at once ({' '.join(str(error).split())[:120]}): try "
                f"--batch_size {max(2, (config.batch_size or 4) // 2)}, fewer recordings or another --device"
            ) from error


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        train: Clips,
        validation: Clips,
        config: TrainConfig,
        store: CheckpointStore | None,
        observer: Observer,
        stop: StopRequest | None,
        group: SingleProcess | None = None,
    ) -> None:
        if None in (config.epochs, config.batch_size, config.learning_rate, config.weight_decay):
            raise TypeError("train_model needs a resolved configuration: config.resolved(pipeline, recipe)")
        assert config.epochs
        assert config.batch_size
        assert config.learning_rate
        digits, judges = (int((clips.labels != NOT_A_DIGIT).sum()) for clips in (train, validation))
        if digits < 2 or not judges:
            raise TrainingError(
                f"training needs 2 clips of digits and validation 1 at least, got {digits} and {judges}: "
                "use more recordings or another --validation_share"
            )
        self.config, self.epochs = config, config.epochs
        self.store, self.observer, self.stop = store, observer, stop
        self.group = group or SingleProcess()
        self.stop_signal: int | None = None  # the one that all ranks have seen
        self.device = choose_device(config)
        self.dtype = choose_precision(config, self.device)
        validation = with_features(model, validation, config, answering=True)
        train = with_features(model, train, config, answering=False)
        self.model = model.to(self.device)
        self.validation = validation.to(self.device)
        features = partial(features_for_training, model)
        self.objective = Objective(train, config, self.device, features)
        self.batch_size = config.batch_size
        whole, rest = divmod(digits, self.batch_size)
        least = 2 * self.group.world_size  # one clip a rank has no batch statistics
        if (most := min(digits, self.batch_size)) < least:
            raise TrainingError(
                f"{self.group.world_size} processes need {least} digits in a batch, got {most}: "
                "use a larger --batch_size, more recordings or fewer processes"
            )
        self.steps = whole + (rest >= least or not whole)
        self.schedule = Schedule(config.scheduler, config.learning_rate, self.epochs, self.steps)
        self.optimizer = make_optimizer(model, config)
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        network = compiled(model) if config.compile else self.group.wrap(self.model)
        self.gradients = Gradients(self.model, network, self.objective, self.dtype, self.grad_scaler)
        self.averaged = copy.deepcopy(model)
        self.averaged.eval()
        self.best: Weights = {}
        self.progress = Progress()
        self.losses = torch.zeros(self.steps, device=self.device)
        self.right = torch.zeros((), dtype=torch.int64, device=self.device)
        self.good: State = {}

    def run(self) -> Training:
        self._begin()
        while (ended := self._ended()) is None:
            try:
                self._one_epoch()
            except _Diverged as diverged:
                self._roll_back(diverged)
        if (signum := self._stopping()) is not None:
            raise Interrupted(signum)
        return Training(self.progress.records, self.progress.best_epoch, self.best, ended, self.progress.seconds)

    def _ended(self) -> str | None:
        return self.progress.ended(self.epochs, self.config.patience)

    def _stopping(self) -> int | None:
        """The signal after which to stop; ranks take the same decision after the same step."""
        if self.group.world_size > 1:
            return self.stop_signal
        return None if self.stop is None else self.stop.signum

    def _begin(self) -> None:
        state: State | None = None
        if self.store is not None and self.config.resume is not None:
            if (checkpoint := self.store.resume(self.config.resume)) is not None:
                state = checkpoint["state"]
            else:
                self.observer.note(f"nothing to resume in {self.store.folder}: training starts anew")
        elif self.store is not None:
            self.store.start_anew()
        if (state := self.group.broadcast_state(state)) is not None:
            self._go_on_from(state)
            return
        self.good = self._capture()

    def _go_on_from(self, state: State) -> None:
        try:
            self._restore(state)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit this version's network ({str(error).splitlines()[0]}): "
                "start anew without --resume"
            ) from error
        self.good = state.get("good") or self._capture()
        done, step = self.progress.epoch, self.progress.step
        if (ended := self._ended()) is not None:
            self.observer.note(f"already finished after epoch {done} ({ended}): nothing left to train")
        else:
            where = f"epoch {done + 1}, step {step + 1} of {self.steps}" if step else f"epoch {done + 1}"
            self.observer.note(f"resuming at {where} of {self.epochs} epochs")
        if self.best:  # best_model.pt may be of a later epoch, or gone
            self._save_best()

    # --- one epoch ---

    def _one_epoch(self) -> None:
        began, progress = time.perf_counter(), self.progress
        order = self._order()
        self.model.train()
        rate = 0.0
        for step in range(progress.step, self.steps):
            if (signum := self._stopping()) is not None:
                self._interrupt(signum, began)
            rate = self._step(step, order[step * self.batch_size : (step + 1) * self.batch_size])
            if self.device.type == "cpu" or step % _CUDA_CHECK == 0 or step + 1 == self.steps:
                self._look(step + 1, rate)
        validation_loss, validation_accuracy = self._validate()
        seconds = progress.epoch_seconds + time.perf_counter() - began
        record = EpochRecord(
            epoch=progress.epoch + 1,
            train_loss=float(self.losses.mean()),
            train_accuracy=int(self.right) / self._seen(self.steps),
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=rate,
            seconds=seconds,
        )
        self._finish_epoch(record)

    def _step(self, step: int, chosen: Tensor) -> float:
        progress, config = self.progress, self.config
        rank, ranks = self.group.rank, self.group.world_size
        seed = step_seed(config.seed, progress.epoch + 1, step, progress.rollbacks) + rank
        rate = self.schedule.rate(progress.epoch, step, progress.plateau_halvings) * 0.5**progress.rollbacks
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, right = self.gradients.take(chosen[rank::ranks], seed, progress.at_once, self._too_much)
        if ranks > 1:
            signum = None if self.stop is None else self.stop.signum
            loss, right, self.stop_signal = self.group.reduce_step(loss, right, signum)
        if config.clip_norm > 0:
            self.grad_scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self._average()
        self.losses[step] = loss
        self.right += right
        progress.step = step + 1
        return rate

    def _too_much(self, clips: int, fewer: int) -> None:
        self.progress.at_once = fewer
        self.observer.note(
            f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1}: not enough memory for {clips} clips at "
            f"once, going on with {fewer} whose gradients add up to the same batch (batch norm sees {fewer})"
        )

    def _average(self) -> None:
        """Move the averaged weights towards the current ones, faster in the first steps."""
        done = self.progress.updates
        decay = min(self.config.ema_decay, (1 + done) / (10 + done))
        self.progress.updates = done + 1
        with torch.no_grad():
            now, mean = self.model.state_dict(), self.averaged.state_dict()
            floating = [name for name, value in now.items() if value.is_floating_point()]
            torch._foreach_lerp_([mean[n] for n in floating], [now[n] for n in floating], 1.0 - decay)
            for name in now.keys() - set(floating):
                mean[name].copy_(now[name])

    def _checked_losses(self, done: int) -> Tensor:
        """(done,) losses of this epoch so far. Raises _Diverged at the first that is no number."""
        losses = self.losses[:done].cpu()
        if not bool(losses.isfinite().all()):
            first = int((~losses.isfinite()).nonzero()[0])
            raise _Diverged(first + 1, float(losses[first]))
        return losses

    def _look(self, done: int, rate: float) -> None:
        losses = self._checked_losses(done)
        accuracy = int(self.right) / self._seen(done)
        self.observer.step(self.progress.epoch + 1, done, self.steps, float(losses.mean()), accuracy, rate)

    def _seen(self, steps: int) -> int:
        return min(steps * self.batch_size, len(self.objective.digits))

    def _order(self) -> Tensor:
        generator = torch.Generator()
        generator.manual_seed(step_seed(self.config.seed, self.progress.epoch + 1, -1, self.progress.rollbacks))
        return torch.randperm(len(self.objective.digits), generator=generator).to(self.device)

    def _validate(self) -> tuple[float, float]:
        if self.group.rank:  # rank 0 validates, the others wait
            loss, accuracy = self.group.broadcast(0.0, 0.0)
            if not math.isfinite(loss):
                raise _Diverged(self.steps, loss)
            return loss, accuracy
        labels, precomputed = self.validation.labels, self.validation.features
        judged = self.validation.waveforms if precomputed is None else precomputed
        usual = self.progress.heard_at_once or max(1, min(EVALUATION_BATCH, len(judged)))
        heard, self.progress.heard_at_once = halving(
            lambda at_once: predict_by(at_once, self.averaged, judged, precomputed is not None), usual, 1,
            lambda clips, fewer: self.observer.note(
                f"not enough memory to validate {clips} clips at once: going on with {fewer}"
            ),
        )  # fmt: skip
        is_digit = labels != NOT_A_DIGIT
        right = heard.scores[is_digit].argmax(dim=1) == labels[is_digit]
        loss = validation_loss(heard, labels, self.config.label_smoothing)
        loss, accuracy = self.group.broadcast(loss, float(right.double().mean()))
        if not math.isfinite(loss):
            raise _Diverged(self.steps, loss)
        return loss, accuracy

    # --- between epochs ---

    def _finish_epoch(self, record: EpochRecord) -> None:
        better = self.progress.finish_epoch(record)
        self.losses.zero_()
        self.right.zero_()
        if better:
            self.best = copied(self.averaged.state_dict())
        self.good = self._capture()
        if self.store is not None:
            if better:
                self._save_best()
            self.store.save_epoch(record.epoch, self.good)
        self.observer.epoch(self.progress.records, better)

    def _roll_back(self, diverged: _Diverged) -> None:
        epoch, step, rollbacks = self.progress.epoch + 1, diverged.step, self.progress.rollbacks
        rate = self.schedule.rate(epoch - 1, step - 1, self.progress.plateau_halvings) * 0.5**rollbacks
        where = f"the loss became {diverged.loss} in epoch {epoch}, step {step}, at learning rate {rate:.3g}"
        if rollbacks == MAX_ROLLBACKS:
            raise TrainingError(
                f"{where}, after {MAX_ROLLBACKS} attempts with a smaller rate: try a smaller --learning_rate, "
                "a smaller --clip_norm or --precision fp32, and look for broken recordings"
            )
        at_once = self.progress.at_once
        self._restore(self.good)
        self.progress.rollbacks, self.progress.at_once = rollbacks + 1, at_once
        self.observer.note(
            f"{where}: going back to the end of epoch {epoch - 1}, learning rates halved "
            f"(attempt {rollbacks + 1} of {MAX_ROLLBACKS})"
        )

    def _interrupt(self, signum: int, began: float) -> None:
        self.progress.epoch_seconds += time.perf_counter() - began
        self.progress.seconds += time.perf_counter() - began
        if self.store is not None and (self.progress.step or not self.progress.epoch):
            self._checked_losses(self.progress.step)
            state = {**self._capture(), "good": self.good}
            self.store.save_interrupted(self.progress.epoch, self.progress.step, state)
        self.group.barrier()  # torchrun ends all ranks when one leaves
        raise Interrupted(signum)

    # --- state ---

    def _capture(self) -> State:
        """A copy on the CPU of everything that decides how training goes on."""
        state: State = copied(
            {
                "model": self.model.state_dict(),
                "averaged": self.averaged.state_dict(),
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
                "grad_scaler": self.grad_scaler.state_dict(),
                "losses": self.losses,
                "right": self.right,
                "progress": asdict(self.progress),
            }
        )
        return state

    def _restore(self, state: State) -> None:
        state = copied(state)  # the optimiser keeps what it is given
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.best = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        if state["grad_scaler"] and self.grad_scaler.is_enabled():  # neither on a CPU
            self.grad_scaler.load_state_dict(state["grad_scaler"])
        self.losses.copy_(state["losses"])
        self.right.copy_(state["right"])
        self.progress = Progress(**state["progress"])

    def _save_best(self) -> None:
        progress = self.progress
        if self.store is not None:
            figures = {"loss": progress.best_loss, "accuracy": progress.best_accuracy}
            self.store.save_best(progress.best_epoch, self.best, figures)
