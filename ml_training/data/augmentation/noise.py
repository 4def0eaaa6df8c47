"""A bank of background noise, recorded or generated, and random seconds of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
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
from ml_training.data.layouts import noise_files
from ml_training.results import Floats

_FRAME = SAMPLE_RATE // 50
_SILENCE_DB = -60.0  # below the loudest frame; such ends are cut off
_QUIETEST = 0.03  # an excerpt 30 dB below its recording is a pause, and is not raised any further


@dataclass(frozen=True, eq=False)
class NoiseBank:
    """R recordings one after the other, each of unit power and at least a second long."""

    samples: Tensor  # (S,)
    starts: Tensor  # (R,) int64
    choices: Tensor  # (R,) number of places at which an excerpt of each may start
    files: tuple[str, ...]  # R names relative to the folder
    data_hash: str

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@lru_cache(maxsize=4)
def load_noise_bank(folder: str) -> NoiseBank:
    """Every audio file in and below `folder`, decoded to 8 kHz once in the life of the process.

    Raises DataError for a folder that does not exist or holds no audio, or a file that cannot be used.
    """
    root = Path(os.path.expanduser(folder))
    files = [(path.relative_to(root).as_posix(), path) for path in noise_files(folder)]
    digest = hashlib.sha256()
    parts: list[Floats] = []
    for name, path in files:
        try:
            content = path.read_bytes()
            parts.append(_normalise(decode_sound(content)))
        except (AudioError, OSError) as error:
            raise DataError(f"noise_dir {folder}: {path.name}: {error}; fix or remove it") from error
        digest.update(os.fsencode(f"{name}\0{hashlib.sha256(content).hexdigest()}\n"))
    sizes = [len(part) for part in parts]
    return _bank(np.concatenate(parts), sizes, tuple(name for name, _ in files), digest.hexdigest())


@lru_cache(maxsize=1)
def generated_noise_bank() -> NoiseBank:
    """The generated sounds as if they were recordings."""
    samples = feature_cache.get_or_compute(
        "noise",
        lambda: {"numpy": np.__version__, "code": feature_cache.source_hash(procedural_noise)},
        lambda: [{"samples": np.concatenate([samples for _, samples in generated_sounds()])}],
    )["samples"]
    return _bank(np.array(samples), [SAMPLES] * (len(samples) // SAMPLES), (), "")


def _bank(samples: Floats, sizes: Sequence[int], files: tuple[str, ...], data_hash: str) -> NoiseBank:
    lengths = torch.tensor(sizes)
    starts = torch.cumsum(lengths, dim=0) - lengths
    return NoiseBank(torch.from_numpy(samples), starts, lengths - NUM_SAMPLES + 1, files, data_hash)


def _normalise(samples: Floats) -> Floats:
    """A recording without silent ends and offset, of unit power, repeated to a second at least."""
    frames = samples[: max(1, len(samples) // _FRAME) * _FRAME]
    energy = np.add.reduceat(np.square(frames, dtype=np.float64), np.arange(0, len(frames), _FRAME))
    loud = np.flatnonzero(energy > energy.max() * 10 ** (_SILENCE_DB / 10))
    sound = samples[loud[0] * _FRAME : (loud[-1] + 2) * _FRAME] if len(loud) else samples
    sound = sound - sound.mean()
    sound = sound / np.sqrt(np.square(sound, dtype=np.float64).mean()).clip(1e-9)
    return np.asarray(np.tile(sound, -(-NUM_SAMPLES // len(sound))), dtype=np.float32)


@lru_cache(maxsize=4)
def _on(device: torch.device, bank: NoiseBank) -> NoiseBank:
    return replace(
        bank, samples=bank.samples.to(device), starts=bank.starts.to(device), choices=bank.choices.to(device)
    )


def sample_noise(folder: str | None, count: int, device: torch.device) -> Tensor:
    """(count, T) random seconds of unit power, pauses quieter: of the recordings of a folder or of generated sounds."""
    bank = _on(device, generated_noise_bank() if folder is None else load_noise_bank(folder))
    rows = torch.randint(len(bank.starts), (count,), device=device)
    place = torch.rand(count, device=device, dtype=torch.float64)  # how far into each, from 0 to 1
    offset = (place * bank.choices[rows]).long()
    chosen = bank.samples.unfold(0, NUM_SAMPLES, 1)[bank.starts[rows] + offset]
    return chosen / chosen.square().mean(dim=1, keepdim=True).sqrt().clamp_min(_QUIETEST)
