"""mixup and cutmix, whole batches at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from digit_detector.labels import LABELS
from ml_training.config import AugmentationConfig

_QUIET = 1e-9


def mix(waveforms: Tensor, labels: Tensor, config: AugmentationConfig) -> tuple[Tensor, Tensor]:
    """(B, T) clips and (B,) digits -> (B, T) clips, some mixed with another of the batch, and (B, 10) label weights.

    A clip keeps the larger share of itself. cutmix replaces a stretch of time and overrides mixup where both are drawn.
    """
    targets = functional.one_hot(labels, len(LABELS)).to(waveforms.dtype)
    if config.mixup_probability:
        waveforms, targets = _mixup(waveforms, targets, config.mixup_probability, config.mixup_alpha)
    if config.cutmix_probability:
        waveforms, targets = _cutmix(waveforms, targets, config.cutmix_probability)
    return waveforms, targets


def _mixup(waveforms: Tensor, targets: Tensor, probability: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Both clips at once (Zhang et al., 2018), at one level, so that label weights are shares of sound."""
    b, device = len(waveforms), waveforms.device
    other = torch.randperm(b, device=device)
    concentration = torch.full((b,), alpha, device=device)
    share = torch.distributions.Beta(concentration, concentration).sample()
    share = torch.maximum(share, 1 - share)
    share = torch.where(torch.rand(b, device=device) < probability, share, 1.0)[:, None]
    level = waveforms.square().mean(dim=1, keepdim=True).sqrt()
    partner = waveforms[other] * (level / level[other].clamp_min(_QUIET)).clamp_max(1e3)
    mixed = share * waveforms + (1 - share) * partner
    return mixed, share * targets + (1 - share) * targets[other]


def _cutmix(waveforms: Tensor, targets: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """A stretch of time from the other clip (Yun et al., 2019), unless it has more energy than the rest of this one.

    Label weights are shares of the energy.
    """
    b, size = waveforms.shape
    device = waveforms.device
    other = torch.randperm(b, device=device)
    width = torch.rand(b, 1, device=device) * (size / 2)
    start = torch.rand(b, 1, device=device) * (size - width)
    time = torch.arange(size, device=device)
    chosen = torch.rand(b, 1, device=device) < probability
    inside = (time >= start) & (time < start + width) & chosen
    own = (waveforms * ~inside).square().sum(dim=1, keepdim=True)
    foreign = (waveforms[other] * inside).square().sum(dim=1, keepdim=True)
    share = own / (own + foreign).clamp_min(_QUIET)
    kept = (share < 0.5) | ~chosen
    share = torch.where(kept, 1.0, share)
    cut = torch.where(inside & ~kept, waveforms[other], waveforms)
    return cut, share * targets + (1 - share) * targets[other]
