"""How far probabilities can be believed: reliability, expected calibration error, and one temperature to mend it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_training.results import Ints, ReliabilityBin

Array = NDArray[np.floating]

BINS = 15
COLDEST, HOTTEST = 0.05, 20.0
_GOLDEN = (math.sqrt(5) - 1) / 2
_TINY = 1e-12  # no probability counts as less


@dataclass(frozen=True)
class Calibration:
    """How well the probabilities of N clips fit what happened."""

    ece: float  # expected calibration error, 0 to 1
    nll: float  # mean negative log likelihood of the right digit, nats
    bins: tuple[ReliabilityBin, ...]


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """(N, 10) scores -> (N, 10) log probabilities."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def tempered(probabilities: Array, temperature: float) -> NDArray[np.float64]:
    """(N, 10) probabilities as they are when the scores behind them are divided by `temperature` once more."""
    return np.exp(log_softmax(np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), 1e-300)) / temperature))


def fit_temperature(logits: Array, labels: Ints) -> float:
    """The temperature that makes (N, 10) scores most likely for N labels.

    The likelihood has one peak in the temperature (it is concave in its inverse), which a golden-section search over
    its logarithm finds. The right digit counts 1 - 1 / (N + 2) and the others the rest, as Platt (1999) proposed:
    with no wrong answer among the N the plain likelihood would ask for certainty without end.
    """
    if not len(labels) or not np.isfinite(logits).all():
        return 1.0
    scores = np.asarray(logits, dtype=np.float64)
    rest = 1.0 / (len(labels) + 2)
    targets = np.full(scores.shape, rest / (scores.shape[1] - 1))
    targets[np.arange(len(labels)), labels] = 1.0 - rest

    def loss(log_temperature: float) -> float:
        return float(-(targets * log_softmax(scores / math.exp(log_temperature))).sum(axis=1).mean())

    low, high = math.log(COLDEST), math.log(HOTTEST)
    inner, outer = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_inner, at_outer = loss(inner), loss(outer)
    while high - low > 1e-5:
        if at_inner <= at_outer:
            high, outer, at_outer = outer, inner, at_inner
            inner = high - _GOLDEN * (high - low)
            at_inner = loss(inner)
        else:
            low, inner, at_inner = inner, outer, at_outer
            outer = low + _GOLDEN * (high - low)
            at_outer = loss(outer)
    return math.exp((low + high) / 2)


def temperature_for_other_voices(logits: Array, labels: Ints, power: float) -> float:
    """The temperature for voices beyond those of N validation clips, whose (N, 10) scores and labels are given.

    A network that knows the voices of its training too well makes the temperature that suits them too sure for others;
    a `power` of it below 1 goes back towards no temperature at all. benchmarks/temperature_powers.py compares powers.
    """
    return float(fit_temperature(logits, labels) ** power)


def calibration(probabilities: Array, labels: Ints, bins: int = BINS) -> Calibration:
    """How (N, 10) probabilities fit N labels.

    Confidence (the largest probability of a clip) is divided into `bins` bins of equal width. The calibration error
    is the mean over clips of the distance between confidence and accuracy of their bin (Naeini et al., 2015).
    """
    confidence = np.asarray(probabilities).max(axis=1)
    right = np.asarray(probabilities).argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    found: list[ReliabilityBin] = []
    error = 0.0
    for i in range(bins):
        inside = place == i
        count = int(inside.sum())
        if not count:
            continue
        said, happened = float(confidence[inside].mean()), float(right[inside].mean())
        found.append(ReliabilityBin(i / bins, (i + 1) / bins, count, said, happened))
        error += count / len(labels) * abs(said - happened)
    likelihood = np.asarray(probabilities)[np.arange(len(labels)), labels]
    nll = float(-np.log(np.maximum(likelihood, _TINY)).mean()) if len(labels) else math.nan
    return Calibration(error, nll, tuple(found))
