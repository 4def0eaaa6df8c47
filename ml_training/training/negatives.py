"""Clips without a digit for one training step."""

from __future__ import annotations

import torch
from torch import Tensor

from ml_training.data.spoiling import spoil
from ml_training.training.setup import Clips


def count_beside(digits: int, share: float) -> int:
    """How many clips without a digit come with so many digits when they are `share` of all."""
    return round(digits * share / (1.0 - share))


def draw_negatives(count: int, digits: Clips, others: Clips, noise_dir: str | None) -> tuple[Tensor, Tensor]:
    """(count, T) clips and their lengths: half of them `others`, half spoiled `digits`; without others, all spoiled."""
    taken = count // 2 if len(others) else 0
    spoiled = torch.randint(len(digits), (count - taken,), device=digits.labels.device)
    waveforms, lengths = spoil(digits.waveforms[spoiled], digits.lengths[spoiled], digits.labels[spoiled], noise_dir)
    if not taken:
        return waveforms, lengths
    chosen = torch.randint(len(others), (taken,), device=digits.labels.device)
    return torch.cat([waveforms, others.waveforms[chosen]]), torch.cat([lengths, others.lengths[chosen]])
