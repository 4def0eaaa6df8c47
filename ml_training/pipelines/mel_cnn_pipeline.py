"""Log-mel spectrogram and a 2D CNN: (8000,) -> (64, 51) -> ten scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from digit_detector.labels import MEL_CNN
from ml_training.config import AugmentationConfig, Recipe
from ml_training.pipelines.base import OUTPUTS, DigitModel, Pipeline, channels_last, scale_width
from ml_training.pipelines.features import LogMel, SpecAugment, clamp_below_peak, normalise_level

BANDS = 64
RANGE_DB = 60.0  # what lies deeper below the peak is floor


class ResidualConv(nn.Module):
    """(B, C, M, F) -> (B, C', M', F'): 3 x 3 convolution, added to its input where shapes agree."""

    def __init__(self, channels: int, out: int, stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.residual = channels == out and stride == (1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        convolved = self.norm(self.convolution(maps))
        return functional.relu(convolved + maps if self.residual else convolved)


class TemporalMix(nn.Module):
    """(B, C, F) -> (B, C, F): depthwise convolution over time, then across channels, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            nn.Conv1d(channels, channels, 5, padding=2, groups=channels, bias=False),
            nn.Conv1d(channels, channels, 1, bias=False),
            nn.BatchNorm1d(channels), nn.ReLU(),
        )  # fmt: skip

    def forward(self, track: Tensor) -> Tensor:
        mixed: Tensor = self.mix(track)
        return track + mixed


class MelCnnClassifier(DigitModel):
    """Residual convolutions that fold frequency away, a temporal mix, mean and maximum over time."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        first, second, third, fourth, last = (scale_width(channels, width) for channels in (16, 24, 32, 48, 64))
        self.log_mel = LogMel(BANDS)
        self.spec_augment = SpecAugment(bands=8, frames=8)
        self.network = nn.Sequential(  # M x F beside each step
            nn.Conv2d(1, first, 5, (2, 1), padding=2, bias=False), nn.BatchNorm2d(first), nn.ReLU(),  # 32 x 51
            ResidualConv(first, second, (2, 2)), ResidualConv(second, second),  # 16 x 26
            ResidualConv(second, third, (2, 1)), ResidualConv(third, third),  # 8 x 26
            ResidualConv(third, fourth, (2, 1)), ResidualConv(fourth, fourth),  # 4 x 26
            nn.Conv2d(fourth, last, (4, 1), bias=False), nn.BatchNorm2d(last), nn.ReLU(),  # 1 x 26
            nn.Flatten(2), TemporalMix(last),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * last, OUTPUTS))
        channels_last(self.network)

    def set_augmentation(self, augmentation: AugmentationConfig) -> None:
        self.log_mel.warp_between(*augmentation.warps)
        self.spec_augment.enabled = augmentation.enabled and augmentation.spec_augment

    @property
    def is_stochastic(self) -> bool:
        return len(self.log_mel.warped) > 0

    def features(self, waveforms: Tensor, inference: bool = True) -> Tensor:
        """(B, 8000) -> (B, 64, 51), about -2 to 2, whatever the level of the recording."""
        relative = clamp_below_peak(self.log_mel(normalise_level(waveforms)), RANGE_DB)
        return (relative + RANGE_DB / 2) / (RANGE_DB / 4)

    def forward_waveform(self, waveforms: Tensor) -> Tensor:
        return self.forward_features(self.features(waveforms))

    def forward_features(self, features: Tensor) -> Tensor:
        spectrograms = self.spec_augment(features)
        track = self.network(spectrograms[:, None])  # (B, 64 at width 1, 26)
        logits: Tensor = self.head(torch.cat([track.mean(dim=2), track.amax(dim=2)], dim=1))
        return logits


PIPELINE = Pipeline(
    MEL_CNN, MelCnnClassifier, Recipe(epochs=48, batch_size=32, learning_rate=3e-3, weight_decay=0.02)
)  # fmt: skip
