"""Alignment of detections with a reference: correct, substituted, deleted, inserted; latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from digit_detector.evaluation.streams import LabelledDigit

NEAR = 0.3  # seconds after the end of a digit until which a detection of it may end


class Hypothesis(Protocol):
    """A detection, as far as it is scored; seconds."""

    @property
    def digit(self) -> int: ...
    @property
    def end(self) -> float: ...
    @property
    def reported(self) -> float: ...


@dataclass(frozen=True)
class Score:
    """Counts of a stream or of several."""

    reference: int = 0  # digits
    correct: int = 0
    substituted: int = 0
    deleted: int = 0
    inserted: int = 0
    delays: tuple[float, ...] = ()  # seconds from the end of each correct digit to its report
    confusions: tuple[tuple[int, int], ...] = ()  # (reference, hypothesis); -1 is none

    def __add__(self, other: Score) -> Score:
        return Score(
            self.reference + other.reference, self.correct + other.correct, self.substituted + other.substituted,
            self.deleted + other.deleted, self.inserted + other.inserted, self.delays + other.delays,
            self.confusions + other.confusions,
        )  # fmt: skip

    @property
    def digit_error_rate(self) -> float:
        """(substituted + deleted + inserted) / reference, as a word error rate."""
        return (self.substituted + self.deleted + self.inserted) / max(1, self.reference)

    @property
    def accuracy(self) -> float:
        """1 - digit_error_rate."""
        return 1.0 - self.digit_error_rate

    def delay(self, percent: float) -> float:
        """A percentile of the delays, seconds."""
        return float(np.percentile(self.delays, percent)) if self.delays else float("nan")


def can_match(reference: LabelledDigit, hypothesis: Hypothesis) -> bool:
    """Whether a detection ends between the start of a digit and NEAR after its end.

    Where a recording's noise reaches the level of the word, its measured end lies behind the audible one.
    """
    return reference.start <= hypothesis.end <= reference.end + NEAR


def score(reference: Sequence[LabelledDigit], hypothesis: Sequence[Hypothesis]) -> Score:
    """Align by least edit distance in order of time, pairing only what `can_match`, as in a word error rate."""
    hypothesis = sorted(hypothesis, key=lambda detection: detection.end)
    rows, columns = len(reference), len(hypothesis)
    cost = np.zeros((rows + 1, columns + 1), dtype=np.int64)
    cost[:, 0], cost[0, :] = np.arange(rows + 1), np.arange(columns + 1)
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            best = min(cost[i - 1, j], cost[i, j - 1]) + 1
            if can_match(reference[i - 1], hypothesis[j - 1]):
                best = min(best, cost[i - 1, j - 1] + (reference[i - 1].digit != hypothesis[j - 1].digit))
            cost[i, j] = best
    correct, substituted, deleted, inserted = 0, 0, 0, 0
    delays, confusions = [], []
    i, j = rows, columns
    while i or j:
        near = i and j and can_match(reference[i - 1], hypothesis[j - 1])
        wrong = bool(near and reference[i - 1].digit != hypothesis[j - 1].digit)
        if near and cost[i, j] == cost[i - 1, j - 1] + wrong:
            i, j = i - 1, j - 1
            if wrong:
                substituted += 1
                confusions.append((reference[i].digit, hypothesis[j].digit))
            else:
                correct += 1
                delays.append(hypothesis[j].reported - reference[i].end)
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i, deleted = i - 1, deleted + 1
            confusions.append((reference[i].digit, -1))
        else:
            j, inserted = j - 1, inserted + 1
            confusions.append((-1, hypothesis[j].digit))
    return Score(rows, correct, substituted, deleted, inserted, tuple(delays), tuple(confusions))
