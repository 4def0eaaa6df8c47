"""Confidence in a digit: logistic regression on the log-odds of the spotter, the classifiers and voice activity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from digit_detector.streaming.config import DetectorConfig


@dataclass(frozen=True)
class FusionScores:
    """Inputs of the fusion, probabilities from 0 to 1."""

    spotter: float  # the spotter's posterior of the digit
    presence: float  # the classifiers' probability that the audio holds any digit
    classifier: float  # the classifiers' posterior of the digit
    voice: float  # the largest voice activity within the word

    def log_odds(self, floor: float) -> tuple[float, ...]:
        """The features of the regression."""
        return tuple(log_odds(p, floor) for p in (self.spotter, self.presence, self.classifier, self.voice))


def fuse(scores: FusionScores, config: DetectorConfig) -> float:
    """Confidence, 0 to 1, that the digit was spoken."""
    terms = zip(config.fusion_weights, scores.log_odds(config.probability_floor), strict=True)
    return sigmoid(config.fusion_offset + sum(weight * value for weight, value in terms))


def mean_log_odds(probabilities: Sequence[float], floor: float) -> float:
    """Several models' probabilities of one event, pooled: the mean of their log-odds, as a probability."""
    return sigmoid(sum(log_odds(p, floor) for p in probabilities) / len(probabilities))


def product_argmax(spotter: Sequence[float], classifier: Sequence[float], floor: float) -> int:
    """The digit with the largest product of two posteriors, (10,) each."""
    products = [max(one, floor) * max(other, floor) for one, other in zip(spotter, classifier, strict=True)]
    return products.index(max(products))


def sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))


def log_odds(probability: float, floor: float) -> float:
    probability = min(max(probability, floor), 1.0 - floor)
    return math.log(probability / (1.0 - probability))
