"""What every pipeline's model is: a module from waveforms to ten scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ml_training.config import AugmentationConfig, Recipe


class DigitModel(nn.Module):
    """(B, 8000) waveforms -> (B, 10) scores; features and their normalisation are part of it.

    A pipeline says how in `logits`. In evaluation mode the scores are divided by `temperature`, which is 1 until it
    is fitted after training, so that probabilities made of them mean what they say (Guo et al., 2017).
    """

    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            raise TypeError(f"{cls.__name__} defines forward, which would lose the temperature: define logits instead")

    def forward(self, waveforms: Tensor) -> Tensor:
        scores = self.logits(waveforms)
        return scores if self.training else scores / self.temperature

    def logits(self, waveforms: Tensor) -> Tensor:
        """(B, 8000) -> (B, 10) scores before the temperature."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Weights from before there was a temperature had none: 1.
        state_dict.setdefault(f"{prefix}temperature", torch.ones(()))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def configure(self, augmentation: AugmentationConfig) -> None:
        """Choose the feature-level augmentation that training mode applies."""

    def fit_statistics(self, waveforms: Tensor) -> None:
        """Learn the features' normalisation from (N, 8000) training clips, once before training."""

    def scaler(self) -> dict[str, list[float] | list[str]] | None:
        """The learned normalisation for people to read; None where there is none."""
        return None


def channels_last(network: nn.Module) -> None:
    """Lay the 2D convolutions out the way a CPU trains them faster."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Pipeline:
    """A row of the registry."""

    name: str
    build: Callable[[], DigitModel]
    recipe: Recipe
    temperature_power: float = 1.0  # of the temperature that suits validation's voices, which the network knows
