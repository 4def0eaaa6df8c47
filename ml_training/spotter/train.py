"""Training of the spotter, from recordings to its file.

Every step trains on new utterances that follow from (seed, step), so a training that was killed resumes from its last
checkpoint and ends with the same weights.
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from digit_detector.cli.live_line import LiveLine
from digit_detector.cli.signals import StopSignals
from digit_detector.errors import CheckpointError, ConfigError, Interrupted
from digit_detector.files import unwritable, write_atomically
from digit_detector.spotter_file import HOP, spotter_metadata
from ml_training.config import TrainConfig
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.splits import split_corpus
from ml_training.spotter.dataset import (
    SAMPLES,
    AcousticScene,
    SpotterData,
    join_utterances,
    join_words,
    load_spotter_data,
    render_scene,
)
from ml_training.spotter.export import export_spotter
from ml_training.spotter.model import Spotter
from ml_training.spotter.targets import frame_recall_and_false_rate, frame_targets, spotter_loss
from ml_training.training.trainer import StopFlag
from ml_training.training.seeding import cpu_threads

CHECKPOINT = "checkpoint.pt"
FRAMES = SAMPLES // HOP
_CHECKPOINT_STEPS = 100  # between checkpoints, and between reports
_LINES = 10  # reports where standard error is not a terminal


@dataclass(frozen=True)
class SpotterConfig:
    """Hyperparameters of the spotter's training."""

    steps: int = 8000
    batch_size: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    ema_decay: float = 0.998
    tts_share: float = 0.18  # share of utterances that espeak-ng speaks as a whole
    masked_bands: int = 8  # the largest number of mel bands that SpecAugment masks
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """Running means of a training."""

    step: int
    loss: float
    recall: float  # share of digit frames that are classified as their digit
    false_rate: float  # share of background frames that are classified as a digit


def make_batch(
    data: SpotterData, config: SpotterConfig, scene: AcousticScene, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T) sound, (B, F) classes and (B, F) log durations; seeds torch's global generator from `rng`."""
    torch.manual_seed(int(rng.integers(1 << 62)))
    utterances = [
        join_utterances(data.tts_utterances, rng)
        if data.tts_utterances and rng.random() < config.tts_share
        else join_words(data, rng)
        for _ in range(config.batch_size)
    ]
    active = torch.zeros(config.batch_size, SAMPLES, dtype=torch.bool)
    for row, utterance in zip(active, utterances, strict=True):
        for first, last in utterance.active:
            row[first:last] = True
    speech = torch.from_numpy(np.stack([utterance.samples for utterance in utterances]))
    sound, noise_only = render_scene(speech, active, data.noises, scene)
    targets = [
        frame_targets([] if empty else utterance.digits, FRAMES)
        for utterance, empty in zip(utterances, noise_only.tolist(), strict=True)
    ]
    classes, log_durations = (torch.from_numpy(np.stack(each)) for each in zip(*targets, strict=True))
    return sound, classes, log_durations


def train_spotter(
    data: SpotterData,
    config: SpotterConfig,
    folder: Path,
    report: Callable[[Report], None],
    scene: AcousticScene | None = None,
    stop: StopFlag | None = None,
) -> Spotter:
    """The trained network with averaged weights; checkpoints go to `folder`, from which a later call resumes.

    Raises CheckpointError where the checkpoint is damaged or of other settings or data, Interrupted after a stop signal
    when a checkpoint is written.
    """
    scene = scene or AcousticScene()
    torch.manual_seed(config.seed)
    model = Spotter()
    averaged = copy.deepcopy(model).eval()
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    identity = hashlib.sha256(repr((asdict(config), asdict(scene), data.data_hash)).encode()).hexdigest()
    checkpoint = folder / CHECKPOINT
    first = _restore(checkpoint, identity, model, averaged, optimizer)
    means = (0.0, 0.0, 0.0)
    for step in range(first, config.steps):
        sound, classes, log_durations = make_batch(data, config, scene, np.random.default_rng((config.seed, step)))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.steps)
        model.train()
        output = model(sound, config.masked_bands)
        loss = spotter_loss(output, classes, log_durations)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        _average(averaged, model, min(config.ema_decay, (step + 1) / (step + 10)))
        recall, false_rate = frame_recall_and_false_rate(output, classes)
        now = (loss.item(), recall.item(), false_rate.item())
        means = now if step == first else tuple(0.98 * a + 0.02 * b for a, b in zip(means, now, strict=True))  # type: ignore[assignment]
        signum = stop.signum if stop is not None else None
        if (step + 1) % _CHECKPOINT_STEPS == 0 or step + 1 == config.steps or signum is not None:
            state = {
                "identity": identity, "step": step + 1, "model": model.state_dict(), "averaged": averaged.state_dict(),
                "optimizer": optimizer.state_dict(),
            }  # fmt: skip
            content = io.BytesIO()
            torch.save(state, content)
            write_atomically(checkpoint, content.getvalue())
            report(Report(step + 1, *means))
        if signum is not None:
            raise Interrupted(signum)
    return averaged


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: warm-up over a twentieth of the steps, then half a cosine."""
    warm = steps / 20
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


@torch.no_grad()
def _average(averaged: Spotter, model: Spotter, decay: float) -> None:
    for mean, value in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1.0 - decay)
        else:
            mean.copy_(value)


def _restore(file: Path, identity: str, model: Spotter, averaged: Spotter, optimizer: torch.optim.Optimizer) -> int:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        return 0
    try:
        state = torch.load(file, weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        raise CheckpointError(f"{file} is damaged: remove it to start again") from error
    if not isinstance(state, dict) or state.get("identity") != identity:
        raise CheckpointError(f"{file} is of other settings or recordings: remove it, or train into another folder")
    model.load_state_dict(state["model"])
    averaged.load_state_dict(state["averaged"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def train_and_export(
    config: TrainConfig,
    settings: Mapping[str, int],
    work: Path,
    out: Path,
    noise_dir: str | None,
    threads: int = 1,
    variants: int = 16,
    voices: int = 300,
) -> None:
    """Train on the training part of the recordings that `config` names and write `out`; checkpoints go to `work`.

    `settings` are fields of SpotterConfig. Raises DataError, ConfigError, CheckpointError, ExportError, Interrupted.
    """
    spotter_config = SpotterConfig(seed=config.seed, **settings)
    faults = unwritable({"out": out, "work": work / CHECKPOINT})
    for name, number, least in (
        ("steps", spotter_config.steps, 1), ("batch_size", spotter_config.batch_size, 2), ("threads", threads, 1),
        ("variants", variants, 1), ("voices", voices, 1),
    ):  # fmt: skip
        if number < least:
            faults.append(f"{name}: expected a whole number from {least} on, got {number}")
    if faults:
        raise ConfigError(faults, "train-spotter")
    corpus = load_corpus(config, report=_print)
    split = split_corpus(corpus, config, report=_print)
    rows = np.sort(np.concatenate([split.train, split.validation]))
    _print(f"{corpus.name}: {len(rows)} recordings; augmenting their words")
    with cpu_threads(threads), StopSignals(unit="this step") as signals:
        data = load_spotter_data(corpus, rows, config.words_dir, noise_dir, config.seed, variants, voices)
        progress = _Progress(spotter_config.steps)
        try:
            with signals.deferred():
                model = train_spotter(data, spotter_config, work, progress, stop=signals)
        finally:
            progress.clear()
        sound, _, _ = make_batch(data, spotter_config, AcousticScene(), np.random.default_rng(config.seed))
        metadata = spotter_metadata(data.name, data.data_hash, spotter_config.steps, config.seed)
        difference = export_spotter(model, out, metadata, sound[:4].reshape(-1).numpy())
    _print(f"{out}: {out.stat().st_size / 1000:.0f} kB, differs from the network by at most {difference:.1g}")


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Progress:
    """Shows a live line on a terminal, _LINES plain ones elsewhere."""

    def __init__(self, steps: int) -> None:
        self._steps, self._began, self._first = steps, time.monotonic(), -1
        self._line = LiveLine()
        self._shown = 0

    def __call__(self, report: Report) -> None:
        if self._first < 0:
            self._first, self._began = report.step, time.monotonic()
        pace = (time.monotonic() - self._began) / max(1, report.step - self._first)
        minutes = int(pace * (self._steps - report.step)) // 60
        line = (
            f"step {report.step} of {self._steps}, loss {report.loss:.3f}, {report.recall:.0%} of digit frames right, "
            f"{report.false_rate:.1%} of background frames wrong, {minutes} min left"
        )
        if self._line.live:
            self._line.show(line)
        elif report.step * _LINES // self._steps > self._shown or report.step == self._steps:
            self._shown = report.step * _LINES // self._steps
            _print(line)

    def clear(self) -> None:
        self._line.clear()
