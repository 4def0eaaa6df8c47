"""Raw waveform and a 1D CNN: (8000,) -> (8000,) -> ten scores.

The first layer is a bank of learned filters in quadrature pairs; each pair's power, averaged over
20 ms and in dB, is a track that the following convolutions read. It starts as Gabor filters on the mel
scale and is trained with the rest (compare LEAF, Zeghidour et al., 2021).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from digit_detector.audio import SAMPLE_RATE
from digit_detector.labels import RAW_CNN
from ml_training.config import AugmentationConfig, Recipe
from ml_training.pipelines.base import OUTPUTS, DigitModel, Pipeline, channels_last, scale_width
from ml_training.pipelines.features import (
    AMIN,
    SpecAugment,
    clamp_below_peak,
    full_precision,
    hz_to_mel,
    mel_to_hz,
    normalise_level,
)

FILTERS = 48
TAPS = 256
STRIDE = 40  # 5 ms
POOLED = 4  # strides averaged into one frame of 20 ms
LOWEST, HIGHEST = 60.0, 3900.0  # Hz, band of the initial filters
RANGE_DB = 50.0  # what lies deeper below the peak is floor


def gabor_filters() -> Tensor:
    """(2 x FILTERS, 1, TAPS): cosine and sine of each centre frequency under a Gaussian.

    Centres are evenly spaced in mel; the width follows the spacing, as far as the taps reach.
    """
    limits = hz_to_mel(np.array([LOWEST, HIGHEST]))
    edges = mel_to_hz(np.linspace(limits[0], limits[1], FILTERS + 2))
    centres, widths = edges[1:-1], (edges[2:] - edges[:-2]) / 2
    time = (np.arange(TAPS) - (TAPS - 1) / 2) / SAMPLE_RATE
    deviation = np.minimum(1.0 / (2 * math.pi * 0.6 * widths), TAPS / SAMPLE_RATE / 5)
    envelope = np.exp(-0.5 * (time / deviation[:, None]) ** 2)
    envelope /= envelope.sum(axis=1, keepdims=True)
    phase = 2 * math.pi * centres[:, None] * time
    pairs = np.concatenate([envelope * np.cos(phase), envelope * np.sin(phase)])
    return torch.from_numpy(pairs.astype(np.float32))[:, None, :]


class FilterBank(nn.Module):
    """(B, 8000) -> (B, FILTERS, 50): level of each learned band in dB, every 20 ms."""

    def __init__(self) -> None:
        super().__init__()
        # Of unit size, so that a step of the optimiser changes a filter a little, not altogether.
        self.filters = nn.Parameter(gabor_filters() * TAPS)

    @full_precision
    def forward(self, waveforms: Tensor) -> Tensor:
        pairs = functional.conv1d(waveforms[:, None, :], self.filters / TAPS, stride=STRIDE, padding=TAPS // 2)
        power = pairs[:, :FILTERS].square() + pairs[:, FILTERS:].square()
        return 10.0 * torch.log10(functional.avg_pool1d(power, POOLED).clamp_min(AMIN))


def conv_over_time(channels: int, out: int, width: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 1D convolution over (B, C, 1, F); as a 2D one it takes channels last, which a CPU trains faster."""
    return nn.Conv2d(
        channels, out, (1, width), (1, stride), padding=(0, width // 2), groups=groups, bias=False
    )  # fmt: skip


class SeparableConv(nn.Module):
    """(B, C, 1, F) -> (B, C', 1, F'): depthwise over time, then across channels; residual where shapes agree."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_over_time(channels, channels, 5, stride, groups=channels), nn.BatchNorm2d(channels),
            conv_over_time(channels, out, 1), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.residual = channels == out and stride == 1

    def forward(self, track: Tensor) -> Tensor:
        mixed = self.layers(track)
        return functional.relu(mixed + track if self.residual else mixed)


class BandMix(nn.Module):
    """(B, FILTERS, F) -> (B, 192, 1, F): 1D convolutions along the bands of each frame, the same in all of them.

    A pattern that lies a few bands higher in another voice is then the same pattern, shifted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, (7, 1), (2, 1), padding=(3, 0), bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, (5, 1), (2, 1), padding=(2, 0), bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip

    def forward(self, levels: Tensor) -> Tensor:
        maps: Tensor = self.layers(levels[:, None])  # (B, 16, 12, F)
        return maps.flatten(1, 2)[:, :, None]


class RawCnnClassifier(DigitModel):
    """Learned filter bank, convolutions along its bands, then along time; mean and maximum."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        first, last = scale_width(96, width), scale_width(128, width)
        self.filter_bank = FilterBank()
        self.spec_augment = SpecAugment(bands=6, frames=8)
        self.network = nn.Sequential(
            BandMix(), conv_over_time(192, first, 3), nn.BatchNorm2d(first), nn.ReLU(),
            SeparableConv(first, first), SeparableConv(first, first, stride=2), SeparableConv(first, first),
            SeparableConv(first, last), SeparableConv(last, last), nn.Flatten(2),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * last, OUTPUTS))
        channels_last(self.network)

    def set_augmentation(self, augmentation: AugmentationConfig) -> None:
        self.spec_augment.enabled = augmentation.enabled and augmentation.spec_augment

    def forward_waveform(self, waveforms: Tensor) -> Tensor:
        levels = clamp_below_peak(self.filter_bank(normalise_level(waveforms)), RANGE_DB)
        track = self.network(self.spec_augment((levels + RANGE_DB / 2) / (RANGE_DB / 4)))  # (B, 128 at width 1, 25)
        logits: Tensor = self.head(torch.cat([track.mean(dim=2), track.amax(dim=2)], dim=1))
        return logits


PIPELINE = Pipeline(
    RAW_CNN, RawCnnClassifier, Recipe(epochs=38, batch_size=32, learning_rate=3e-3, weight_decay=0.02)
)  # fmt: skip
