"""Removes offsets and what rumbles, before anything else listens: a high-pass filter of the first order."""

from __future__ import annotations

import math

import numpy as np

from ml_training.audio import SAMPLE_RATE, Floats
from ml_training.deploy.spotter_file import BLOCK

CUTOFF = 40.0  # Hz, where 3 dB are lost
_PART = math.isqrt(BLOCK)  # a block is as many parts of as many samples
assert _PART * _PART == BLOCK


class HighPass:
    """y[n] = GAIN * (x[n] - x[n-1]) + POLE * y[n-1] of one stream, block by block; x[-1] = x[0].

    A recursion in two products: of each part of a block from silence, then of what the parts before it leave behind.
    """

    def __init__(self) -> None:
        self._before = np.zeros(1 + _PART, dtype=np.float32)  # the last output, and the last of each part from silence
        self._last: np.float32 | None = None  # input

    def __call__(self, block: Floats) -> Floats:
        """The next block, (256,) -> the same without its offset."""
        first = block[0] if self._last is None else self._last
        self._last = block[-1]
        steps = np.empty(BLOCK, dtype=np.float32)
        np.subtract(block[1:], block[:-1], out=steps[1:])
        steps[0] = block[0] - first
        made: Floats = np.matmul(steps.reshape(_PART, _PART), _WITHIN)
        self._before[1:] = made[:, -1]
        made += np.outer(_ACROSS @ self._before, _DECAY)
        self._before[0] = made[-1, -1]
        return made.reshape(BLOCK)


def _powers(exponents: np.ndarray, factor: float = 1.0) -> Floats:
    """POLE to these powers; 0 where they are negative."""
    return np.where(exponents >= 0, factor * POLE ** np.maximum(exponents, 0), 0.0).astype(np.float32)


_TANGENT = math.tan(math.pi * CUTOFF / SAMPLE_RATE)  # of the bilinear transform
POLE = (1.0 - _TANGENT) / (1.0 + _TANGENT)
GAIN = (1.0 + POLE) / 2.0
_steps = np.arange(_PART)
_WITHIN = _powers(_steps - _steps[:, None], GAIN)  # (sample that goes in, sample that comes out) of a part
_DECAY = _powers(_steps + 1)
_ACROSS = _powers(_PART * (_steps[:, None] - np.arange(-1, _PART)) - _PART)  # (part, what was left before it)
_ACROSS[:, 0] = _powers(_PART * _steps)
