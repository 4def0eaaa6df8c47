"""The interface of every pipeline's model: waveforms -> ten digit scores and a presence score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from digit_detector.labels import LABELS
from ml_training.config import AugmentationConfig, Recipe

OUTPUTS = len(LABELS) + 1  # of a network
CERTAINTY = 0.6  # weight of the likeliest digit's logit in the presence logit
_SURE = 1e-4  # probabilities are clamped to 1 - _SURE


class Heard(NamedTuple):
    """Outputs of a model for B clips."""

    scores: Tensor  # (B, 10) logits of the digits
    digit: Tensor  # (B,) logit of a digit being present


class DigitModel(nn.Module):
    """(B, 8000) waveforms -> Heard; features and their normalisation are part of the model.

    Subclasses define `logits`. In evaluation mode the scores are divided by `temperature`, fitted after training for
    calibrated probabilities (Guo et al., 2017), and the presence logit gets CERTAINTY times the logit of the likeliest
    digit's probability, because a sound that may be several digits is usually none.
    """

    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            raise TypeError(f"{cls.__name__} defines forward, which would lose the temperature: define logits instead")

    def forward(self, sound: Tensor, precomputed: bool = False) -> Heard:
        """(B, 8000) waveforms, or the output of `features` if `precomputed`."""
        outputs = self.logits_of(sound) if precomputed else self.logits(sound)
        scores, digit = outputs[:, : len(LABELS)], outputs[:, -1]
        if self.training:
            return Heard(scores, digit)
        likeliest = scores.float().softmax(dim=1).amax(dim=1).clamp(_SURE, 1.0 - _SURE)
        return Heard(scores / self.temperature, digit + CERTAINTY * (likeliest / (1.0 - likeliest)).log())

    def logits(self, waveforms: Tensor) -> Tensor:
        """(B, 8000) -> (B, OUTPUTS): ten digit scores and the presence logit, without temperature."""
        raise NotImplementedError

    def features(self, waveforms: Tensor, answering: bool) -> Tensor | None:
        """(B, 8000) -> (B, ...) features before anything learnt or random, for evaluation mode if `answering`.

        None where a model has no such features.
        """
        return None

    def logits_of(self, features: Tensor) -> Tensor:
        """(B, ...) features for the model's mode -> (B, OUTPUTS), as `logits` of their waveforms."""
        raise NotImplementedError

    @property
    def varies(self) -> bool:
        """Whether features are random in training mode."""
        return True

    def configure(self, augmentation: AugmentationConfig) -> None:
        """Set the feature-level augmentation of training mode."""

    def fit_statistics(self, waveforms: Tensor) -> None:
        """Fit the normalisation of the features on (N, 8000) training clips, once before training."""

    def fit_features(self, features: Tensor) -> None:
        """The same from precomputed features without augmentation; models that normalise define both."""

    def scaler(self) -> dict[str, list[float] | list[str]] | None:
        """The normalisation as JSON; None where there is none."""
        return None


def channels_last(network: nn.Module) -> None:
    """Use the memory format in which a CPU trains 2D convolutions faster."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def widened(channels: int, width: float) -> int:
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
