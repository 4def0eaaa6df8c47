"""First-order high-pass filter that removes offset and rumble before anything else."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from digit_detector.acoustic_file import BLOCK
from digit_detector.audio import SAMPLE_RATE, Floats

_PART = math.isqrt(BLOCK)  # a block is as many parts of as many samples
assert _PART * _PART == BLOCK


def initial_state() -> Floats:
    """(2,) state before the first block: the last input, none yet, and the last output."""
    return np.array([np.nan, 0.0], dtype=np.float32)


def high_pass(blocks: Floats, states: Floats, cutoff: float) -> tuple[Floats, Floats]:
    """Filter (N, 256) blocks of N streams, given (N, 2) states -> the filtered blocks and the new states.

    First-order high-pass by the bilinear transform, -3 dB at `cutoff` Hz:
    y[n] = gain * (x[n] - x[n-1]) + pole * y[n-1]; before a stream x is its first sample and y is 0. A block is 16
    parts: first the response of each part by itself, then the decay of the parts before it. Matrix products have one
    shape, so the bits do not depend on other rows.
    """
    within, across, decay = _design_matrices(cutoff)
    first = np.where(np.isnan(states[:, 0]), blocks[:, 0], states[:, 0])
    steps = np.empty_like(blocks)
    np.subtract(blocks[:, 1:], blocks[:, :-1], out=steps[:, 1:])
    np.subtract(blocks[:, 0], first, out=steps[:, 0])
    made = np.matmul(steps.reshape(-1, _PART, _PART), within)  # (N, part, sample)
    before = np.concatenate([states[:, 1:], made[:, :, -1]], axis=1)
    made += np.matmul(across, before[:, :, None]) * decay
    return made.reshape(blocks.shape), np.array([blocks[:, -1], made[:, -1, -1]]).T


def coefficients(cutoff: float) -> tuple[float, float]:
    """(gain, pole) of the filter."""
    tangent = math.tan(math.pi * cutoff / SAMPLE_RATE)
    pole = (1.0 - tangent) / (1.0 + tangent)
    return (1.0 + pole) / 2.0, pole


@lru_cache(maxsize=8)
def _design_matrices(cutoff: float) -> tuple[Floats, Floats, Floats]:
    """(input, output) samples of a part; (part, output of the parts before it); (sample,) decay within a part."""
    gain, pole = coefficients(cutoff)

    def powers(exponents: np.ndarray, factor: float = 1.0) -> Floats:
        return np.where(exponents >= 0, factor * pole ** np.maximum(exponents, 0), 0.0).astype(np.float32)

    steps = np.arange(_PART)
    within = powers(steps - steps[:, None], gain)
    across = powers(_PART * (steps[:, None] - np.arange(-1, _PART)) - _PART)
    across[:, 0] = powers(_PART * steps)
    return within, across, powers(steps + 1)
