"""Where a training stands: the numbers of a checkpoint, and what a finished epoch makes of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ml_training.results import EpochRecord
from ml_training.training.schedules import PLATEAU_PATIENCE


@dataclass
class Progress:
    """Plain numbers only: a checkpoint holds them as `asdict` gives them."""

    epoch: int = 0  # whole epochs done
    step: int = 0  # steps done in the next one
    updates: int = 0  # optimiser steps in all, for the warm-up of the averaged weights
    best_epoch: int = 0
    best_loss: float = math.inf
    best_accuracy: float = 0.0
    plateau_halvings: int = 0
    plateau_since: int = 0  # epoch of the last better loss or halving
    rollbacks: int = 0
    at_once: int = 0  # clips of a step that memory holds together; 0: as far as is known, all
    heard_at_once: int = 0  # clips in validation, 0: as many as usual
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def records(self) -> tuple[EpochRecord, ...]:
        """The epochs done."""
        return tuple(EpochRecord(**record) for record in self.history)

    def ended(self, epochs: int, patience: int) -> str | None:
        """Why no epoch follows, None where one does; `patience` 0 never stops early."""
        if patience and self.epoch and self.epoch - self.best_epoch >= patience:
            return f"no better validation loss for {patience} epochs"
        return "all epochs done" if self.epoch >= epochs else None

    def finish_epoch(self, record: EpochRecord) -> bool:
        """Count a whole epoch; whether it is the best so far (lowest validation loss, then highest accuracy)."""
        self.epoch, self.step = record.epoch, 0
        self.seconds += record.seconds - self.epoch_seconds
        self.epoch_seconds = 0.0
        self.history.append(asdict(record))
        loss, accuracy = record.validation_loss, record.validation_accuracy
        better = (loss, -accuracy) < (self.best_loss, -self.best_accuracy)
        if better:
            self.best_epoch, self.best_loss, self.best_accuracy = record.epoch, loss, accuracy
            self.plateau_since = record.epoch
        elif record.epoch - self.plateau_since >= PLATEAU_PATIENCE:
            self.plateau_since = record.epoch
            self.plateau_halvings += 1
        return better
