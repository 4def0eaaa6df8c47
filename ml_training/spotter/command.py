"""From recordings to the spotter's file: what the door asks for."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from digit_detector.cli.live_line import LiveLine
from digit_detector.cli.signals import StopSignals
from digit_detector.errors import ConfigError
from digit_detector.files import unwritable
from digit_detector.spotter_file import spotter_metadata
from ml_training.config import TrainConfig
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.splits import split_corpus
from ml_training.spotter.data import load_spotter_data
from ml_training.spotter.export import export_spotter
from ml_training.spotter.scene import Scene
from ml_training.spotter.training import CHECKPOINT, SpotterConfig, Told, batch, train_spotter
from ml_training.training.seeding import cpu_threads

_LINES = 10  # reports, a line each, where no terminal shows a live one


def train_and_export(
    config: TrainConfig,
    chosen: Mapping[str, int],
    work: Path,
    out: Path,
    noise_dir: str | None,
    threads: int = 1,
    variants: int = 16,
    voices: int = 300,
) -> None:
    """Train on the training part of the recordings that `config` names and write `out`; checkpoints go to `work`.

    `chosen` are settings of SpotterConfig. Raises DataError, ConfigError, CheckpointError, ExportError, Interrupted.
    """
    settings = SpotterConfig(seed=config.seed, **chosen)
    faults = unwritable({"out": out, "work": work / CHECKPOINT})
    for name, number, least in (
        ("steps", settings.steps, 1), ("batch_size", settings.batch_size, 2), ("threads", threads, 1),
        ("variants", variants, 1), ("voices", voices, 1),
    ):  # fmt: skip
        if number < least:
            faults.append(f"{name}: expected a whole number from {least} on, got {number}")
    if faults:
        raise ConfigError(faults, "train-spotter")
    corpus = load_corpus(config, report=_say)
    split = split_corpus(corpus, config, report=_say)
    rows = np.sort(np.concatenate([split.train, split.validation]))
    _say(f"{corpus.name}: {len(rows)} recordings; making words of them")
    with cpu_threads(threads), StopSignals(unit="this step") as signals:
        material = load_spotter_data(corpus, rows, config.words_dir, noise_dir, config.seed, variants, voices)
        progress = _Progress(settings.steps)
        try:
            with signals.deferred():
                model = train_spotter(material, settings, work, progress, stop=signals)
        finally:
            progress.clear()
        sound, _, _ = batch(material, settings, Scene(), 0)
        with torch.no_grad():
            difference = export_spotter(
                model, out, spotter_metadata(material.name, material.data_hash, settings.steps, config.seed),
                sound[:4].reshape(-1).numpy(),
            )  # fmt: skip
    _say(f"{out}: {out.stat().st_size / 1000:.0f} kB, as the network to within {difference:.1g}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Progress:
    """How far a training is: a live line on a terminal, some plain ones elsewhere."""

    def __init__(self, steps: int) -> None:
        self._steps, self._began, self._first = steps, time.monotonic(), -1
        self._line = LiveLine()
        self._shown = 0

    def __call__(self, told: Told) -> None:
        if self._first < 0:
            self._first, self._began = told.step, time.monotonic()
        pace = (time.monotonic() - self._began) / max(1, told.step - self._first)
        line = (
            f"step {told.step} of {self._steps}, cost {told.cost:.3f}; {told.digits:.0%} of the frames after a digit "
            f"say it, {told.false:.1%} of the others say one; {int(pace * (self._steps - told.step)) // 60} min left"
        )
        if self._line.live:
            self._line.show(line)
        elif told.step * _LINES // self._steps > self._shown or told.step == self._steps:
            self._shown = told.step * _LINES // self._steps
            _say(line)

    def clear(self) -> None:
        self._line.clear()
