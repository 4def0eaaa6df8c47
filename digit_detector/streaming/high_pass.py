"""Removes offsets and rumble before anything else: a high-pass filter of the first order."""

from __future__ import annotations

import math

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.spotter_file import BLOCK

CUTOFF = 40.0  # Hz, where 3 dB are lost
_PART = math.isqrt(BLOCK)  # a block is as many parts of as many samples
assert _PART * _PART == BLOCK


def initial_state() -> Floats:
    """Of a stream that has not begun: its last input, of which there is none, and its last output."""
    return np.array([np.nan, 0.0], dtype=np.float32)


def high_pass(blocks: Floats, states: Floats) -> tuple[Floats, Floats]:
    """(N, 256) blocks of N streams after (N, 2) states -> the same without offsets, and the states after.

    y[n] = GAIN * (x[n] - x[n-1]) + POLE * y[n-1]; before a stream x is its first sample and y is 0. Each block is so
    many parts: first what comes of each part by itself, then what the parts before it leave behind. The products of a
    block have one shape, so its bits do not depend on the blocks beside it.
    """
    first = np.where(np.isnan(states[:, 0]), blocks[:, 0], states[:, 0])
    steps = np.empty_like(blocks)
    np.subtract(blocks[:, 1:], blocks[:, :-1], out=steps[:, 1:])
    np.subtract(blocks[:, 0], first, out=steps[:, 0])
    made = np.matmul(steps.reshape(-1, _PART, _PART), _WITHIN)  # (N, part, sample)
    before = np.concatenate([states[:, 1:], made[:, :, -1]], axis=1)
    made += np.matmul(_ACROSS, before[:, :, None]) * _DECAY
    return made.reshape(blocks.shape), np.array([blocks[:, -1], made[:, -1, -1]]).T


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
