"""MFCC statistics and a dense network: (8000,) -> (156,) -> ten scores.

13 MFCC with first and second derivatives, summarised over the frames of the word: mean, cosine transform over the word,
standard deviations and extremes. Frames are weighted by amplitude, so silence around a word has no influence; frames
far below the loudest one are excluded from extremes. Time in the word is the share of amplitude before a frame, so slow
and fast words have the same course.

In evaluation mode three filter banks (a longer and a shorter vocal tract beside the original) give three outputs, which
are averaged: test-time augmentation that costs little, because the banks share one spectrogram.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from digit_detector.labels import MFCC
from ml_training.config import AugmentationConfig, Recipe
from ml_training.pipelines.base import OUTPUTS, DigitModel, Pipeline, scale_width
from ml_training.pipelines.features import (
    AMIN,
    Deltas,
    LogMel,
    clamp_below_peak,
    dct_matrix,
    full_precision,
    mel_filters,
    normalise_level,
    power_to_db,
)

BANDS = 20  # few and broad, so that the pitch of a voice does not show between its harmonics
CEPSTRA = 13
COURSES = 3  # cosines over the word, of half a turn, a whole one, and so on
STATISTICS = (
    "mean_mfcc", *(f"cosine{k}_mfcc" for k in range(1, COURSES + 1)), "std_mfcc", "std_delta", "std_delta2",
    "max_mfcc", "max_delta", "max_delta2", "min_mfcc", "min_delta",
)  # fmt: skip
FEATURES = CEPSTRA * len(STATISTICS)
RANGE_DB = 50.0  # what lies deeper below the peak is floor
WORD_DB = 20.0  # a frame this far below the loudest is half an extreme
SOFTNESS_DB = 5.0  # how gradually frames stop being extremes
VOICES = (0.88, 1.0, 1.13)  # vocal-tract factors of evaluation
OUTLIER = 6.0  # standard deviations at which a feature is cut


class MfccStatistics(nn.Module):
    """(B, 8000) -> (B, 156): STATISTICS, 13 of each."""

    dct: Tensor
    voices: Tensor
    turns: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.log_mel = LogMel(BANDS)
        turns = math.pi * torch.arange(1.0, COURSES + 1)[:, None]
        self.register_buffer("turns", turns, persistent=False)
        self.register_buffer("voices", torch.stack([mel_filters(BANDS, factor) for factor in VOICES]), persistent=False)
        self.deltas = Deltas()
        self.register_buffer("dct", dct_matrix(BANDS, CEPSTRA), persistent=False)

    def mfcc(self, log_mel: Tensor) -> Tensor:
        """(B, M, F) in dB -> (B, 13, F)."""
        return torch.matmul(self.dct, log_mel)

    @full_precision
    def forward(self, waveforms: Tensor) -> Tensor:
        return self._summary(self.log_mel.power(normalise_level(waveforms)))

    @full_precision
    def by_voice(self, waveforms: Tensor) -> Tensor:
        """(B, 8000) -> (B * V, 156): the statistics by each of VOICES, those of a clip side by side."""
        return self._summary(self.log_mel.power_by_banks(normalise_level(waveforms), self.voices).flatten(0, 1))

    def _summary(self, power: Tensor) -> Tensor:
        """Mel power (B, M, F) -> (B, 156)."""
        level = power_to_db(power.clamp_min(AMIN).sum(dim=1, keepdim=True))  # (B, 1, F), of each frame
        depth = level - level.amax(dim=2, keepdim=True)
        amplitude = (depth * (math.log(10.0) / 20.0)).exp()
        share = amplitude / amplitude.sum(dim=2, keepdim=True)  # (B, 1, F)
        cepstra = self.mfcc(clamp_below_peak(power_to_db(power), RANGE_DB))
        tracks = torch.cat([cepstra, *self.deltas(cepstra)], dim=1)  # (B, 39, F)
        mean = torch.matmul(tracks, share.transpose(1, 2))  # (B, 39, 1)
        variance = torch.matmul((tracks - mean).square(), share.transpose(1, 2))
        place = share.cumsum(dim=2) - 0.5 * share  # 0 to 1, from the beginning of the word to its end
        courses = torch.matmul((self.turns * place).cos() * share, cepstra.transpose(1, 2))  # (B, COURSES, 13)
        outside = 100.0 * (1.0 - torch.sigmoid((depth + WORD_DB) / SOFTNESS_DB))  # penalty of quiet frames in extremes
        return torch.cat(
            [
                mean[:, :CEPSTRA, 0], courses.flatten(1), variance.clamp_min(1e-8).sqrt().squeeze(2),
                (tracks - outside).amax(dim=2), (tracks + outside)[:, : 2 * CEPSTRA].amin(dim=2),
            ],
            dim=1,
        )  # fmt: skip


class MfccClassifier(DigitModel):
    """Standardised statistics through two hidden layers."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        first, second = (scale_width(units, width) for units in (320, 160))
        self.statistics = MfccStatistics()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(FEATURES))
        self.network = nn.Sequential(
            nn.Linear(FEATURES, first), nn.BatchNorm1d(first), nn.SiLU(), nn.Dropout(0.25),
            nn.Linear(first, second), nn.BatchNorm1d(second), nn.SiLU(), nn.Dropout(0.25),
            nn.Linear(second, OUTPUTS),
        )  # fmt: skip

    def set_augmentation(self, augmentation: AugmentationConfig) -> None:
        self.statistics.log_mel.warp_between(*augmentation.warps)

    def fit_normalizer(self, features: Tensor) -> None:
        self.mean.copy_(features.mean(dim=0))
        self.scale.copy_(features.std(dim=0).clamp_min(1e-3))

    @property
    def is_stochastic(self) -> bool:
        return len(self.statistics.log_mel.warped) > 0

    def features(self, waveforms: Tensor, inference: bool) -> Tensor:
        if not inference:
            plain: Tensor = self.statistics(waveforms)
            return plain
        return torch.unflatten(self.statistics.by_voice(waveforms), 0, (-1, len(VOICES)))

    def forward_waveform(self, waveforms: Tensor) -> Tensor:
        return self._outputs(self.statistics(waveforms) if self.training else self.statistics.by_voice(waveforms))

    def forward_features(self, features: Tensor) -> Tensor:
        return self._outputs(features if self.training else features.flatten(0, 1))

    def _outputs(self, statistics: Tensor) -> Tensor:
        """(B, 156), or (B * V, 156) in evaluation mode -> (B, OUTPUTS)."""
        logits: Tensor = self.network(((statistics - self.mean) / self.scale).clamp(-OUTLIER, OUTLIER))
        return logits if self.training else torch.unflatten(logits, 0, (-1, len(VOICES))).mean(dim=1)

    def scaler(self) -> dict[str, list[float] | list[str]]:
        names = [f"{statistic}{i}" for statistic in STATISTICS for i in range(CEPSTRA)]
        return {"features": names, "mean": self.mean.tolist(), "scale": self.scale.tolist()}


PIPELINE = Pipeline(
    MFCC,
    MfccClassifier,
    Recipe(epochs=90, batch_size=64, learning_rate=3e-3, weight_decay=0.02),
    temperature_power=0.7,
)
