"""The interface of every pipeline's model: waveforms -> ten digit logits and a presence logit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from digit_detector.labels import LABELS
from ml_training.config import AugmentationConfig, Recipe

OUTPUTS = len(LABELS) + 1  # of a network
PRESENCE_CONFIDENCE_WEIGHT = 0.6  # weight of the likeliest digit's logit in the presence logit
_EPSILON = 1e-4  # probabilities are clamped to _EPSILON and 1 - _EPSILON
_RENAMED_METHODS = {"logits": "forward_waveform", "configure": "set_augmentation", "fit_statistics": "fit_normalizer"}


class ModelOutput(NamedTuple):
    """Outputs of a model for B clips."""

    digit_logits: Tensor  # (B, 10)
    presence_logit: Tensor  # (B,), of a digit being present


class DigitModel(nn.Module):
    """(B, 8000) waveforms -> ModelOutput; features and their normalisation are part of the model.

    Subclasses define `forward_waveform`. In evaluation mode the digit logits are divided by `temperature`, fitted after
    training for calibrated probabilities (Guo et al., 2017), and the presence logit gets PRESENCE_CONFIDENCE_WEIGHT
    times the logit of the likeliest digit's probability, because a sound that may be several digits is usually none.
    """

    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            raise TypeError(f"{cls.__name__} defines forward, which loses the temperature: define forward_waveform")
        for old, new in _RENAMED_METHODS.items():
            if old in vars(cls) and new not in vars(cls):
                print(f"note: {cls.__name__}.{old} is now named {new}", file=sys.stderr)
                setattr(cls, new, vars(cls)[old])

    def forward(self, sound: Tensor, precomputed: bool = False) -> ModelOutput:
        """(B, 8000) waveforms, or the output of `features` if `precomputed`."""
        outputs = self.forward_features(sound) if precomputed else self.forward_waveform(sound)
        digits, presence = outputs[:, : len(LABELS)], outputs[:, -1]
        if self.training:
            return ModelOutput(digits, presence)
        likeliest = digits.float().softmax(dim=1).amax(dim=1).clamp(_EPSILON, 1.0 - _EPSILON)
        presence = presence + PRESENCE_CONFIDENCE_WEIGHT * (likeliest / (1.0 - likeliest)).log()
        return ModelOutput(digits / self.temperature, presence)

    def forward_waveform(self, waveforms: Tensor) -> Tensor:
        """(B, 8000) -> (B, OUTPUTS): ten digit logits and the presence logit, without temperature."""
        raise NotImplementedError

    def features(self, waveforms: Tensor, inference: bool) -> Tensor | None:
        """(B, 8000) -> (B, ...) features before anything learnt or random, for evaluation mode if `inference`.

        None where a model has no such features.
        """
        return None

    def forward_features(self, features: Tensor) -> Tensor:
        """(B, ...) features for the model's mode -> (B, OUTPUTS), as `forward_waveform` of their waveforms."""
        raise NotImplementedError

    @property
    def is_stochastic(self) -> bool:
        """Whether features are random in training mode."""
        return True

    def set_augmentation(self, augmentation: AugmentationConfig) -> None:
        """Set the feature-level augmentation of training mode."""

    def fit_normalizer(self, features: Tensor) -> None:
        """Fit the normalisation, once before training, on `features` of the training clips, not augmented.

        A model without `features` gets the (N, 8000) waveforms.
        """

    def scaler(self) -> dict[str, list[float] | list[str]] | None:
        """The normalisation as JSON; None where there is none."""
        return None


def channels_last(network: nn.Module) -> None:
    """Use the memory format in which a CPU trains 2D convolutions faster."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def scale_width(channels: int, width: float) -> int:
    """`channels` times `width`, rounded to a multiple of 8."""
    return channels if width == 1.0 else max(8, 8 * round(channels * width / 8))


@dataclass(frozen=True)
class Pipeline:
    """A model with its name and recipe."""

    name: str
    build: Callable[..., DigitModel]  # takes a width unless it is 1
    recipe: Recipe
    temperature_power: float = 1.0  # of the temperature fitted on validation, whose voices the network knows

    def model(self, width: float = 1.0) -> DigitModel:
        """A new model, `width` times as wide as the pipeline's own."""
        return self.build() if width == 1.0 else self.build(width)
