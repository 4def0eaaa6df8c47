"""Digits corrupted into sounds that are none: cut off, doubled, spliced, reversed, or noise at their level.

They come from the recordings of the digits, so that no microphone, room or voice reveals which clip holds a digit.
Random numbers come from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE
from ml_training.data.augmentation.noise import sample_noise

KINDS = ("cut off", "doubled", "spliced", "turned round", "noise")
FREQUENT = (*KINDS, *["noise"] * 4)  # noise is drawn five times as often as each other kind

_KEPT = (0.2, 0.5)  # share of a digit that is left when it is cut off
_SPLICE = (0.35, 0.65)  # where one digit of a splice ends and the other goes on
_PAUSE = (0.0, 0.1)  # seconds between doubled digits
_NOISE = (0.15, 1.6)  # seconds; beyond one, all of the clip
_FRAME = SAMPLE_RATE // 50
_EDGE_DB = -30.0  # below the loudest frame; quieter ends are cut off
_FADE = SAMPLE_RATE // 200


def corrupt_digits(
    waveforms: Tensor, lengths: Tensor, labels: Tensor, noise_dir: str | None, kinds: Sequence[str] = FREQUENT
) -> tuple[Tensor, Tensor]:
    """(B, T) clips of digits, each `lengths` (B,) long and centred -> (B, T) clips without digits, and lengths (B,).

    Each of `kinds` is equally likely; doubled and spliced digits continue with the next clip of the batch. A splice of
    two equal digits would be that digit, and two digits too long for one second would be one: such a digit is cut off
    instead. Raises DataError when `noise_dir` holds no sound that can be read.
    """
    count = len(lengths)
    chosen, digits = torch.randint(len(kinds), (count,)).tolist(), labels.tolist()
    words = [_word(waveforms[i], span) for i, span in enumerate(lengths.tolist())]
    corrupted, sizes = torch.zeros_like(waveforms), []
    for i, (kind, (chance, end)) in enumerate(zip(chosen, torch.rand(count, 2).tolist(), strict=True)):
        word, after = words[i], words[(i + 1) % count]
        gap = int(_between(_PAUSE, chance) * SAMPLE_RATE)
        if kinds[kind] == "doubled" and len(word) + gap + len(after) // 2 <= NUM_SAMPLES:
            silence = torch.zeros(gap, device=word.device)
            sound = torch.cat([word, silence, after * (_rms(word) / _rms(after))])
        elif kinds[kind] == "spliced" and digits[i] != digits[(i + 1) % count]:
            place = _between(_SPLICE, chance)
            one, two = word[: int(place * len(word))], after[int(place * len(after)) :]
            sound = torch.cat([one, two * (_rms(word) / _rms(after))])
        elif kinds[kind] == "turned round":
            sound = word.flip(0)
        elif kinds[kind] == "noise":
            size = int(_between(_NOISE, chance) * SAMPLE_RATE)
            sound = sample_noise(noise_dir, 1, word.device)[0, :size] * _rms(word)
        else:
            kept = max(1, int(_between(_KEPT, chance) * len(word)))
            sound = word[:kept] if end < 0.5 else word[-kept:]
        sound = _fade(sound[:NUM_SAMPLES])
        begin = (NUM_SAMPLES - len(sound)) // 2
        corrupted[i, begin : begin + len(sound)] = sound
        sizes.append(len(sound))
    return corrupted, torch.tensor(sizes, device=lengths.device)


def _word(clip: Tensor, length: int) -> Tensor:
    """The samples of a clip without quiet ends."""
    begin = (NUM_SAMPLES - length) // 2
    samples = clip[begin : begin + max(length, _FRAME)]
    power = samples[: len(samples) // _FRAME * _FRAME].view(-1, _FRAME).square().sum(dim=1)
    loud = (power > power.max() * 10 ** (_EDGE_DB / 10)).nonzero()
    if not len(loud):
        return samples
    return samples[int(loud[0]) * _FRAME : (int(loud[-1]) + 1) * _FRAME]


def _between(limits: tuple[float, float], chance: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * chance


def _rms(word: Tensor) -> Tensor:
    return word.square().mean().sqrt().clamp_min(1e-5)


def _fade(sound: Tensor) -> Tensor:
    """The same with short slopes at both ends: hard edges would be a cue."""
    size = min(_FADE, len(sound) // 2)
    slope = torch.linspace(0.0, 1.0, size + 1, device=sound.device)[1:]
    sound = sound.clone()
    sound[:size] *= slope
    sound[len(sound) - size :] *= slope.flip(0)
    return sound
