"""Live streams of all sockets, heard together by one thread."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from digit_detector.streaming.engine import Detection, Engine
from digit_detector.streaming.pool import DetectorPool
from digit_detector.streaming.stream import BLOCK_SECONDS
from digit_detector.webapp.faults import RefusedError, busy, refusal
from ml_training.errors import DigitError, StreamError

_ROUND = 0.016  # seconds: what came meanwhile is heard at once, which costs the networks less than one by one
_log = logging.getLogger("digits.serve")


@dataclass(frozen=True)
class Heard:
    """What was made of the pieces of a stream until now."""

    pieces: int  # how many of them were heard
    seconds: float
    level_db: float
    voice: float
    detections: list[Detection]
    ended: bool = False
    fault: RefusedError | None = None


@dataclass(eq=False)
class Line:
    """One stream on its way to the thread. `tell` is called in the event loop."""

    rate: int
    tell: Callable[[Heard], None]
    waiting: deque[bytes | None] = field(default_factory=deque)  # pieces of 16-bit samples; None: it has ended
    samples: int = 0  # that wait
    pieces: int = 0  # that were heard
    closed: bool = False


class Hearing:
    """Opens, feeds and ends streams from the event loop; the networks run in a thread of its own."""

    def __init__(self, engine: Engine, most_streams: int, behind_seconds: float) -> None:
        self._pool = DetectorPool(engine=engine, most_seconds=2 * behind_seconds + 1)
        self._most, self._behind = most_streams, behind_seconds
        self._lines: dict[Line, None] = {}
        self._opened: deque[Line] = deque()
        self._wake = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._work, name="hearing", daemon=True)
        self.digits = 0
        self.seconds = 0.0

    def start(self) -> None:
        """Begin to hear; what is found is told in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        self._over = True
        self._wake.set()
        self._thread.join(timeout=5.0)

    @property
    def streams(self) -> int:
        return len(self._lines)

    def open(self, rate: int, tell: Callable[[Heard], None]) -> Line:
        """A new stream. Raises RefusedError where there are too many."""
        if len(self._lines) >= self._most:
            raise busy(f"{self._most} streams are open, as many as are heard at once")
        line = Line(rate, tell)
        self._lines[line] = None
        self._opened.append(line)
        return line

    def feed(self, line: Line, piece: bytes) -> None:
        """More of a stream, 16-bit samples. Raises RefusedError where too much of it waits."""
        line.samples += len(piece) // 2
        self.seconds += len(piece) / 2 / line.rate
        if line.samples > self._behind * line.rate:
            raise busy("more streams are open than this machine can hear")
        line.waiting.append(piece)
        self._wake.set()

    def end(self, line: Line) -> None:
        """No more of a stream will come: its last digits are told, and that it has ended."""
        line.waiting.append(None)
        self._wake.set()

    def close(self, line: Line) -> None:
        """Forget a stream."""
        self._lines.pop(line, None)
        line.closed = True
        self._wake.set()

    def _work(self) -> None:
        mine: dict[Line, None] = {}
        while not self._over:
            self._wake.wait()
            self._wake.clear()
            began = time.monotonic()
            try:
                told = self._round(mine)
            except Exception:  # a fault of ours in one stream: the streams are lost, the server is not
                _log.exception("the streams that were open are ended")
                told = [(line, _failed(line, StreamError("lost"))) for line in mine]
                for line in mine:
                    self._pool.close(line)
                mine.clear()
            if told and not self._over:
                self._loop.call_soon_threadsafe(self._deliver, told)
            time.sleep(max(0.0, _ROUND - (time.monotonic() - began)))

    def _round(self, mine: dict[Line, None]) -> list[tuple[Line, Heard]]:
        while self._opened:
            mine[line := self._opened.popleft()] = None
            self._pool.open(line)
        told: list[tuple[Line, Heard]] = []
        fed: dict[Line, bool] = {}
        for line in list(mine):
            if line.closed:
                self._pool.close(line)
                del mine[line]
                continue
            if not line.waiting:
                continue
            try:
                fed[line] = self._take(line)
            except DigitError as error:
                told.append((line, _failed(line, error)))
                self._pool.close(line)
                del mine[line]
        found = self._pool.run()
        for line, ended in fed.items():
            stream = self._pool.stream(line)
            detections = found.get(line, [])
            if ended:
                detections += self._pool.flush(line)
                del mine[line]
            seconds = stream.blocks * BLOCK_SECONDS
            told.append((line, Heard(line.pieces, seconds, stream.energy.level_db, stream.voice, detections, ended)))
        return told

    def _take(self, line: Line) -> bool:
        """Feed what waits; -> whether the stream has ended."""
        pieces: list[bytes] = []
        ended = False
        while line.waiting and not ended:
            piece = line.waiting.popleft()
            if piece is None:
                ended = True
            else:
                pieces.append(piece)
        if pieces:
            samples = np.frombuffer(b"".join(pieces), dtype="<i2")
            line.samples -= len(samples)
            line.pieces += len(pieces)
            self._pool.feed(line, samples, line.rate)
        return ended

    def _deliver(self, told: list[tuple[Line, Heard]]) -> None:
        for line, heard in told:
            self.digits += len(heard.detections)
            if heard.ended:
                self._lines.pop(line, None)
            if not line.closed:
                line.tell(heard)


def _failed(line: Line, error: DigitError) -> Heard:
    return Heard(line.pieces, 0.0, -120.0, 0.0, [], True, refusal(error))
