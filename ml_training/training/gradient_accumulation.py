"""A step in parts, where memory does not hold it whole: what batch norm makes of that, and how it is undone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LEAST = 2  # clips of a part: one clip has no batch statistics


def parts_of(clips: int, at_once: int) -> int:
    """Into how many parts a step falls if each may have `at_once` clips, or one more where it would be alone."""
    return max(1, min(-(-clips // at_once), clips // LEAST))


class RunningStatistics:
    """What the batch norms of a model remember of the batches they saw.

    Each part of a step is normalised by its own mean and variance, which are those of fewer clips: that a step taken in
    parts gives other weights than a whole one is due to this and to dropout, and to nothing else but rounding.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
        self._now = [value for layer in self._norms for value in layer.buffers()]
        self._kept = [torch.empty_like(value) for value in self._now]

    def keep(self) -> None:
        """Remember them as they are."""
        self._copy(self._now, self._kept)

    def put_back(self) -> None:
        """Make them what they were: as if what was seen meanwhile had never been."""
        self._copy(self._kept, self._now)

    @contextlib.contextmanager
    def moved_by(self, parts: int) -> Iterator[None]:
        """They move with each part; all parts of a step together move them as far as one batch would."""
        before = [layer.momentum for layer in self._norms]
        for layer in self._norms:
            if layer.momentum is not None and parts > 1:  # None is the mean of all batches
                layer.momentum = 1 - (1 - layer.momentum) ** (1 / parts)
        try:
            yield
        finally:
            for layer, momentum in zip(self._norms, before, strict=True):
                layer.momentum = momentum

    @staticmethod
    def _copy(source: list[Tensor], target: list[Tensor]) -> None:
        with torch.no_grad():
            for there, here in zip(source, target, strict=True):
                here.copy_(there)
