"""What does augmentation cost of a CPU training step?

    python benchmarks/augmentation_cost.py [--steps 30] [--pipelines mfcc] [--setting noise_probability=1]

The trainer's own step (augmentation, network forward and back, optimiser, averaged weights) and augmentation alone
take turns on one thread, so that a busy machine slows both; medians are printed. Clips last as long as FSDD's do.
Leaves with 1 when augmentation takes more than half of a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from typing import Any

import torch

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE
from digit_detector.labels import PIPELINES
from ml_training.config import TrainConfig
from ml_training.data.augmentation import augment
from ml_training.pipelines import get_pipeline
from ml_training.training.batches import Clips
from ml_training.training.classification import build_model, train_model
from ml_training.training.trainer import NullCallback

LIMIT = 0.5
WARM_UP = 3  # steps that are not counted


def noisy_words(clips: int) -> Clips:
    """Clips of noise as long as FSDD's words: 0.44 s on average, 0.15 s at least."""
    generator = torch.Generator().manual_seed(0)
    seconds = 0.15 + torch.empty(clips).exponential_(1 / 0.29, generator=generator)
    lengths = (seconds * SAMPLE_RATE).long().clamp_max(NUM_SAMPLES)
    begin = torch.div(NUM_SAMPLES - lengths, 2, rounding_mode="floor")
    place = torch.arange(NUM_SAMPLES)
    inside = (place >= begin[:, None]) & (place < (begin + lengths)[:, None])
    waveforms = 0.1 * torch.randn(clips, NUM_SAMPLES, generator=generator) * inside
    return Clips(waveforms, lengths, torch.arange(clips) % 10)


class Watch(NullCallback):
    """Seconds of each step of a training and, in turns with them, of augmentation alone."""

    def __init__(self, clips: Clips, config: TrainConfig) -> None:
        self.clips, self.config = clips, config
        self.alone: list[float] = []
        self.whole: list[float] = []
        self.started = time.perf_counter()

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float, rate: float) -> None:
        ended = time.perf_counter()
        chosen = torch.randperm(len(self.clips))[: self.config.batch_size]
        with torch.no_grad():
            augment(self.clips.waveforms[chosen], self.clips.lengths[chosen], self.config.full_augmentation)
        self.whole.append(ended - self.started)
        self.started = time.perf_counter()
        self.alone.append(self.started - ended)


def measure(name: str, changes: dict[str, Any], steps: int) -> tuple[float, float]:
    """Median seconds of augmentation alone and of the whole step."""
    pipeline = get_pipeline(name)
    config = TrainConfig(pipeline=name, device="cpu", epochs=1).resolve(name, pipeline.recipe)
    config = dataclasses.replace(config, augmentation=dataclasses.replace(config.full_augmentation, **changes))
    clips = noisy_words((WARM_UP + steps) * (config.batch_size or 0))
    watch = Watch(clips, config)
    train_model(build_model(pipeline, config, clips), clips, noisy_words(10), config, callback=watch)
    return statistics.median(watch.alone[WARM_UP:]), statistics.median(watch.whole[WARM_UP:])


def main() -> int:
    parser = argparse.ArgumentParser(description="What augmentation costs of a CPU training step")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=PIPELINES)
    parser.add_argument("--setting", nargs="+", default=[], metavar="NAME=JSON", help="of augmentation, to be changed")
    args = parser.parse_args()
    pairs = (setting.partition("=") for setting in args.setting)
    changes = {name: tuple(v) if isinstance(v := json.loads(value), list) else v for name, _, value in pairs}
    torch.set_num_threads(1)
    worst = 0.0
    print("pipeline   augmentation   whole step   share")
    for name in args.pipelines:
        alone, whole = measure(name, changes, args.steps)
        worst = max(worst, alone / whole)
        print(f"{name:<10} {1e3 * alone:9.1f} ms {1e3 * whole:9.1f} ms {100 * alone / whole:6.0f} %", flush=True)
    print(f"(at most {100 * LIMIT:.0f} % wanted; medians of {args.steps} steps, one thread)")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
