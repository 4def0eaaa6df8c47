"""What every pipeline's model is: a module from waveforms to ten scores, and one for there being a digit at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from digit_detector.labels import LABELS
from ml_training.config import AugmentationConfig, Recipe

OUTPUTS = len(LABELS) + 1  # of a network
CERTAINTY = 0.6  # how much it tells of there being a digit when one of the ten stands out
_SURE = 1e-4  # nearer to 1 no probability counts


class Heard(NamedTuple):
    """What a model makes of B clips."""

    scores: Tensor  # (B, 10) logits of the digits
    digit: Tensor  # (B,) logit of there being a digit


class DigitModel(nn.Module):
    """(B, 8000) waveforms -> what was heard; features and their normalisation are part of it.

    A pipeline says how in `logits`. In evaluation mode the scores are divided by `temperature`, which is 1 until it
    is fitted after training, so that probabilities made of them mean what they say (Guo et al., 2017); and the logit of
    there being a digit gets CERTAINTY of the logit of the likeliest one's probability, because a sound that might be
    several digits is none more often than not.
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
        """(B, 8000) waveforms or, where they are `precomputed`, the features that `features` gives for them."""
        outputs = self.logits_of(sound) if precomputed else self.logits(sound)
        scores, digit = outputs[:, : len(LABELS)], outputs[:, -1]
        if self.training:
            return Heard(scores, digit)
        likeliest = scores.float().softmax(dim=1).amax(dim=1).clamp(_SURE, 1.0 - _SURE)
        return Heard(scores / self.temperature, digit + CERTAINTY * (likeliest / (1.0 - likeliest)).log())

    def logits(self, waveforms: Tensor) -> Tensor:
        """(B, 8000) -> (B, OUTPUTS): the digits' scores and the one for there being a digit, as the network says."""
        raise NotImplementedError

    def features(self, waveforms: Tensor, answering: bool) -> Tensor | None:
        """(B, 8000) -> (B, ...), all that is computed before anything learnt or random; None where that is nothing.

        What a model that answers takes, or else what one in training does where it varies nothing.
        """
        return None

    def logits_of(self, features: Tensor) -> Tensor:
        """(B, ...) features for the mode the model is in -> what `logits` says of their waveforms."""
        raise NotImplementedError

    @property
    def varies(self) -> bool:
        """Whether training mode computes features anew each time, at random."""
        return True

    def configure(self, augmentation: AugmentationConfig) -> None:
        """Choose the feature-level augmentation that training mode applies."""

    def fit_statistics(self, waveforms: Tensor) -> None:
        """Learn the features' normalisation from (N, 8000) training clips, once before training."""

    def fit_features(self, features: Tensor) -> None:
        """The same from their features, those of training that varies nothing; who normalises needs both."""

    def scaler(self) -> dict[str, list[float] | list[str]] | None:
        """The learned normalisation for people to read; None where there is none."""
        return None


def channels_last(network: nn.Module) -> None:
    """Lay the 2D convolutions out the way a CPU trains them faster."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def widened(channels: int, width: float) -> int:
    """So many channels in a network of another width: a multiple of 8, which processors compute best."""
    return channels if width == 1.0 else max(8, 8 * round(channels * width / 8))


@dataclass(frozen=True)
class Pipeline:
    """A row of the registry."""

    name: str
    build: Callable[..., DigitModel]  # takes a width, where it is not 1
    recipe: Recipe
    temperature_power: float = 1.0  # of the temperature that suits validation's voices, which the network knows

    def model(self, width: float = 1.0) -> DigitModel:
        """A new model, `width` times as wide as the pipeline's own."""
        return self.build() if width == 1.0 else self.build(width)
