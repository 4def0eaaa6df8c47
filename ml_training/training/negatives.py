"""Clips without a digit, drawn anew for each training step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ml_training.data.spoiling import spoil
from ml_training.training.setup import Clips


@dataclass(frozen=True)
class NegativeSource:
    """Where a training takes clips without a digit from."""

    pools: tuple[Clips, ...]  # of other words
    share: float  # of all clips of a step, 0 to 1
    noise_dir: str | None = None

    def to(self, device: torch.device) -> NegativeSource:
        return replace(self, pools=tuple(pool.to(device) for pool in self.pools))

    def count(self, digits: int) -> int:
        """How many come with so many digits."""
        return round(digits * self.share / (1.0 - self.share))

    def draw(self, count: int, digits: Clips) -> tuple[Tensor, Tensor]:
        """(count, T) clips and their lengths: half of them `digits` that were spoiled, the others from the pools."""
        spoiled = count - len(self.pools) * (count // (2 * len(self.pools))) if self.pools else count
        chosen = torch.randint(len(digits), (spoiled,), device=digits.labels.device)
        drawn = [spoil(digits.waveforms[chosen], digits.lengths[chosen], digits.labels[chosen], self.noise_dir)]
        for pool in self.pools:
            chosen = torch.randint(len(pool), (count // (2 * len(self.pools)),), device=pool.labels.device)
            drawn.append((pool.waveforms[chosen], pool.lengths[chosen]))
        waveforms, lengths = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return waveforms, lengths
