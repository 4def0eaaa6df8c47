"""Clips without a digit for one training step."""

from __future__ import annotations

import torch
from torch import Tensor

from ml_training.data.digit_corruption import corrupt_digits
from ml_training.training.setup import Clips


def count_beside(digits: int, share: float) -> int:
    """How many clips without a digit come with so many digits when they are `share` of all."""
    return round(digits * share / (1.0 - share))


def draw_negatives(count: int, digits: Clips, others: Clips, noise_dir: str | None) -> tuple[Tensor, Tensor]:
    """(count, T) clips and their lengths: half of them `others`, half spoiled `digits`; without others, all spoiled."""
    chosen, waveforms, lengths = spoilt(count, digits, len(others), noise_dir)
    if not len(chosen):
        return waveforms, lengths
    return torch.cat([waveforms, others.waveforms[chosen]]), torch.cat([lengths, others.lengths[chosen]])


def spoilt(count: int, digits: Clips, others: int, noise_dir: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """Which of so many `others` are half of `count` clips, and the other half, spoiled `digits`, with their lengths."""
    taken = count // 2 if others else 0
    device = digits.labels.device
    spoiled = torch.randint(len(digits), (count - taken,), device=device)
    clips = digits.waveforms[spoiled], digits.lengths[spoiled], digits.labels[spoiled]
    waveforms, lengths = corrupt_digits(*clips, noise_dir)
    chosen = torch.randint(others, (taken,), device=device) if taken else spoiled[:0]
    return chosen, waveforms, lengths
