"""Learning-rate schedules, and the position in a training that they are functions of: nothing else to resume."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ml_training.results import EpochRecord

WARM_UP = 0.1  # share of all steps in which the cosine schedule rises
STEPS_DOWN = 5  # levels of the step schedule
PLATEAU_PATIENCE = 5  # epochs without a better validation loss before the plateau schedule halves the rate


@dataclass(frozen=True)
class Schedule:
    """One learning-rate schedule over a whole training."""

    kind: str  # one of config.SCHEDULERS
    peak: float
    epochs: int
    steps: int  # per epoch
    total: int  # steps of all epochs
    warm_up: float = WARM_UP

    def rate(self, epoch: int, step: int, plateau_halvings: int = 0) -> float:
        """The rate of one step; `epoch` and `step` count from 0.

        cosine: linear warm-up, then half a cosine to nearly 0 (Loshchilov and Hutter, SGDR, 2017). step: halved after
        each fifth of the epochs. plateau: halved whenever validation stopped improving, which the trainer counts.
        """
        if self.kind == "step":
            return self.peak * 0.5 ** (epoch * STEPS_DOWN // self.epochs)
        if self.kind == "plateau":
            return self.peak * 0.5**plateau_halvings
        now, rising = epoch * self.steps + step, max(1, round(self.warm_up * self.total))
        if now < rising:
            return self.peak * (now + 1) / rising
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * (now - rising) / max(1, self.total - rising)))


@dataclass
class Progress:
    """Position and counters of a training, plain numbers as checkpoints hold them."""

    epoch: int = 0  # whole epochs done
    step: int = 0  # steps done in the next one
    updates: int = 0  # optimizer steps in all, for the warm-up of the averaged weights
    best_epoch: int = 0
    best_loss: float = math.inf
    best_accuracy: float = 0.0
    plateau_halvings: int = 0
    plateau_since: int = 0  # epoch of the last better loss or halving
    rollbacks: int = 0
    micro_batch: int = 0  # clips of a step that fit into memory; 0: no limit known
    validation_batch: int = 0  # the same in validation
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def records(self) -> tuple[EpochRecord, ...]:
        return tuple(EpochRecord(**record) for record in self.history)

    def finish_epoch(self, record: EpochRecord) -> bool:
        """Count an epoch; whether it is the best so far (lowest validation loss, then highest accuracy)."""
        self.epoch, self.step = record.epoch, 0
        self.seconds += record.seconds - self.epoch_seconds
        self.epoch_seconds = 0.0
        self.history.append(asdict(record))
        loss, accuracy = record.validation_loss, record.validation_accuracy
        better = math.isnan(loss) or (loss, -accuracy) < (self.best_loss, -self.best_accuracy)
        if better:
            self.best_epoch, self.best_loss, self.best_accuracy = record.epoch, loss, accuracy
            self.plateau_since = record.epoch
        elif record.epoch - self.plateau_since >= PLATEAU_PATIENCE:
            self.plateau_since = record.epoch
            self.plateau_halvings += 1
        return better
