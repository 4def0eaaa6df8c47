"""Training of the acoustic model on the shared trainer, from recordings to its file.

Every step trains on new utterances. An epoch is EPOCH steps; a checkpoint is written after each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from digit_detector.acoustic_file import BLANK, acoustic_metadata
from digit_detector.cli.live_line import LiveLine
from digit_detector.cli.signals import StopSignals
from digit_detector.errors import CheckpointError, ConfigError
from digit_detector.files import unwritable
from ml_training.acoustic.dataset import AcousticData, Source, draw_batch, load_acoustic_data
from ml_training.acoustic.export import export_acoustic
from ml_training.acoustic.model import AcousticModel, AcousticOutput
from ml_training.acoustic.scene import AcousticScene, render_scene
from ml_training.data.augmentation.noise import NoiseBank, generated_noise_bank, load_noise_bank
from ml_training.results import EpochRecord
from ml_training.training.checkpoint import BEST, CheckpointStore, RunIdentity, load_checkpoint, load_weights
from ml_training.training.seeding import cpu_threads
from ml_training.training.task import Task
from ml_training.training.trainer import Callback, NullCallback, StopFlag, Trainer, TrainerOptions

EPOCH = 100  # steps
_LINES = 20  # progress lines where standard error is not a terminal
_LEAST_TOKENS = 3  # by which the loss of a shorter utterance is divided


@dataclass(frozen=True)
class Batch:
    """B utterances of T samples in F blocks."""

    sound: Tensor  # (B, T)
    speech: Tensor  # (B, F) 1 in blocks of speech
    tokens: Tensor  # of all utterances, one after the other
    lengths: Tensor  # (B,) tokens of each


@dataclass(frozen=True)
class AcousticConfig:
    """Settings of a training. Raises ConfigError."""

    sources: tuple[Source, ...]
    noise: str | None = None  # folder of recordings without speech
    initial: str | None = None  # folder of an earlier training, whose weights this one starts from
    steps: int = 20000
    batch_seconds: float = 130.0  # of sound in a step
    threads: int = 1
    seed: int = 0
    learning_rate: float = 2.5e-3
    weight_decay: float = 0.02
    speech_weight: float = 0.2  # of the loss of speech activity
    mask: tuple[int, int] = (6, 4)  # the most mel bands and frames that SpecAugment masks
    channels: int = 128
    scene: AcousticScene = field(default_factory=AcousticScene)

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_seconds": 8.0, "threads": 1, "seed": 0, "channels": 8}
        faults = [
            f"{name}: expected a number from {value} on, got {getattr(self, name)}"
            for name, value in least.items() if not getattr(self, name) >= value
        ]  # fmt: skip
        if faults:
            raise ConfigError(faults, "train-live")


def read_config(file: Path, hold_out: Sequence[str] = (), **changes: Any) -> AcousticConfig:
    """The configuration of a JSON file, with `changes` of its settings. Raises ConfigError that names its faults.

    Rows of tables whose column `fold` is one of `hold_out` are left out.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror or error}"], str(file)) from error
    except ValueError as error:
        raise ConfigError([f"invalid JSON: {error}"], str(file)) from error
    if not isinstance(values, dict) or not isinstance(values.get("sources"), list):
        raise ConfigError(["expected an object with a list of sources"], str(file))
    try:
        sources = tuple(Source(**_as_tuples(source), hold_out=tuple(hold_out)) for source in values.pop("sources"))
        scene = AcousticScene(**_as_tuples(values.pop("scene", {})))
        return AcousticConfig(sources=sources, scene=scene, **{**_as_tuples(values), **changes})
    except TypeError as error:  # an unknown or missing setting
        raise ConfigError([str(error).replace("__init__() ", "")], str(file)) from error


def _as_tuples(values: Any) -> Any:
    """JSON lists as tuples."""
    if isinstance(values, dict):
        return {name: _as_tuples(value) for name, value in values.items()}
    return tuple(map(_as_tuples, values)) if isinstance(values, list) else values


class AcousticTask(Task):
    """Batches of new utterances; the accuracy is the share of them whose most probable tokens are all right."""

    def __init__(self, data: AcousticData, noises: Sequence[tuple[NoiseBank, float]], config: AcousticConfig) -> None:
        self.data, self.noises, self.config = data, noises, config

    def batch(self, step: int) -> Batch:
        rng = np.random.default_rng(int(torch.randint(1 << 62, ())))
        speech, active, tokens = draw_batch(self.data, self.config.batch_seconds, rng)
        sound, noise_only = render_scene(torch.from_numpy(speech), self.noises, self.config.scene)
        kept = [[] if silent else each for each, silent in zip(tokens, noise_only.tolist(), strict=True)]
        flat = torch.tensor([token for each in kept for token in each], dtype=torch.long)
        return Batch(
            sound, torch.from_numpy(active) * ~noise_only[:, None], flat, torch.tensor([len(each) for each in kept])
        )

    def forward(self, network: nn.Module, batch: Batch) -> AcousticOutput:
        return cast(AcousticOutput, network(batch.sound, True, self.config.mask))

    def loss(self, outputs: AcousticOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        count, blocks = outputs.speech.shape
        log_posteriors = outputs.logits.float().log_softmax(dim=2).transpose(0, 1)
        sizes = torch.full((count,), blocks)
        ctc = functional.ctc_loss(
            log_posteriors, batch.tokens, sizes, batch.lengths, BLANK, reduction="none", zero_infinity=True
        )
        loss = (ctc / batch.lengths.clamp_min(_LEAST_TOKENS)).mean()
        speech = functional.binary_cross_entropy_with_logits(outputs.speech, batch.speech)
        return loss + self.config.speech_weight * speech, _count_right(outputs.logits, batch)


def _count_right(logits: Tensor, batch: Batch) -> Tensor:
    """(2,) utterances whose most probable tokens are the ones said; all utterances."""
    best = logits.argmax(dim=2)
    starts = best != BLANK
    starts[:, 1:] &= best[:, 1:] != best[:, :-1]
    expected = torch.split(batch.tokens, batch.lengths.tolist())
    right = sum(torch.equal(row[start], tokens) for row, start, tokens in zip(best, starts, expected, strict=True))
    return torch.tensor([right, len(best)])


def train_acoustic(
    task: AcousticTask, work: Path, callback: Callback | None = None, stop: StopFlag | None = None
) -> AcousticModel:
    """The trained network with averaged weights; checkpoints go to `work`, from which a later call resumes.

    Raises CheckpointError where those are damaged or of other settings or data, Interrupted after a stop signal.
    """
    config = task.config
    torch.manual_seed(config.seed)
    model = AcousticModel(config.channels)
    if config.initial is not None:
        earlier = Path(config.initial, BEST)
        load_weights(model, load_checkpoint(earlier)["weights"], earlier)
    try:
        sources = hashlib.sha256(repr(config.sources).encode()).hexdigest()[:12]
        settings = {**asdict(config), "sources": sources, "threads": 0}  # another number of threads may resume
        store = CheckpointStore(work, RunIdentity("acoustic", settings, task.data.data_hash), _print)
        options = TrainerOptions(
            epochs=math.ceil(config.steps / EPOCH), steps_per_epoch=EPOCH, total_steps=config.steps, seed=config.seed,
            learning_rate=config.learning_rate, weight_decay=config.weight_decay, warm_up=0.03, clip_norm=1.0,
            ema_decay=0.998, resume="latest" if store.resumable else None,
        )  # fmt: skip
        training = Trainer(model, task, options, store=store, callback=callback, stop=stop).run()
    except CheckpointError as error:
        raise CheckpointError(f"{error} To start a new training, remove {work} or use another --work.") from error
    model.load_state_dict(training.best_weights)
    return model.eval()


def train_and_export(config: AcousticConfig, root: Path, work: Path, out: Path) -> None:
    """Train on the sources below `root` and write `out`; checkpoints go to `work`.

    Raises DataError, ConfigError, CheckpointError, ExportError, Interrupted.
    """
    if faults := unwritable({"out": out, "work": work / "checkpoint.pt"}):
        raise ConfigError(faults, "train-live")
    data = load_acoustic_data(root, config.sources)
    for corpus in data.corpora:
        _print(f"{corpus.source.folder}: {len(corpus.clips)} recordings")
    noises = [(generated_noise_bank(), 0.3)]
    if config.noise is not None:
        noises.append((load_noise_bank(str(root / config.noise)), 0.7))
        data = dataclasses.replace(data, data_hash=data.data_hash + noises[1][0].data_hash)
    with cpu_threads(config.threads), StopSignals(unit="this step") as signals:
        task = AcousticTask(data, noises, config)
        progress = _Progress(config.steps)
        try:
            with signals.deferred():
                model = train_acoustic(task, work, progress, signals)
        finally:
            progress.line.clear()
        metadata = acoustic_metadata(data.name, data.data_hash, config.steps, config.seed)
        torch.manual_seed(config.seed)
        difference = export_acoustic(model, out, metadata, task.batch(0).sound[:2].reshape(-1).numpy())
    _print(f"{out}: {out.stat().st_size / 1000:.0f} kB, differs from the network by at most {difference:.1g}")


class _Progress(NullCallback):
    """Shows a live line on a terminal, _LINES plain ones elsewhere."""

    def __init__(self, steps: int) -> None:
        self.steps, self.line = steps, LiveLine()

    def note(self, line: str) -> None:
        _print(line)

    def epoch(self, history: Sequence[EpochRecord], better: bool) -> None:
        record = history[-1]
        before, done = (record.epoch - 1) * EPOCH, min(record.epoch * EPOCH, self.steps)
        text = (
            f"step {done} of {self.steps}, loss {record.train_loss:.3f}, {record.train_accuracy:.0%} of utterances "
            f"right, {record.seconds / (done - before) * (self.steps - done) / 60:.0f} min left"
        )
        if self.line.live:
            self.line.show(text)
        elif done * _LINES // self.steps > before * _LINES // self.steps:
            _print(text)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
