"""Alignment of detections with a reference: correct, substituted, deleted, inserted; latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from digit_detector.evaluation.metrics import poisson_interval, wilson_interval
from digit_detector.evaluation.streams import LabelledDigit
from digit_detector.labels import NUM_CLASSES

NEAR = 0.3  # seconds after the end of a digit until which a detection of it may end
NONE = -1  # in place of a digit
Pair = tuple[int | None, int | None]  # places in reference and hypothesis


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
    confusions: tuple[tuple[int, int], ...] = ()  # (reference, hypothesis) of each error; -1 is none
    strings: int = 0
    whole: int = 0  # strings without an error

    def __add__(self, other: Score) -> Score:
        return Score(
            self.reference + other.reference, self.correct + other.correct, self.substituted + other.substituted,
            self.deleted + other.deleted, self.inserted + other.inserted, self.delays + other.delays,
            self.confusions + other.confusions, self.strings + other.strings, self.whole + other.whole,
        )  # fmt: skip

    @property
    def errors(self) -> int:
        return self.substituted + self.deleted + self.inserted

    @property
    def digit_error_rate(self) -> float:
        """(substituted + deleted + inserted) / reference, as a word error rate."""
        return self.errors / max(1, self.reference)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the digit error rate, of independent digits; above 100 % that of a count."""
        if self.errors <= self.reference:
            return wilson_interval(self.errors, self.reference)
        low, high = (bound / max(1, self.reference) for bound in poisson_interval(self.errors))
        return low, high

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(11, 11) counts: rows are the digits spoken and none, columns the digits detected and none."""
        counts = np.zeros((NUM_CLASSES + 1, NUM_CLASSES + 1), dtype=np.int64)
        for reference, hypothesis in self.confusions:
            counts[reference, hypothesis] += 1  # -1 is the last
        return counts

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


def align(costs: NDArray[np.int64]) -> list[Pair]:
    """The alignment of two sequences with the least edit distance.

    `costs` (rows, columns): 0 for equal items, 1 for different ones, 2 or more for items that cannot be paired. Returns
    (i, j) in order; j is None for a deletion, i for an insertion.
    """
    rows, columns = costs.shape
    pair = costs.tolist()
    cost = [[*range(columns + 1)], *([i, *([0] * columns)] for i in range(1, rows + 1))]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            cost[i][j] = min(cost[i - 1][j] + 1, cost[i][j - 1] + 1, cost[i - 1][j - 1] + pair[i - 1][j - 1])
    pairs: list[Pair] = []
    i, j = rows, columns
    while i or j:
        if i and j and pair[i - 1][j - 1] < 2 and cost[i][j] == cost[i - 1][j - 1] + pair[i - 1][j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif i and cost[i][j] == cost[i - 1][j] + 1:
            i -= 1
            pairs.append((i, None))
        else:
            j -= 1
            pairs.append((None, j))
    return pairs[::-1]


def count_pairs(pairs: Sequence[Pair], reference: Sequence[int], hypothesis: Sequence[int]) -> Score:
    """The counts of an alignment of two sequences of digits, without delays."""
    digits = [(NONE if i is None else reference[i], NONE if j is None else hypothesis[j]) for i, j in pairs]
    wrong = [(r, h) for r, h in digits if r != h]
    deleted, inserted = sum(h == NONE for _, h in wrong), sum(r == NONE for r, _ in wrong)
    return Score(
        len(reference), len(digits) - len(wrong), len(wrong) - deleted - inserted, deleted, inserted,
        confusions=tuple(wrong), strings=1, whole=int(not wrong),
    )  # fmt: skip


def score(reference: Sequence[LabelledDigit], hypothesis: Sequence[Hypothesis]) -> Score:
    """Align in order of time, pairing only what `can_match`, and count as in a word error rate."""
    hypothesis = sorted(hypothesis, key=lambda detection: detection.end)
    costs = [[(r.digit != h.digit) if can_match(r, h) else 2 for h in hypothesis] for r in reference]
    pairs = align(np.array(costs, dtype=np.int64).reshape(len(reference), len(hypothesis)))
    delays = [
        hypothesis[j].reported - reference[i].end
        for i, j in pairs
        if i is not None and j is not None and reference[i].digit == hypothesis[j].digit
    ]
    counts = count_pairs(pairs, [d.digit for d in reference], [d.digit for d in hypothesis])
    return replace(counts, delays=tuple(delays))


def align_strings(reference: Sequence[int], hypothesis: Sequence[int]) -> list[Pair]:
    """The alignment of two strings of digits by plain edit distance."""
    return align(np.not_equal.outer(reference, hypothesis).astype(np.int64))
