"""Who watches a training, and who may end it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ml_training.results import EpochRecord


class Observer(Protocol):
    """Who is told what happens. Epochs and steps count from 1."""

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float, rate: float) -> None: ...

    def epoch(self, history: Sequence[EpochRecord], better: bool) -> None: ...

    def note(self, line: str) -> None: ...


class Unobserved:
    """An observer that says nothing."""

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float, rate: float) -> None:
        pass

    def epoch(self, history: Sequence[EpochRecord], better: bool) -> None:
        pass

    def note(self, line: str) -> None:
        pass


class StopRequest(Protocol):
    """Whether somebody wants training to end; the number of the signal that said so."""

    @property
    def signum(self) -> int | None: ...
