"""Intervals of proportions and rates, and calibration of confidences, in numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions whose confidence lies between two bounds."""

    low: float
    high: float
    count: int
    confidence: float  # mean
    accuracy: float


def wilson_interval(right: float, clips: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson, 1927, J. Am. Stat. Assoc. 22)."""
    if clips == 0:
        return 0.0, 1.0
    share = right / clips
    middle = share + z * z / (2 * clips)
    half = z * math.sqrt(share * (1 - share) / clips + z * z / (4 * clips * clips))
    scale = 1 + z * z / clips
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def poisson_interval(count: int, z: float = 1.96) -> tuple[float, float]:
    """Byar's interval of the mean of a Poisson count (N. E. Breslow and N. E. Day, 1987, IARC 82, eq. 2.13)."""
    above = count + 1
    low = count * (1 - 1 / (9 * count) - z / (3 * math.sqrt(count))) ** 3 if count else 0.0
    return max(0.0, low), above * (1 - 1 / (9 * above) + z / (3 * math.sqrt(above))) ** 3


def measure_reliability(
    confidence: NDArray[np.floating[Any]], right: NDArray[np.bool_], bins: int = BINS
) -> tuple[float, tuple[ReliabilityBin, ...]]:
    """Expected calibration error of N confidences, 0 to 1, and the bins of equal width that have any.

    The error is the mean over predictions of |confidence - accuracy| of their bin (Naeini et al., 2015).
    """
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    filled, ece = [], 0.0
    for i in np.unique(bin_of).tolist():
        inside = bin_of == i
        sure, accuracy = float(confidence[inside].mean()), float(right[inside].mean())
        filled.append(ReliabilityBin(i / bins, (i + 1) / bins, int(inside.sum()), sure, accuracy))
        ece += filled[-1].count / len(right) * abs(sure - accuracy)
    return ece, tuple(filled)
