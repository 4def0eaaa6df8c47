"""Clips of noise bursts and a network small enough to train in milliseconds; as a script, a training that ends badly.

    python tiny.py FOLDER ACTION EPOCH STEP

trains in FOLDER and, when that step is done, sends itself the signal ACTION or, for full_disk,
allows itself no file above a few bytes. Exits with the code of a command.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digit_detector.cli.signals import StopSignals
from digit_detector.errors import CheckpointError, Interrupted
from ml_training.config import AugmentationConfig, Recipe, TrainConfig
from ml_training.data.corpus import NOT_A_DIGIT, Corpus
from ml_training.pipelines.base import OUTPUTS, DigitModel, Pipeline
from ml_training.results import SkippedClip
from ml_training.training.batches import Clips
from ml_training.training.checkpoint import CheckpointStore
from ml_training.training.classification import run_identity, train_model
from ml_training.training.seeding import step_seed
from ml_training.training.trainer import NullCallback, Training

DATA_HASH = "0123456789abcdef"
AUGMENTATION = AugmentationConfig(  # a burst that moved would be another digit, a noise that comes and goes is a burst
    speed=(1.0, 1.0), time_shift=0.0, snr_db=(5.0, 50.0), procedural_ratio=0.0
)  # fmt: skip


class TinyModel(DigitModel):
    """Mean energies of 40 stretches of the clip, then dense layers: random in training, with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(40), nn.Linear(40, 32), nn.ReLU(), nn.Dropout(0.2), nn.BatchNorm1d(32),
            nn.Linear(32, OUTPUTS),
        )  # fmt: skip

    def forward_waveform(self, waveforms: Tensor) -> Tensor:
        return self.layers(F.avg_pool1d(waveforms.abs()[:, None, :], 200)[:, 0])


class DivergingModel(TinyModel):
    """Gives NaN in the training steps (epoch, step from 0, rollbacks) that `bad` names."""

    def __init__(self, *bad: tuple[int, int, int]) -> None:
        super().__init__()
        self.bad = {step_seed(0, *place) for place in bad}

    def forward_waveform(self, waveforms: Tensor) -> Tensor:
        scores = super().forward_waveform(waveforms)
        return scores * float("nan") if self.training and torch.initial_seed() in self.bad else scores


TINY = Pipeline("mfcc", TinyModel, Recipe(4, 16, 0.01, 0.01, AUGMENTATION), temperature_power=0.7)


def bursts(clips: int, seed: int = 0) -> Clips:
    """Clips whose digit is the tenth of the second in which a burst of noise lies."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(clips) % 10
    waveforms = 0.02 * torch.randn(clips, 8000, generator=generator)
    for row, label in enumerate(labels.tolist()):
        waveforms[row, 800 * label : 800 * label + 800] += 0.2 * torch.randn(800, generator=generator)
    return Clips(waveforms, torch.full((clips,), 8000), labels)


def corpus(synthetic: bool = False) -> Corpus:
    """160 clips of bursts: ten digits, two speakers, recordings 0 to 7."""
    clips, rows = bursts(160), range(160)
    speakers = tuple(("ann", "ben")[row // 10 % 2] for row in rows)
    indices = [row // 20 for row in rows]
    waveforms = clips.waveforms.numpy()
    return Corpus(
        name="bursts", waveforms=waveforms, lengths=clips.lengths.numpy(), labels=clips.labels.numpy(),
        speakers=speakers, indices=torch.tensor(indices).numpy(),
        files=tuple(f"{row % 10}_{speakers[row]}_{indices[row]}.wav" for row in rows),
        data_hash=hashlib.sha256(waveforms.tobytes()).hexdigest(), synthetic=synthetic, official_split=True,
        skipped=(SkippedClip("5_ann_9.wav", "digital silence"),),
    )  # fmt: skip


def hisses(clips: int, seed: int = 2) -> Clips:
    """Clips of steady noise, which is no digit."""
    generator = torch.Generator().manual_seed(seed)
    waveforms = 0.08 * torch.randn(clips, 8000, generator=generator)
    return Clips(waveforms, torch.full((clips,), 8000), torch.full((clips,), NOT_A_DIGIT))


def both(digits: int, others: int, seed: int = 0) -> Clips:
    """Bursts and hisses, shuffled."""
    first, second = bursts(digits, seed), hisses(others, seed + 2)
    order = torch.randperm(digits + others, generator=torch.Generator().manual_seed(seed))
    pairs = ((first.waveforms, second.waveforms), (first.lengths, second.lengths), (first.labels, second.labels))
    return Clips(*(torch.cat(pair)[order] for pair in pairs))


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"device": "cpu", "negative_ratio": 0.0, **changes}).resolve("mfcc", TINY.recipe)


def store(folder: Path, settings: TrainConfig, **kwargs: Any) -> CheckpointStore:
    return CheckpointStore(folder, run_identity("mfcc", settings, DATA_HASH), **kwargs)


def train(
    settings: TrainConfig,
    folder: Path | None = None,
    build: Callable[[], nn.Module] = TinyModel,
    others: int = 0,
    **kwargs: Any,
) -> Training:
    """Train on 81 clips (five steps, the last clip of each epoch left out), validate on 20; hisses beside both."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if folder is not None:
        kwargs["store"] = store(folder, settings)
    if not others:
        return train_model(build(), bursts(81), bursts(20, seed=1), settings, **kwargs)
    return train_model(build(), both(81, others), both(20, others, seed=1), settings, **kwargs)


class At(NullCallback):
    """Does something when one step is done."""

    def __init__(self, epoch: int, step: int, action: Any) -> None:
        self.place, self.action = (epoch, step), action

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float, rate: float) -> None:
        if (epoch, step) == self.place:
            self.action()


def main() -> int:
    folder, action, epoch, step = sys.argv[1:]

    def act() -> None:
        if action == "full_disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        else:
            os.kill(os.getpid(), signal.Signals[action])

    try:
        with StopSignals() as signals, signals.deferred():
            train(config(), Path(folder), callback=At(int(epoch), int(step), act), stop=signals)
    except Interrupted as stopped:
        return stopped.exit_code
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
