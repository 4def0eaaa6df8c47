"""Statistics of classifiers in numpy: calibration and its temperature, paired tests."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from digit_detector.evaluation.metrics import BINS, ReliabilityBin, measure_reliability

Array = NDArray[np.floating]
Labels = NDArray[np.int64]

_LOWEST, _HIGHEST = 0.05, 20.0  # temperatures that are searched
_GOLDEN = (math.sqrt(5) - 1) / 2
_TINY = 1e-12  # smallest likelihood that is counted


@dataclass(frozen=True)
class Calibration:
    """How well the probabilities of N clips match their labels."""

    ece: float  # expected calibration error, 0 to 1
    nll: float  # mean negative log likelihood of the label, nats
    bins: tuple[ReliabilityBin, ...]


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """(N, 10) logits -> (N, 10) log probabilities."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def apply_temperature(probabilities: Array, temperature: float) -> NDArray[np.float64]:
    """(N, 10) probabilities after their logits are divided by `temperature`."""
    return np.exp(log_softmax(np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), 1e-300)) / temperature))


def fit_logit_temperature(logits: Array, labels: Labels, power: float = 1.0) -> float:
    """The temperature under which (N, 10) logits give N labels the highest likelihood, to the power of `power`.

    The likelihood has one maximum (it is concave in 1 / temperature): a golden-section search finds its logarithm.
    The label counts 1 - 1 / (N + 2) and the other digits share the rest (Platt, 1999): without an error among the N,
    the plain likelihood has no maximum. A `power` below 1 allows for speakers who were not in training, for whom the
    temperature of validation clips is too confident (benchmarks/temperature_powers.py).
    """
    if not len(labels) or not np.isfinite(logits).all():
        return 1.0
    scores = np.asarray(logits, dtype=np.float64)
    rest = 1.0 / (len(labels) + 2)
    targets = np.full(scores.shape, rest / (scores.shape[1] - 1))
    targets[np.arange(len(labels)), labels] = 1.0 - rest

    def loss(log_temperature: float) -> float:
        return float(-(targets * log_softmax(scores / math.exp(log_temperature))).sum(axis=1).mean())

    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    while high - low > 1e-5:
        inner, outer = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if loss(inner) <= loss(outer):
            high = outer
        else:
            low = inner
    return float(math.exp((low + high) / 2) ** power)


def measure_calibration(probabilities: Array, labels: Labels, bins: int = BINS) -> Calibration:
    """Reliability of (N, 10) probabilities in bins of equal width of the confidence, the largest of a clip."""
    probabilities = np.asarray(probabilities)
    ece, filled = measure_reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, bins)
    likelihood = probabilities[np.arange(len(labels)), labels]
    nll = float(-np.log(np.maximum(likelihood, _TINY)).mean()) if len(labels) else math.nan
    return Calibration(ece, nll, filled)


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided p value of McNemar's test on discordant pairs (Q. McNemar, 1947, Psychometrika 12)."""
    from scipy import stats

    return float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0


def corrected_t(differences: Sequence[float], test_to_train: float) -> tuple[float, float, float]:
    """t, two-sided p value and half of the 95 % interval of the mean difference between two settings over folds.

    The corrected resampled t test (C. Nadeau and Y. Bengio, 2003, Machine Learning 52): trainings of folds share most
    of their clips, `test_to_train` is the number of test clips of a fold over that of its training clips.
    """
    from scipy import stats

    count = len(differences)
    if count < 2:
        return math.nan, math.nan, math.nan
    mean, variance = statistics.fmean(differences), statistics.variance(differences)
    error = math.sqrt((1 / count + test_to_train) * variance)
    if error == 0:
        return math.copysign(math.inf, mean) if mean else 0.0, 0.0 if mean else 1.0, 0.0
    t = mean / error
    return t, float(2 * stats.t.sf(abs(t), count - 1)), float(stats.t.ppf(0.975, count - 1)) * error
