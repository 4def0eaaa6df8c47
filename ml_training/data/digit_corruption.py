"""Digits made into sounds that are none: cut off, run together, spliced, turned round, or noise in their place.

They come from the very recordings that the digits come from, so that no microphone, room or voice can tell a model
which clip holds a digit. Chance comes from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE
from ml_training.data.augmentation.noise import sample_noise

KINDS = ("cut off", "doubled", "spliced", "turned round", "noise")
USUAL = (*KINDS, *["noise"] * 4)  # how often each comes up: of noises there are the most

_KEPT = (0.2, 0.5)  # share of a digit that is left when it is cut off
_SPLICE = (0.35, 0.65)  # where one digit of a splice ends and the other goes on
_PAUSE = (0.0, 0.1)  # seconds between doubled digits
_NOISE = (0.15, 1.6)  # seconds; beyond one, all of the clip
_FRAME = SAMPLE_RATE // 50
_ROOM_DB = -30.0  # below the loudest frame; what lies lower around a word is the room
_FADE = SAMPLE_RATE // 200  # a hard edge would be a sign


def corrupt_digits(
    waveforms: Tensor,
    lengths: Tensor,
    labels: Tensor,
    noise_dir: str | None,
    kinds: Sequence[str] = USUAL,
) -> tuple[Tensor, Tensor]:
    """(B, T) clips of digits, each `lengths` (B,) long and centred -> as many that are none, and their lengths.

    Each of `kinds` comes up equally often; doubled and spliced digits go on with the next clip of the batch. Where that
    says the same digit, a splice would be that digit again, and where two digits are too long for their second, they
    would be one: such a digit is cut off instead. Raises DataError when `noise_dir` holds no sound that can be read.
    """
    count = len(lengths)
    chosen, digits = torch.randint(len(kinds), (count,)).tolist(), labels.tolist()
    words = [_word(waveforms[i], span) for i, span in enumerate(lengths.tolist())]
    made, sizes = torch.zeros_like(waveforms), []
    for i, (kind, (chance, end)) in enumerate(zip(chosen, torch.rand(count, 2).tolist(), strict=True)):
        word, after = words[i], words[(i + 1) % count]
        gap = _samples(_between(_PAUSE, chance))
        if kinds[kind] == "doubled" and len(word) + gap + len(after) // 2 <= NUM_SAMPLES:
            silence = torch.zeros(gap, device=word.device)
            sound = torch.cat([word, silence, after * (_level(word) / _level(after))])
        elif kinds[kind] == "spliced" and digits[i] != digits[(i + 1) % count]:
            place = _between(_SPLICE, chance)
            one, two = word[: int(place * len(word))], after[int(place * len(after)) :]
            sound = torch.cat([one, two * (_level(word) / _level(after))])
        elif kinds[kind] == "turned round":
            sound = word.flip(0)
        elif kinds[kind] == "noise":
            sound = sample_noise(noise_dir, 1, word.device)[0, : _samples(_between(_NOISE, chance))] * _level(word)
        else:
            kept = max(1, int(_between(_KEPT, chance) * len(word)))
            sound = word[:kept] if end < 0.5 else word[-kept:]
        sound = _faded(sound[:NUM_SAMPLES])
        begin = (NUM_SAMPLES - len(sound)) // 2
        made[i, begin : begin + len(sound)] = sound
        sizes.append(len(sound))
    return made, torch.tensor(sizes, device=lengths.device)


def _word(clip: Tensor, length: int) -> Tensor:
    """The samples of a clip from where its word begins to where it ends; the clip may have room around it."""
    begin = (NUM_SAMPLES - length) // 2
    samples = clip[begin : begin + max(length, _FRAME)]
    power = samples[: len(samples) // _FRAME * _FRAME].view(-1, _FRAME).square().sum(dim=1)
    loud = (power > power.max() * 10 ** (_ROOM_DB / 10)).nonzero()
    if not len(loud):
        return samples
    return samples[int(loud[0]) * _FRAME : (int(loud[-1]) + 1) * _FRAME]


def _between(limits: tuple[float, float], chance: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * chance


def _samples(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE)


def _level(word: Tensor) -> Tensor:
    """Root mean square of a clip, never 0."""
    return word.square().mean().sqrt().clamp_min(1e-5)


def _faded(sound: Tensor) -> Tensor:
    """The same with short slopes at both ends."""
    size = min(_FADE, len(sound) // 2)
    slope = torch.linspace(0.0, 1.0, size + 1, device=sound.device)[1:]
    sound = sound.clone()
    sound[:size] *= slope
    sound[len(sound) - size :] *= slope.flip(0)
    return sound
