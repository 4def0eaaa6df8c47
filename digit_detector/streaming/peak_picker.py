"""Peak picking on smoothed frame posteriors: one candidate per peak, reported shortly after its maximum."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import reduce

import numpy as np

from digit_detector.audio import Floats
from digit_detector.labels import NUM_CLASSES
from digit_detector.streaming.config import DetectorConfig

_ROUNDING = 0.999  # a mean of float32 may be a little larger than the largest


@dataclass(frozen=True)
class Candidate:
    """A word that has just ended; frames count from the beginning of the stream."""

    digit: int  # the spotter's
    posteriors: Floats  # (C,) smoothed, of all digits at the peak
    first: float  # frame at which the word began
    last: float  # frame after its last
    frame: int  # at which the peak was decided


@dataclass(frozen=True)
class _Peak:
    digit: int
    height: float
    posteriors: Floats
    frame: int
    duration: float


class PeakPicker:
    """Turns a stream's posteriors, frame by frame, into candidates."""

    def __init__(self, config: DetectorConfig) -> None:
        self._config = config
        self._rearm = config.rearm_ratio * config.spotter_threshold
        self.reset()

    def reset(self) -> None:
        """Forget earlier frames."""
        size = self._config.smoothing_frames - 1
        self._recent = deque([np.zeros(NUM_CLASSES, dtype=np.float32)] * size, maxlen=size)
        self._above = np.zeros(NUM_CLASSES, dtype=bool)  # digits whose peak was reported and that have not fallen since
        self._largest = 0.0  # of the frames that were pushed last
        self._peak: _Peak | None = None
        self._age = self._hold = 0  # frames since the peak began, and since its maximum
        self._reported = -self._config.refractory_frames

    def skip_low(self, posteriors: Floats, largest: float) -> bool:
        """Push (F, C) frames at once, F at least 2, of which `largest` is the maximum, if they can decide nothing.

        Returns False, and pushes nothing, where `push` must take them one by one.
        """
        limit = self._rearm * _ROUNDING
        low = self._peak is None and largest < limit and self._largest < limit
        self._largest = largest
        if low:
            self._above[:] = False
            self._recent.extend(posteriors)
        return low

    def push(self, frame: int, posteriors: Floats, duration: float) -> Candidate | None:
        """Push one frame's (C,) posteriors and the frames since its word began; returns a candidate once decided."""
        config = self._config
        smoothed: Floats = reduce(np.add, [*self._recent, posteriors]) / np.float32(config.smoothing_frames)
        self._recent.append(posteriors)
        self._above &= smoothed >= self._rearm
        digit = int(np.argmax(np.where(self._above, 0.0, smoothed)))
        height = float(smoothed[digit])
        if self._peak is None:
            ready = frame - self._reported >= config.refractory_frames
            if ready and height >= config.spotter_threshold and not self._above[digit]:
                self._peak, self._age, self._hold = _Peak(digit, height, smoothed, frame, duration), 0, 0
            return None
        self._age, self._hold = self._age + 1, self._hold + 1
        if height > self._peak.height:
            self._peak, self._hold = _Peak(digit, height, smoothed, frame, duration), 0
        is_falling = height < config.drop_ratio * self._peak.height
        if not is_falling and self._hold < config.max_hold_frames and self._age < config.max_peak_frames:
            return None
        peak, self._peak = self._peak, None
        self._above |= smoothed >= self._rearm
        self._above[peak.digit] = True
        self._reported = frame
        centre = peak.frame + 1 - (config.smoothing_frames - 1) / 2
        last = centre - config.latency_frames
        first = min(centre - peak.duration, last - config.min_word_frames)
        return Candidate(peak.digit, peak.posteriors, first, last, frame)


@dataclass(frozen=True)
class Detection:
    """A spoken digit."""

    digit: int
    confidence: float  # 0 to 1
    start: float  # seconds in the stream
    end: float
    delay: float  # seconds of the stream from the end of the word to the report

    @property
    def reported(self) -> float:
        """Seconds in the stream at which it was reported."""
        return self.end + self.delay

    def repeats(self, earlier: Detection | None, within: float) -> bool:
        """Whether it is the same word as `earlier`: the same digit that ends less than `within` seconds later."""
        return earlier is not None and earlier.digit == self.digit and self.end - earlier.end < within
