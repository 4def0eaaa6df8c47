"""From what the spotter says of every frame to words that are reported once.

A frame is 16 ms. The spotter says a digit during some frames after its end: a hill of that digit's probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from digit_detector.audio import Floats

SMOOTHING_FRAMES = 3  # frames over which probabilities are averaged
DROP_RATIO = 0.8  # of its height: a hill that is lower has passed its top
MAX_HOLD = 3  # frames without a new top after which a hill is reported all the same
MAX_PEAK_FRAMES = 12  # frames after which it is, whatever it does
REARM_RATIO = 0.5  # of a threshold: below it a hill has ended, and the same digit may come again
MIN_WORD_FRAMES = 4.0  # frames of a word
REFRACTORY_FRAMES = 9  # frames between reports, at least
_SURELY = 0.999  # a mean of float32 may be a little larger than the largest
LATENCY_FRAMES = 7.0  # frames from the end of a word to where the spotter says it loudest, on average
DUPLICATE_WINDOW = 0.264  # seconds in which nobody says the same digit twice


@dataclass(frozen=True)
class Candidate:
    """A digit that has just ended; frames count from the beginning of the stream."""

    digit: int  # the spotter's opinion
    spotted: Floats  # (10,) smoothed probabilities of all digits where this one's was largest
    first: float  # frame at which the word began
    last: float  # frame after its last
    frame: int  # the one that decided it


class PeakPicker:
    """Finds the hills, frame by frame. `threshold` is what a smoothed probability must reach."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        """Forget what came before."""
        self._recent = [np.zeros(10, dtype=np.float32)] * (SMOOTHING_FRAMES - 1)  # what came before the next frame
        self._risen = np.zeros(10, dtype=bool)  # digits whose hill was reported and has not ended
        self._largest = 0.0  # of the frames that were taken last
        self._hill: tuple[int, float, Floats, int, float] | None = None  # digit, height; what was said at its top, when
        self._since = self._lower = 0  # frames since the hill reached the threshold, and since it was highest
        self._reported = -REFRACTORY_FRAMES

    def pass_quiet(self, probabilities: Floats, largest: float) -> bool:
        """Take frames (F, 10), F at least 2, in one where nothing in or shortly before them can decide anything.

        `largest` is the largest of them. Says whether they were taken; if not, `frame` must take them one by one.
        """
        low = REARM_RATIO * self.threshold * _SURELY
        quiet = self._hill is None and largest < low and self._largest < low
        self._largest = largest
        if quiet:
            self._risen[:] = False
            self._recent = [probabilities[-2], probabilities[-1]]
        return quiet

    def frame(self, frame: int, probabilities: Floats, duration: float) -> Candidate | None:
        """The next frame's (10,) probabilities and how many frames ago its word began, -> the digit that it decides."""
        smoothed: Floats = (self._recent[0] + self._recent[1] + probabilities) / np.float32(SMOOTHING_FRAMES)
        self._recent = [self._recent[1], probabilities]
        self._risen &= smoothed >= REARM_RATIO * self.threshold
        digit = int(np.argmax(np.where(self._risen, 0.0, smoothed)))
        height = float(smoothed[digit])
        if self._hill is None:
            if self._risen[digit] or height < self.threshold or frame - self._reported < REFRACTORY_FRAMES:
                return None
            self._hill, self._since, self._lower = (digit, height, smoothed, frame, duration), 0, 0
            return None
        self._since, self._lower = self._since + 1, self._lower + 1
        if height > self._hill[1]:
            self._hill, self._lower = (digit, height, smoothed, frame, duration), 0
        if height >= DROP_RATIO * self._hill[1] and self._lower < MAX_HOLD and self._since < MAX_PEAK_FRAMES:
            return None
        digit, _, spotted, highest, duration = self._hill
        self._hill = None
        self._risen |= smoothed >= REARM_RATIO * self.threshold
        self._risen[digit] = True
        self._reported = frame
        loudest = highest + 1 - (SMOOTHING_FRAMES - 1) / 2
        last = loudest - LATENCY_FRAMES
        return Candidate(digit, spotted, min(loudest - duration, last - MIN_WORD_FRAMES), last, frame)


@dataclass(frozen=True)
class Detection:
    """A digit that was said."""

    digit: int
    confidence: float  # 0 to 1
    start: float  # seconds in the stream
    end: float
    delay: float  # seconds of the stream from the end of the word until it was known

    @property
    def reported(self) -> float:
        """Seconds in the stream until it was known."""
        return self.end + self.delay

    def repeats(self, earlier: Detection | None) -> bool:
        """Whether it is the same word once more: of a part of it the classifiers made the whole."""
        return earlier is not None and earlier.digit == self.digit and self.end - earlier.end < DUPLICATE_WINDOW


@dataclass(frozen=True)
class FusionScores:
    """What speaks for a digit having been said; all from 0 to 1."""

    spotted: float  # the spotter's probability
    is_digit: float  # the digit score of the classifiers
    classified: float  # their probability of this digit
    voice: float  # the largest voice activity in it

    @property
    def logits(self) -> tuple[float, ...]:
        """What the weights belong to."""
        return tuple(map(_logit, (self.spotted, self.is_digit, self.classified, self.voice)))


# A logistic regression on development streams, see benchmarks/evidence.py.
OFFSET = -1.39
WEIGHTS = (0.61, 0.52, 0.56, 0.29)
_NEVER = 1e-4  # no probability counts as nearer to 0 or 1


def confidence(evidence: FusionScores) -> float:
    """How sure one may be that a digit was said, from 0 to 1."""
    return _share(OFFSET + sum(weight * logit for weight, logit in zip(WEIGHTS, evidence.logits, strict=True)))


def mean_log_odds(shares: Sequence[float]) -> float:
    """What several that were asked say together: the mean of their logits, as a probability again."""
    return _share(sum(map(_logit, shares)) / len(shares))


def product_argmax(spotted: Sequence[float], classified: Sequence[float]) -> int:
    """The digit of the largest product of the two's probabilities, (10,) each."""
    both = [max(one, _NEVER) * max(other, _NEVER) for one, other in zip(spotted, classified, strict=True)]
    return both.index(max(both))


def _share(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))


def _logit(share: float) -> float:
    share = min(max(share, _NEVER), 1.0 - _NEVER)
    return math.log(share / (1.0 - share))
