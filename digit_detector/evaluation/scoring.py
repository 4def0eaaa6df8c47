"""What was found against what was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from digit_detector.evaluation.streams import LabelledDigit

NEAR = 0.3  # seconds after the end of a digit until which it may be found to have ended


class Found(Protocol):
    """A detection, as far as it is scored."""

    @property
    def digit(self) -> int: ...
    @property
    def end(self) -> float: ...
    @property
    def reported(self) -> float: ...


@dataclass(frozen=True)
class Score:
    """Counts of a stream or of several."""

    said: int = 0
    right: int = 0
    substituted: int = 0
    deleted: int = 0
    inserted: int = 0
    delays: tuple[float, ...] = ()  # seconds from the end of each word that was right to its report
    confusions: tuple[tuple[int, int], ...] = ()  # (said, found); -1 is none

    def __add__(self, other: Score) -> Score:
        return Score(
            self.said + other.said, self.right + other.right, self.substituted + other.substituted,
            self.deleted + other.deleted, self.inserted + other.inserted, self.delays + other.delays,
            self.confusions + other.confusions,
        )  # fmt: skip

    @property
    def accuracy(self) -> float:
        """1 - (substituted + deleted + inserted) / said."""
        return 1.0 - (self.substituted + self.deleted + self.inserted) / max(1, self.said)

    def delay(self, percent: float) -> float:
        """A percentile of the delays, seconds."""
        return float(np.percentile(self.delays, percent)) if self.delays else float("nan")


def can_match(said: LabelledDigit, found: Found) -> bool:
    """Whether what was found may be this word."""
    return said.start <= found.end <= said.end + NEAR


def score(said: Sequence[LabelledDigit], found: Sequence[Found]) -> Score:
    """The alignment with the fewest faults, in the order of time, that pairs only what can be the same word.

    That is what is found to end after the word began and no later than NEAR after it ended: where a recording's noise
    reaches up to the word's level, its end as it is measured lies behind its end as it is heard.
    """
    found = sorted(found, key=lambda detection: detection.end)
    rows, columns = len(said), len(found)
    faults = np.zeros((rows + 1, columns + 1), dtype=np.int64)
    faults[:, 0], faults[0, :] = np.arange(rows + 1), np.arange(columns + 1)
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            best = min(faults[i - 1, j], faults[i, j - 1]) + 1
            if can_match(said[i - 1], found[j - 1]):
                best = min(best, faults[i - 1, j - 1] + (said[i - 1].digit != found[j - 1].digit))
            faults[i, j] = best
    right, substituted, deleted, inserted = 0, 0, 0, 0
    delays, confusions = [], []
    i, j = rows, columns
    while i or j:
        near = i and j and can_match(said[i - 1], found[j - 1])
        wrong = bool(near and said[i - 1].digit != found[j - 1].digit)
        if near and faults[i, j] == faults[i - 1, j - 1] + wrong:
            i, j = i - 1, j - 1
            if wrong:
                substituted += 1
                confusions.append((said[i].digit, found[j].digit))
            else:
                right += 1
                delays.append(found[j].reported - said[i].end)
        elif i and faults[i, j] == faults[i - 1, j] + 1:
            i, deleted = i - 1, deleted + 1
            confusions.append((said[i].digit, -1))
        else:
            j, inserted = j - 1, inserted + 1
            confusions.append((-1, found[j].digit))
    return Score(rows, right, substituted, deleted, inserted, tuple(delays), tuple(confusions))
