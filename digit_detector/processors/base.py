"""The interface of every recogniser of recordings: bytes in, a digit as text out, with statistics of its calls."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np

from digit_detector.errors import DigitError
from digit_detector.labels import NUM_CLASSES

_TIMES = 1000  # of the last calls, from which percentiles are computed


@dataclass(frozen=True)
class Answer:
    """Result of a processor for one recording."""

    text: str  # the digit, or "" if there is none
    milliseconds: float
    confidence: float | None = None  # 0 to 1, of processors that have one
    error: str | None = None  # why there is no result

    @property
    def digit(self) -> int | None:
        return int(self.text) if self.text.isdigit() else None


@dataclass(frozen=True)
class Statistics:
    """Counts of calls; times in ms, of the last thousand calls without an error."""

    calls: int
    errors: int
    nothing: int  # calls without a digit
    digits: tuple[int, ...]  # how often each digit was the result
    mean_ms: float
    p50_ms: float
    p95_ms: float


class AudioProcessor(ABC):
    """A recogniser. A subclass defines `process_audio`, and need not call `__init__` of this class."""

    name = ""
    title = ""
    __lock: threading.Lock
    __counts: Counter[int | str]  # by digit, or the word "nothing" or "errors"
    __times: deque[float]  # ms

    def __new__(cls, *_: object, **__: object) -> AudioProcessor:
        self = super().__new__(cls)
        self.__lock = threading.Lock()
        self.reset_statistics()
        return self

    @property
    def unavailable(self) -> str | None:
        """Why it cannot run here; None if it can."""
        return None

    @property
    def about(self) -> dict[str, str]:
        """Metadata of its model."""
        return {}

    @abstractmethod
    def process_audio(self, audio_data: bytes) -> str:
        """The digit in a recording, as text; "" if there is none.

        Raises a DigitError that says why there is no result.
        """

    def recognise(self, audio_data: bytes) -> tuple[str, float | None]:
        """`process_audio`, and a confidence from 0 to 1 for processors that have one."""
        return self.process_audio(audio_data), None

    def answer(self, audio_data: bytes) -> Answer:
        """`recognise`, timed and counted; a DigitError becomes part of the answer."""
        started = time.perf_counter()
        try:
            text, confidence = self.recognise(audio_data)
            result = Answer(text, 1e3 * (time.perf_counter() - started), confidence)
        except DigitError as error:
            result = Answer("", 1e3 * (time.perf_counter() - started), error=str(error))
        with self.__lock:
            if result.error is not None:
                self.__counts["errors"] += 1
            else:
                self.__counts["nothing" if result.digit is None else result.digit] += 1
                self.__times.append(result.milliseconds)
        return result

    @property
    def statistics(self) -> Statistics:
        """Of all calls of `answer`."""
        with self.__lock:
            counts, times = self.__counts, np.array(self.__times or [0.0])
            digits = tuple(counts[digit] for digit in range(NUM_CLASSES))
            p50, p95 = (float(value) for value in np.percentile(times, (50, 95)))
            return Statistics(
                counts.total(), counts["errors"], counts["nothing"], digits, float(times.mean()), p50, p95
            )

    def reset_statistics(self) -> None:
        """Set all counts to zero."""
        with self.__lock:
            self.__counts, self.__times = Counter(), deque(maxlen=_TIMES)
