"""What every recogniser of recordings is: bytes in, a digit as text out, with a count of how it went."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from digit_detector.errors import DigitError

_TIMES = 1000  # of the last calls, from which percentiles are made


@dataclass(frozen=True)
class Answer:
    """What a processor made of one recording."""

    text: str  # the digit, or "" where none was heard
    milliseconds: float
    confidence: float | None = None  # 0 to 1, of processors that say
    error: str | None = None  # why there is no answer

    @property
    def digit(self) -> int | None:
        return int(self.text) if self.text.isdigit() else None


@dataclass(frozen=True)
class Statistics:
    """How the calls until now went; times in ms, of the last thousand that were answered."""

    calls: int
    errors: int
    nothing: int  # calls in which no digit was heard
    digits: tuple[int, ...]  # how often each of the ten was the answer
    mean_ms: float
    p50_ms: float
    p95_ms: float


@dataclass
class _Counts:
    calls: int = 0
    errors: int = 0
    nothing: int = 0
    digits: list[int] = field(default_factory=lambda: [0] * 10)
    times: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES))


class AudioProcessor(ABC):
    """A recogniser. A subclass defines `process_audio`, and needs not call `__init__` of this class."""

    name = ""
    title = ""
    __counts: _Counts
    __lock: threading.Lock

    def __new__(cls, *_: object, **__: object) -> AudioProcessor:
        self = super().__new__(cls)
        self.__counts, self.__lock = _Counts(), threading.Lock()
        return self

    @property
    def unavailable(self) -> str | None:
        """Why it cannot run here; None where it can."""
        return None

    @property
    def about(self) -> dict[str, str]:
        """What its model says of itself."""
        return {}

    @abstractmethod
    def process_audio(self, audio_data: bytes) -> str:
        """The bytes of a recording -> the digit that is said in it, as text; "" where none is.

        Raises a DigitError that says why there is no answer.
        """

    def recognise(self, audio_data: bytes) -> tuple[str, float | None]:
        """The same with a confidence from 0 to 1, where this processor has one."""
        return self.process_audio(audio_data), None

    def answer(self, audio_data: bytes) -> Answer:
        """What `recognise` says and how long it took; an error is part of the answer, and counted."""
        started = time.perf_counter()
        try:
            text, confidence = self.recognise(audio_data)
        except DigitError as error:
            with self._counting() as counts:
                counts.errors += 1
            return Answer("", 1e3 * (time.perf_counter() - started), error=str(error))
        milliseconds = 1e3 * (time.perf_counter() - started)
        found = Answer(text, milliseconds, confidence)
        with self._counting() as counts:
            counts.times.append(milliseconds)
            if found.digit is not None and found.digit < len(counts.digits):
                counts.digits[found.digit] += 1
            else:
                counts.nothing += 1
        return found

    @property
    def statistics(self) -> Statistics:
        """Of all calls of `answer`."""
        with self.__lock:
            counts = self.__counts
            times = np.array(counts.times or [0.0])
            p50, p95 = (float(value) for value in np.percentile(times, (50, 95)))
            return Statistics(
                counts.calls, counts.errors, counts.nothing, tuple(counts.digits), float(times.mean()), p50, p95
            )

    def reset_statistics(self) -> None:
        """Count from nothing again."""
        with self.__lock:
            self.__counts = _Counts()

    @contextmanager
    def _counting(self) -> Iterator[_Counts]:
        with self.__lock:
            self.__counts.calls += 1
            yield self.__counts
