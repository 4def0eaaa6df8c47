"""Single words, varied once: what strings are joined from.

Varying a voice costs more than training on it, so a pool of words is made before training and strings take from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, trim_silence
from ml_training.config import AugmentationConfig
from ml_training.data.augmentation import crop_edges, place
from ml_training.data.augmentation.voice import shift_formants_and_pitch
from ml_training.results import Floats, Ints

EDGE_DB = -25.0  # a word ends with its last frame that lies so little below its loudest
SILENCE_DB = -35.0  # what lies lower at the ends of a clip is the room, and is cut off
_FRAME = SAMPLE_RATE // 100
_BATCH = 256


class Said(NamedTuple):
    """N clips, each centred in its second."""

    waveforms: Floats  # (N, 8000)
    lengths: Ints  # (N,)
    labels: Ints  # (N,), NOT_A_DIGIT where it is none
    speakers: Sequence[str]  # N


@dataclass(frozen=True, eq=False)
class Words:
    """N words one after the other, each with its loudest frame at power one."""

    samples: NDArray[np.float16]  # (S,); of 16 bits, because there are many
    starts: Ints  # (N,)
    sizes: Ints  # (N,) samples
    begins: Ints  # (N,) samples until the word is within EDGE_DB of its loudest
    ends: Ints  # (N,) samples until it no longer is
    labels: Ints  # (N,)
    speakers: Ints  # (N,) numbers of who says it

    def __len__(self) -> int:
        return len(self.starts)

    def word(self, i: int) -> Floats:
        start = self.starts[i]
        return self.samples[start : start + self.sizes[i]].astype(np.float32)


def varied(said: Said, times: int, augmentation: AugmentationConfig, seed: int) -> Words:
    """`times` variants of each clip: other vocal tract, pitch, speed, now and then without a part of its ends."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        clips: list[Floats] = []
        order: list[int] = []
        for take in range(times):
            for first in range(0, len(said.lengths), _BATCH):
                rows = slice(first, first + _BATCH)
                waveforms = torch.from_numpy(np.ascontiguousarray(said.waveforms[rows]))
                lengths = torch.from_numpy(said.lengths[rows])
                clips += _variants(waveforms, lengths, augmentation if take else _unvaried(augmentation))
                order += range(first, first + len(lengths))
    finally:
        torch.random.set_rng_state(generator)
    names = {name: i for i, name in enumerate(dict.fromkeys(said.speakers))}
    speakers = np.array([names[said.speakers[i]] for i in order])
    return joined_words(clips, said.labels[order], speakers)


def _unvaried(augmentation: AugmentationConfig) -> AugmentationConfig:
    return replace(augmentation, tract_probability=0.0, pitch_probability=0.0, trim_probability=0.0)


def _variants(waveforms: torch.Tensor, lengths: torch.Tensor, config: AugmentationConfig) -> list[Floats]:
    if config.trim_probability:
        waveforms = crop_edges(waveforms, lengths, config.trim_probability, config.trim)
    ones = torch.ones(len(waveforms))
    tract = _some(ones, config.tract_probability, config.tract)
    pitch = _some(ones, config.pitch_probability, config.pitch)
    waveforms = shift_formants_and_pitch(waveforms, tract, pitch, config.pitch[1] if config.pitch_probability else 0.0)
    placed, durations = place(waveforms, lengths, config.speed, 0.0, pitch)
    clips = []
    for clip, duration in zip(placed.numpy(), durations.tolist(), strict=True):
        size = min(NUM_SAMPLES, max(_FRAME, round(duration)))
        begin = (NUM_SAMPLES - size) // 2
        clips.append(clip[begin : begin + size])
    return clips


def _some(ones: torch.Tensor, probability: float, limits: tuple[float, float]) -> torch.Tensor:
    low, high = np.log(limits)
    factors = torch.exp(low + (high - low) * torch.rand(len(ones)))
    return torch.where(torch.rand(len(ones)) < probability, factors, 1.0)


def joined_words(clips: Sequence[Floats], labels: Ints, speakers: Ints) -> Words:
    """Clips (T,) as Words; silence at their ends is cut off, and those without any sound are left out."""
    cut, kept, begins, ends = [], [], [], []
    for i, clip in enumerate(clips):
        word = trim_silence(np.asarray(clip, dtype=np.float32), SILENCE_DB)
        level, begin, end = edges(word)
        if level > 1e-5:
            cut.append(word / level)
            kept.append(i)
            begins.append(begin)
            ends.append(end)
    sizes = np.array([len(word) for word in cut], dtype=np.int64)
    return Words(
        samples=np.concatenate(cut).astype(np.float16), starts=np.cumsum(sizes) - sizes, sizes=sizes,
        begins=np.array(begins), ends=np.array(ends), labels=np.asarray(labels)[kept],
        speakers=np.asarray(speakers)[kept],
    )  # fmt: skip


def edges(word: Floats) -> tuple[float, int, int]:
    """Root mean square of the loudest 10 ms, and the samples between which frames are within EDGE_DB of it."""
    count = max(1, len(word) // _FRAME)
    frames = word[: count * _FRAME].reshape(count, -1)
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    loud = np.flatnonzero(power >= power.max() * 10 ** (EDGE_DB / 10))
    return float(np.sqrt(power.max())), int(loud[0]) * _FRAME, int(loud[-1] + 1) * _FRAME
