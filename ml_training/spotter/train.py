"""Training of the spotter on the shared trainer, from recordings to its file.

Every step trains on new utterances. An epoch is EPOCH steps; a checkpoint is written after each.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from digit_detector.cli.live_line import LiveLine
from digit_detector.cli.signals import StopSignals
from digit_detector.errors import CheckpointError, ConfigError
from digit_detector.files import unwritable
from digit_detector.spotter_file import HOP, spotter_metadata
from ml_training.config import TrainConfig
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.splits import split_corpus
from ml_training.results import EpochRecord
from ml_training.spotter import dataset
from ml_training.spotter.dataset import SAMPLES, AcousticScene, SpotterData
from ml_training.spotter.export import export_spotter
from ml_training.spotter.model import Spotter, SpotterOutput
from ml_training.spotter.targets import count_frames, frame_targets, spotter_loss
from ml_training.training.checkpoint import CheckpointStore, RunIdentity
from ml_training.training.seeding import cpu_threads
from ml_training.training.task import Task
from ml_training.training.trainer import Callback, NullCallback, StopFlag, Trainer, TrainerOptions

EPOCH = 100  # steps
_LEAST = {"steps": 1, "batch_size": 2, "variants": 1, "voices": 1, "threads": 1}
_LINES = 10  # progress lines where standard error is not a terminal


Batch = tuple[Tensor, Tensor, Tensor]  # (B, T) sound, (B, F) classes, (B, F) log durations


@dataclass(frozen=True)
class SpotterConfig:
    """Settings of the spotter's training."""

    steps: int = 8000
    batch_size: int = 32
    variants: int = 16  # of each recorded word
    voices: int = 300  # synthetic
    threads: int = 1
    seed: int = 0
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    tts_ratio: float = 0.18  # share of utterances that are synthesised as a whole
    masked_bands: int = 8  # the largest number of mel bands that SpecAugment masks
    scene: AcousticScene = field(default_factory=AcousticScene)


class SpotterTask(Task):
    """Batches of new utterances; the accuracy is the recall of digit frames."""

    def __init__(self, data: SpotterData, config: SpotterConfig) -> None:
        self.data, self.config = data, config
        self.false_alarms = torch.zeros(2, dtype=torch.int64)  # of this epoch; all background frames

    def start_epoch(self, epoch: int, seed: int) -> None:
        self.false_alarms.zero_()

    def batch(self, step: int) -> Batch:
        data, config = self.data, self.config
        rng = np.random.default_rng(int(torch.randint(1 << 62, ())))
        utterances = [
            dataset.join_utterances(data.tts_utterances, rng)
            if data.tts_utterances and rng.random() < config.tts_ratio
            else dataset.join_words(data, rng)
            for _ in range(config.batch_size)
        ]
        speech = torch.from_numpy(np.stack([utterance.samples for utterance in utterances]))
        sound, noise_only = dataset.render_scene(speech, data.noises, config.scene)
        digits = [[] if empty else each.digits for each, empty in zip(utterances, noise_only.tolist(), strict=True)]
        targets = zip(*(frame_targets(each, SAMPLES // HOP) for each in digits), strict=True)
        classes, log_durations = (torch.from_numpy(np.stack(each)) for each in targets)
        return sound, classes, log_durations

    def forward(self, network: nn.Module, batch: Batch) -> SpotterOutput:
        return cast(SpotterOutput, network(batch[0], self.config.masked_bands))

    def loss(self, outputs: SpotterOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        _, classes, log_durations = batch
        recalled, false_alarms = count_frames(outputs, classes)
        self.false_alarms += false_alarms
        return spotter_loss(outputs, classes, log_durations), recalled


def train_spotter(
    task: SpotterTask, work: Path, callback: Callback | None = None, stop: StopFlag | None = None
) -> Spotter:
    """The trained network with averaged weights; checkpoints go to `work`, from which a later call resumes.

    Raises CheckpointError where those are damaged or of other settings or data, Interrupted after a stop signal.
    """
    config = task.config
    torch.manual_seed(config.seed)
    model = Spotter()
    try:
        if (old := work / "checkpoint.pt").exists():
            raise CheckpointError(f"{old} was written by version 0.1 and cannot be resumed.")
        store = CheckpointStore(work, RunIdentity("spotter", asdict(config), task.data.data_hash), _print)
        options = TrainerOptions(
            epochs=math.ceil(config.steps / EPOCH), steps_per_epoch=EPOCH, total_steps=config.steps, seed=config.seed,
            learning_rate=config.learning_rate, weight_decay=config.weight_decay, warm_up=0.05, clip_norm=2.0,
            ema_decay=0.998, resume="latest" if store.resumable else None,
        )  # fmt: skip
        training = Trainer(model, task, options, store=store, callback=callback, stop=stop).run()
    except CheckpointError as error:
        raise CheckpointError(f"{error} To start a new training, remove {work} or use another --work.") from error
    model.load_state_dict(training.best_weights)
    return model.eval()


def train_and_export(
    corpus_config: TrainConfig, config: SpotterConfig, work: Path, out: Path, noise_dir: str | None
) -> None:
    """Train on the training part of a corpus and write `out`; checkpoints go to `work`.

    Raises DataError, ConfigError, CheckpointError, ExportError, Interrupted.
    """
    faults = unwritable({"out": out, "work": work / "checkpoint.pt"})
    for name, least in _LEAST.items():
        if (value := getattr(config, name)) < least:
            faults.append(f"{name}: expected a whole number from {least} on, got {value}")
    if faults:
        raise ConfigError(faults, "train-spotter")
    corpus = load_corpus(corpus_config, report=_print)
    split = split_corpus(corpus, corpus_config, report=_print)
    rows = np.sort(np.concatenate([split.train, split.validation]))
    _print(f"{corpus.name}: {len(rows)} recordings; augmenting their words")
    with cpu_threads(config.threads), StopSignals(unit="this step") as signals:
        data = dataset.load_spotter_data(
            corpus, rows, corpus_config.non_digit_dir, noise_dir, config.seed, config.variants, config.voices
        )  # fmt: skip
        task = SpotterTask(data, config)
        progress = _Progress(task)
        try:
            with signals.deferred():
                model = train_spotter(task, work, progress, signals)
        finally:
            progress.line.clear()
        metadata = spotter_metadata(data.name, data.data_hash, config.steps, config.seed)
        difference = export_spotter(model, out, metadata, task.batch(0)[0][:4].reshape(-1).numpy())
    _print(f"{out}: {out.stat().st_size / 1000:.0f} kB, differs from the network by at most {difference:.1g}")


class _Progress(NullCallback):
    """Shows a live line on a terminal, _LINES plain ones elsewhere."""

    def __init__(self, task: SpotterTask) -> None:
        self.task, self.line = task, LiveLine()

    def note(self, line: str) -> None:
        _print(line)

    def epoch(self, history: Sequence[EpochRecord], better: bool) -> None:
        steps, record, (false, background) = self.task.config.steps, history[-1], self.task.false_alarms.tolist()
        before, done = (record.epoch - 1) * EPOCH, min(record.epoch * EPOCH, steps)
        text = (
            f"step {done} of {steps}, loss {record.train_loss:.3f}, {record.train_accuracy:.0%} of digit frames right, "
            f"{false / max(1, background):.1%} of background frames wrong, "
            f"{record.seconds / (done - before) * (steps - done) / 60:.0f} min left"
        )
        if self.line.live:
            self.line.show(text)
        elif done * _LINES // steps > before * _LINES // steps:
            _print(text)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
