"""What the trainer needs to know of a model's training: batches, forward pass, loss and validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Task(ABC):
    """Base class of trainings; see trainer.py. A batch is whatever `batch` returns and the other methods accept."""

    validation_batch = 0  # clips validated at once unless memory is short; 0: no validation, the last epoch is the best

    def start_epoch(self, epoch: int, seed: int) -> None:  # noqa: B027 (not every task shuffles)
        """Prepare an epoch (counted from 0); `seed` is for the order of its clips."""

    @abstractmethod
    def batch(self, step: int) -> Any:
        """Batch `step` (from 0) of the epoch. Random numbers come from torch's global generator, seeded before."""

    @abstractmethod
    def forward(self, network: nn.Module, batch: Any) -> Any:
        """The network's outputs, computed under autocast where mixed precision is on."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """() loss and (2,) int64 counts (correct, all), whose quotient over an epoch is the training accuracy.

        The losses of all micro-batches of a batch add up to the loss of the batch.
        """

    def validate(self, model: nn.Module, batch_size: int) -> tuple[float, float]:
        """Loss and accuracy of the averaged weights, computed in batches of `batch_size`."""
        raise NotImplementedError

    def clips(self, step: int) -> int:
        """The size of a batch that `split` can divide; 0 where it cannot."""
        return 0

    def split(self, batch: Any, count: int) -> Sequence[Any]:
        """The batch as `count` micro-batches of nearly equal size."""
        raise NotImplementedError
