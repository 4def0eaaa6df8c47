"""Recorded background noise from a folder, in memory once, and random sample_noise of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, decode_sound
from digit_detector.errors import AudioError, DataError
from ml_training.data import feature_cache
from ml_training.data.augmentation import procedural_noise
from ml_training.data.augmentation.procedural_noise import SAMPLES, generated_sounds
from ml_training.data.checks import noise_files
from ml_training.data.feature_cache import Block, Key
from ml_training.results import Floats

_FRAME = SAMPLE_RATE // 50
_SILENCE_DB = -60.0  # below the loudest frame; such ends are cut off
_QUIETEST = 0.03  # an excerpt 30 dB below its recording is a pause, and is not raised any further


@dataclass(frozen=True, eq=False)
class NoiseBank:
    """R recordings one after the other, each of unit power and at least a second long."""

    samples: Tensor  # (S,)
    starts: Tensor  # (R,) int64
    choices: Tensor  # (R,) how many places an excerpt of each may start at
    files: tuple[str, ...]  # R names relative to the folder
    data_hash: str

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@lru_cache(maxsize=4)
def load_noise_bank(folder: str) -> NoiseBank:
    """Every audio file in and below `folder` that is not hidden, decoded to 8 kHz once in the life of the process.

    Raises DataError when there is no such folder, when it holds no audio, or a file of it cannot be used.
    """
    root = Path(os.path.expanduser(folder))
    files = noise_files(folder)
    digest = hashlib.sha256()
    parts: list[Floats] = []
    for path in files:
        try:
            content = path.read_bytes()
            parts.append(_usable(decode_sound(content)))
        except (AudioError, OSError) as error:
            raise DataError(f"noise_dir {folder}: {path.name}: {error}; mend or remove it") from error
        digest.update(os.fsencode(f"{path.relative_to(root).as_posix()}\0{hashlib.sha256(content).hexdigest()}\n"))
    sizes = np.array([len(part) for part in parts], dtype=np.int64)
    return NoiseBank(
        samples=torch.from_numpy(np.concatenate(parts)),
        starts=torch.from_numpy(np.cumsum(sizes) - sizes),
        choices=torch.from_numpy(sizes - NUM_SAMPLES + 1),
        files=tuple(path.relative_to(root).as_posix() for path in files),
        data_hash=digest.hexdigest(),
    )


@lru_cache(maxsize=1)
def generated_noise_bank() -> NoiseBank:
    """The generated sounds as if they were recordings."""

    def blocks() -> Iterator[Block]:
        yield {"samples": np.concatenate([samples for _, samples in generated_sounds()])}

    def key() -> Key:
        return {"numpy": np.__version__, "code": feature_cache.source_hash(procedural_noise)}

    samples = np.array(feature_cache.get_or_compute("noise", key, blocks)["samples"])
    count = len(samples) // SAMPLES
    return NoiseBank(
        samples=torch.from_numpy(samples),
        starts=torch.arange(count) * SAMPLES,
        choices=torch.full((count,), SAMPLES - NUM_SAMPLES + 1),
        files=(),
        data_hash="",
    )


def _usable(samples: Floats) -> Floats:
    """A recording without silent ends, of unit power; a short one again and again until it lasts a second."""
    frames = samples[: max(1, len(samples) // _FRAME) * _FRAME]
    energy = np.add.reduceat(np.square(frames, dtype=np.float64), np.arange(0, len(frames), _FRAME))
    loud = np.flatnonzero(energy > energy.max() * 10 ** (_SILENCE_DB / 10))
    word = samples[loud[0] * _FRAME : (loud[-1] + 2) * _FRAME] if len(loud) else samples
    word = word - word.mean()
    word = word / np.sqrt(np.square(word, dtype=np.float64).mean()).clip(1e-9)
    return np.asarray(np.tile(word, -(-NUM_SAMPLES // len(word))), dtype=np.float32)


@lru_cache(maxsize=4)
def _on(device: torch.device, backgrounds: NoiseBank) -> NoiseBank:
    samples, starts, choices = (
        part.to(device) for part in (backgrounds.samples, backgrounds.starts, backgrounds.choices)
    )
    return replace(backgrounds, samples=samples, starts=starts, choices=choices)


def sample_noise(folder: str | None, count: int, device: torch.device) -> Tensor:
    """(count, T) random seconds of random recordings of a folder, each of power one; pauses are quieter.

    Without a folder, of the generated sounds.
    """
    backgrounds = _on(device, generated_noise_bank() if folder is None else load_noise_bank(folder))
    which = torch.randint(len(backgrounds.starts), (count,), device=device)
    place = torch.rand(count, device=device, dtype=torch.float64)  # how far into each, from 0 to 1
    offset = (place * backgrounds.choices[which]).long()
    chosen = backgrounds.samples.unfold(0, NUM_SAMPLES, 1)[backgrounds.starts[which] + offset]
    return chosen / chosen.square().mean(dim=1, keepdim=True).sqrt().clamp_min(_QUIETEST)
