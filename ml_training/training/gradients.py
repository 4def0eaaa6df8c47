"""Gradients of one training step, accumulated over micro-batches where memory does not hold the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from digit_detector.memory import halving
from ml_training.training.gradient_accumulation import LEAST, RunningStatistics, parts_of
from ml_training.training.objective import Objective


class Gradients:
    """Computes the gradients of a step's loss into `model.parameters()`.

    `network` is `model`, or what torch.compile or DistributedDataParallel made of it; the latter never splits a batch,
    for all ranks would have to split it alike.
    """

    def __init__(
        self,
        model: nn.Module,
        network: nn.Module,
        objective: Objective,
        dtype: torch.dtype | None,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.model, self.network, self.objective = model, network, objective
        self.may_split = not isinstance(network, nn.parallel.DistributedDataParallel)
        self.dtype, self.scaler = dtype, scaler
        self.statistics = RunningStatistics(model)

    def take(
        self,
        chosen: Tensor,
        seed: int,
        at_once: int,
        told: Callable[[int, int], None],
    ) -> tuple[Tensor, Tensor]:
        """() loss of a step and () how many of its digits were right.

        `at_once` is how many clips memory is known to hold, 0 for all; `told` is called with each number that was too
        much, and the next. The result depends on `chosen`, `seed` and the number of parts, not on earlier attempts.
        """
        if not self.may_split:
            return self._of(chosen, seed, 1)
        self.statistics.keep()
        most = max(LEAST, self.objective.clips(len(chosen)))
        known = min(at_once or most, most)

        def fewer(clips: int, then: int) -> None:
            self.statistics.put_back()
            told(clips, then)

        found, _ = halving(
            lambda size: self._of(chosen, seed, parts_of(most, size)),
            known,
            LEAST,
            fewer,
        )
        return found

    def _of(self, chosen: Tensor, seed: int, parts: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        for parameter in self.model.parameters():
            parameter.grad = None
        batch = self.objective.batch(chosen)
        cut = batch.parts(parts) if parts > 1 else [batch]
        kind = batch.labels.device.type
        losses, right = [], []
        with self.statistics.moved_by(parts):
            for part in cut:
                with torch.autocast(kind, dtype=self.dtype, enabled=self.dtype is not None):
                    precomputed = {"precomputed": True} if part.precomputed else {}
                    heard = self.network(part.waveforms, **precomputed)
                loss = self.objective.loss(heard, part)
                losses.append(loss.detach())
                right.append((heard.scores[: len(part.labels)].argmax(dim=1) == part.labels).sum())
                torch.autograd.backward(self.scaler.scale(loss))
        return torch.stack(losses).sum(), torch.stack(right).sum()
