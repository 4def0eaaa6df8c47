"""Training of the spotter: strings made anew for every step, averaged weights, exact resume.

What a step learns from follows from (seed, step) alone, so a training that was killed goes on from its last checkpoint
and ends with the same weights.
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from digit_detector.errors import CheckpointError, Interrupted
from digit_detector.files import write_atomically
from digit_detector.spotter_file import HOP
from ml_training.spotter.data import SpotterData
from ml_training.spotter.model import Spotter
from ml_training.spotter.scene import Scene, heard
from ml_training.spotter.strings import SAMPLES, String, joined_string, spoken_string
from ml_training.spotter.targets import cost, said_right, stacked, targets
from ml_training.training.trainer import StopFlag

CHECKPOINT = "checkpoint.pt"
FRAMES = SAMPLES // HOP
_KEEPS = 100  # steps between checkpoints, and between reports


@dataclass(frozen=True)
class SpotterConfig:
    """What decides a training of the spotter."""

    steps: int = 8000
    batch_size: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    averaged: float = 0.998  # of the running mean of weights, how much stays at a step
    synthetic_strings: float = 0.18  # share of strings that espeak-ng says in one breath
    masked_bands: int = 8  # of mel bands at most, in half of the strings
    seed: int = 0


@dataclass(frozen=True)
class Told:
    """What is reported now and then."""

    step: int
    cost: float
    digits: float  # share of frames after a digit that say it
    false: float  # share of other frames that say one


def make_string(material: SpotterData, config: SpotterConfig, rng: np.random.Generator) -> String:
    if material.utterances and rng.random() < config.synthetic_strings:
        return spoken_string(material.utterances, rng)
    return joined_string(material.pool, rng)


def batch(material: SpotterData, config: SpotterConfig, scene: Scene, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T) sound, (B, F) classes and (B, F) durations of a step."""
    rng = np.random.default_rng((config.seed, step))
    torch.manual_seed(int(rng.integers(1 << 62)))
    strings = [make_string(material, config, rng) for _ in range(config.batch_size)]
    samples = torch.from_numpy(np.stack([string.samples for string in strings]))
    sounding = torch.zeros(samples.shape, dtype=torch.bool)
    for row, string in zip(sounding, strings, strict=True):
        for begin, end in string.sounds:
            row[max(0, begin) : max(0, end)] = True
    sound, silent = heard(samples, sounding, material.noises, scene)
    classes, durations = stacked(
        [targets([] if empty else s.digits, FRAMES) for s, empty in zip(strings, silent.tolist(), strict=True)]
    )
    return sound, classes, durations


def train_spotter(
    material: SpotterData,
    config: SpotterConfig,
    folder: Path,
    report: Callable[[Told], None],
    scene: Scene | None = None,
    stop: StopFlag | None = None,
) -> Spotter:
    """The trained network with averaged weights. Checkpoints lie in `folder`, from which a later call goes on.

    Raises CheckpointError where the one there is damaged or of other settings or material, Interrupted when `stop` asks
    for it; then a checkpoint is there.
    """
    scene = scene or Scene()
    torch.manual_seed(config.seed)
    model = Spotter()
    mean = copy.deepcopy(model).eval()
    decaying = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    identity = hashlib.sha256(repr((asdict(config), asdict(scene), material.data_hash)).encode()).hexdigest()
    kept = folder / CHECKPOINT
    first = _restore(kept, identity, model, mean, optimizer)
    said = (0.0, 0.0, 0.0)
    for step in range(first, config.steps):
        sound, classes, durations = batch(material, config, scene, step)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _slope(step, config.steps)
        model.train()
        heard_now = model.masked(sound, config.masked_bands)
        loss = cost(heard_now, classes, durations)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        _average(mean, model, min(config.averaged, (step + 1) / (step + 10)))
        right, false = said_right(heard_now, classes)
        now = (loss.item(), right.item(), false.item())
        said = now if step == first else tuple(0.98 * a + 0.02 * b for a, b in zip(said, now, strict=True))  # type: ignore[assignment]
        asked = stop.signum if stop is not None else None
        if (step + 1) % _KEEPS == 0 or step + 1 == config.steps or asked is not None:
            state = {
                "identity": identity, "step": step + 1, "model": model.state_dict(), "mean": mean.state_dict(),
                "optimizer": optimizer.state_dict(),
            }  # fmt: skip
            content = io.BytesIO()
            torch.save(state, content)
            write_atomically(kept, content.getvalue())
            report(Told(step + 1, *said))
        if asked is not None:
            raise Interrupted(asked)
    return mean


def _slope(step: int, steps: int) -> float:
    """Of the learning rate: warm up over a twentieth, then half a cosine."""
    warm = steps / 20
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


@torch.no_grad()
def _average(mean: Spotter, model: Spotter, share: float) -> None:
    for ours, theirs in zip(mean.state_dict().values(), model.state_dict().values(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, 1.0 - share)
        else:
            ours.copy_(theirs)


def _restore(file: Path, identity: str, model: Spotter, mean: Spotter, optimizer: torch.optim.Optimizer) -> int:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        return 0
    try:
        state = torch.load(file, weights_only=True)
    except Exception as error:  # what torch raises for damaged files has no narrower base
        raise CheckpointError(f"{file} is damaged: remove it to begin again") from error
    if not isinstance(state, dict) or state.get("identity") != identity:
        raise CheckpointError(f"{file} is of other settings or recordings: remove it, or train into another folder")
    model.load_state_dict(state["model"])
    mean.load_state_dict(state["mean"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
