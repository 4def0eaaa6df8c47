"""Digits cut off and digits run together, in numpy: data/digit_corruption.py without torch.

The clips are the same to rounding, chance included: torch's generator on a CPU is the Mersenne Twister that numpy's
RandomState is.
"""

from __future__ import annotations

import numpy as np

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE
from ml_training.results import Floats, Ints

CUT_OFF, DOUBLED = KINDS = ("cut off", "doubled")

_KEPT = (0.2, 0.5)  # share of a digit that is left when it is cut off
_PAUSE = (0.0, 0.1)  # seconds between doubled digits
_FRAME = SAMPLE_RATE // 50
_FADE = SAMPLE_RATE // 200
_ROOM_DB = -30.0


def corrupt_digits(waveforms: Floats, lengths: Ints, seed: int) -> dict[str, Floats]:
    """Of each kind as many clips (N, 8000) as there are digits, centred and `lengths` (N,) long.

    A doubled digit goes on with the next clip; where two are too long for their second it is cut off instead.
    """
    generator = np.random.RandomState(seed)
    words = [_word(clip, int(length)) for clip, length in zip(waveforms, lengths, strict=True)]
    made = {}
    for kind in KINDS:
        generator.randint(0, 2**32, len(words), dtype=np.uint32)  # which of one kind
        bits = generator.randint(0, 2**32, (len(words), 2), dtype=np.uint32)
        chances = (bits & (2**24 - 1)) / 2**24
        made[kind] = np.zeros_like(waveforms)
        for row, (chance, end) in enumerate(chances.tolist()):
            sound = _faded(_corrupted(kind, words[row], words[(row + 1) % len(words)], chance, end)[:NUM_SAMPLES])
            begin = (NUM_SAMPLES - len(sound)) // 2
            made[kind][row, begin : begin + len(sound)] = sound
    return made


def _corrupted(kind: str, word: Floats, after: Floats, chance: float, end: float) -> Floats:
    gap = int(_between(_PAUSE, chance) * SAMPLE_RATE)
    if kind == DOUBLED and len(word) + gap + len(after) // 2 <= NUM_SAMPLES:
        return np.concatenate([word, np.zeros(gap, np.float32), after * (_level(word) / _level(after))])
    kept = max(1, int(_between(_KEPT, chance) * len(word)))
    return word[:kept] if end < 0.5 else word[-kept:]


def _between(limits: tuple[float, float], chance: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * chance


def _word(clip: Floats, length: int) -> Floats:
    """The samples of a clip from where its word begins to where it ends; the clip may have room around it."""
    begin = (NUM_SAMPLES - length) // 2
    samples = clip[begin : begin + max(length, _FRAME)]
    power = np.square(samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)).sum(axis=1)
    loud = np.flatnonzero(power > power.max() * np.float32(10 ** (_ROOM_DB / 10)))
    return samples[loud[0] * _FRAME : (loud[-1] + 1) * _FRAME] if len(loud) else samples


def _level(word: Floats) -> np.float32:
    """Root mean square of a clip, never 0."""
    return np.float32(max(np.sqrt(np.square(word).mean()), 1e-5))


def _faded(sound: Floats) -> Floats:
    """The same with short slopes at both ends."""
    size = min(_FADE, len(sound) // 2)
    slope = np.linspace(0.0, 1.0, size + 1, dtype=np.float32)[1:]
    sound = sound.copy()
    sound[:size] *= slope
    sound[len(sound) - size :] *= slope[::-1]
    return sound
