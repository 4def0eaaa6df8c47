"""Digits cut off and two digits in one second, in numpy: data/digit_corruption.py without torch."""

from __future__ import annotations

import numpy as np

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, trim_silence
from ml_training.results import Floats, Ints

CORRUPTIONS = ("cut off", "doubled")
_KEPT = (0.2, 0.5)  # share of a digit that is left when it is cut off
_PAUSE = (0.0, 0.1)  # seconds between two digits
_FADE = SAMPLE_RATE // 200
_SILENCE_DB = -30.0


def corrupt_digits(waveforms: Floats, lengths: Ints, seed: int) -> dict[str, Floats]:
    """Kind -> (N, 8000) centred clips made of N digits, `lengths` (N,) long.

    A doubled digit is followed by that of the next clip; where two do not fit into a second it is cut off instead.
    """
    rng = np.random.RandomState(seed)
    offsets = (NUM_SAMPLES - lengths) // 2
    words = [
        trim_silence(clip[start : start + length], _SILENCE_DB)
        for clip, start, length in zip(waveforms, offsets, lengths, strict=True)
    ]
    made = {}
    for kind in CORRUPTIONS:
        rng.randint(0, 2**32, len(words), dtype=np.uint32)  # the draws of torch.randint and torch.rand in training
        draws = (rng.randint(0, 2**32, (len(words), 2), dtype=np.uint32) & (2**24 - 1)) / 2**24
        made[kind] = np.zeros_like(waveforms)
        for row, (where, end) in enumerate(draws.tolist()):
            word, after = words[row], words[(row + 1) % len(words)]
            pause = int((_PAUSE[0] + (_PAUSE[1] - _PAUSE[0]) * where) * SAMPLE_RATE)
            if kind == "doubled" and len(word) + pause + len(after) // 2 <= NUM_SAMPLES:
                sound = np.concatenate([word, np.zeros(pause, np.float32), after * (_rms(word) / _rms(after))])
            else:
                kept = max(1, int((_KEPT[0] + (_KEPT[1] - _KEPT[0]) * where) * len(word)))
                sound = (word[:kept] if end < 0.5 else word[-kept:]).copy()
            sound = sound[:NUM_SAMPLES]
            slope = np.linspace(0.0, 1.0, min(_FADE, len(sound) // 2) + 1, dtype=np.float32)[1:]
            sound[: len(slope)] *= slope
            sound[len(sound) - len(slope) :] *= slope[::-1]
            start = (NUM_SAMPLES - len(sound)) // 2
            made[kind][row, start : start + len(sound)] = sound
    return made


def _rms(samples: Floats) -> np.float32:
    return np.float32(max(np.sqrt(np.square(samples).mean()), 1e-5))
