"""A corpus of tones and a network small enough to train in milliseconds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml_training.config import AugmentationConfig, TrainConfig
from ml_training.pipelines.base import DigitModel
from ml_training.training.setup import Clips


class TinyModel(DigitModel):
    """Mean energies of 40 stretches of the clip, then a dense layer: random in training, with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(40), nn.Linear(40, 32), nn.ReLU(), nn.Dropout(0.2), nn.BatchNorm1d(32), nn.Linear(32, 10)
        )

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.layers(F.avg_pool1d(waveforms.abs()[:, None, :], 200)[:, 0])


def tone_bursts(clips: int, seed: int = 0) -> Clips:
    """Clips whose digit is where in the second a burst of noise lies."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(clips) % 10
    waveforms = 0.02 * torch.randn(clips, 8000, generator=generator)
    for row, label in enumerate(labels.tolist()):
        waveforms[row, 800 * label : 800 * label + 800] += 0.2 * torch.randn(800, generator=generator)
    return Clips(waveforms, torch.full((clips,), 8000), labels)


def tiny_config(**changes: object) -> TrainConfig:
    settings: dict[str, object] = {
        "pipeline": "mfcc", "epochs": 4, "batch_size": 16, "learning_rate": 0.01, "weight_decay": 0.01,
        "augmentation": AugmentationConfig(speed=(1.0, 1.0), shift=0.0), "device": "cpu",
    }  # fmt: skip
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture
def train_clips() -> Clips:
    return tone_bursts(81)


@pytest.fixture
def validation_clips() -> Clips:
    return tone_bursts(20, seed=1)


@pytest.fixture
def tiny_model() -> TinyModel:
    torch.manual_seed(0)
    return TinyModel()
