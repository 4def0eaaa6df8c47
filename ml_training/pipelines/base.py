"""What every pipeline's model is: a module from waveforms to ten scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ml_training.config import AugmentationConfig, Recipe


class DigitModel(nn.Module):
    """(B, 8000) waveforms -> (B, 10) scores; features and their normalisation are part of it."""

    def configure(self, augmentation: AugmentationConfig) -> None:
        """Choose the feature-level augmentation that training mode applies."""

    def fit_statistics(self, waveforms: Tensor) -> None:
        """Learn the features' normalisation from (N, 8000) training clips, once before training."""

    def scaler(self) -> dict[str, list[float] | list[str]] | None:
        """The learned normalisation for people to read; None where there is none."""
        return None


def channels_last(network: nn.Module) -> None:
    """Lay the 2D convolutions out so that a CPU trains them about one and a half times as fast."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Pipeline:
    """A row of the registry."""

    name: str
    build: Callable[[], DigitModel]
    recipe: Recipe
