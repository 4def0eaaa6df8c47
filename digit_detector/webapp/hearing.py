"""Live streams of all sockets: which process hears each of them, and who is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from itertools import count

from digit_detector.errors import AudioError, DigitError, StreamError
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.engine import Detection
from digit_detector.webapp.ears import END, FORGET, HEAD, HEAR
from digit_detector.webapp.faults import RefusedError, busy, refusal

_LONGEST_LINE = 1 << 24  # bytes that a process may tell at once
_PAUSE = 2.0  # seconds between two attempts to start one
_START_SECONDS = 60.0  # that one is given to load its models
_PATIENCE = 5.0  # seconds that it is given to end
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
    """One stream, and who is told what was heard in it."""

    number: int
    rate: int
    tell: Callable[[Heard], None]
    worker: _Worker
    sent: list[int] = field(default_factory=list)  # samples of each piece that was not heard yet
    waiting: int = 0  # samples in them
    pieces: int = 0  # that were heard


class Hearing:
    """Opens, feeds and ends streams; each is heard in one of some processes."""

    def __init__(
        self, model_dir: str, pipelines: Sequence[str], thresholds: DetectorConfig, most_streams: int,
        behind_seconds: float, workers: int, worker_seconds: float, spotter: str | None = None,
    ) -> None:  # fmt: skip
        """`worker_seconds`: a process that gives no sign of life for so long is replaced."""
        options: dict[str, object] = {
            "model_dir": model_dir,
            "pipelines": list(pipelines),
            "thresholds": asdict(thresholds),
            "spotter": spotter,
        }
        self._most, self._behind = most_streams, behind_seconds
        self._workers = [_Worker(options, self._tell, worker_seconds) for _ in range(workers)]
        self._lines: dict[int, Line] = {}
        self._numbers = count()
        self.digits = 0
        self.seconds = 0.0

    async def start(self) -> None:
        """Begin to hear; what is found is told in the running event loop."""
        try:
            await asyncio.gather(*(worker.start() for worker in self._workers))
        except (StreamError, OSError):
            await self.stop()
            raise

    async def stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    @property
    def workers(self) -> int:
        """How many processes there are to be."""
        return len(self._workers)

    @property
    def workers_alive(self) -> int:
        """How many of them can take a stream now."""
        return sum(worker.is_alive for worker in self._workers)

    @property
    def restarts(self) -> int:
        """How many processes were replaced."""
        return sum(worker.restarts for worker in self._workers)

    @property
    def streams(self) -> int:
        return len(self._lines)

    def open(self, rate: int, tell: Callable[[Heard], None]) -> Line:
        """A new stream. Raises RefusedError where there are too many, or nothing hears just now."""
        if len(self._lines) >= self._most:
            raise busy(f"{self._most} streams are open, as many as are heard at once")
        alive = [worker for worker in self._workers if worker.is_alive]
        least = min(alive, key=lambda worker: len(worker.lines), default=None)
        if least is None:
            raise restarted()
        line = Line(next(self._numbers) % 2**32, rate, tell, least)
        self._lines[line.number] = least.lines[line.number] = line
        return line

    def feed(self, line: Line, piece: bytes) -> None:
        """More of a stream, 16-bit samples. Raises RefusedError where too much of it waits."""
        size = len(piece) // 2
        line.waiting += size
        self.seconds += size / line.rate
        if line.waiting > self._behind * line.rate:
            if not line.worker.is_alive:
                raise restarted()
            raise busy("more streams are open than this machine can hear")
        line.sent.append(size)
        line.worker.say(HEAR, line, piece)

    def end(self, line: Line) -> None:
        """No more of a stream will come: its last digits are told, and that it has ended."""
        line.worker.say(END, line)

    def close(self, line: Line) -> None:
        """Forget a stream."""
        if self._forget(line):
            line.worker.say(FORGET, line)

    def _tell(self, line: Line, heard: Heard) -> None:
        self.digits += len(heard.detections)
        new = heard.pieces - line.pieces
        line.waiting -= sum(line.sent[:new])
        del line.sent[:new]
        line.pieces = heard.pieces
        if heard.ended:
            self._forget(line)
        line.tell(heard)

    def _forget(self, line: Line) -> bool:
        line.worker.lines.pop(line.number, None)
        return self._lines.pop(line.number, None) is not None


class _Worker:
    """One process that hears, seen from the server. One that ends or hangs is replaced, and its streams are lost.

    Every line that it writes is a sign of life. Time in which this process itself stood still does not count.
    """

    def __init__(self, options: dict[str, object], tell: Callable[[Line, Heard], None], patience: float) -> None:
        """`patience`: seconds without a sign of life, after which it is killed."""
        self._beat = min(1.0, patience / 5)
        self._options = json.dumps({**options, "heartbeat_seconds": self._beat})
        self._tell, self._patience = tell, patience
        self.lines: dict[int, Line] = {}
        self.restarts = 0
        self._process: Process | None = None
        self._running: asyncio.Task[None] | None = None
        self._is_ready = self._over = False
        self._silent = 0.0  # seconds since the last sign of life

    @property
    def is_alive(self) -> bool:
        """Whether it may be given streams: it has been started, and gave a sign of life just now."""
        return self._is_ready and self._silent < self._patience / 2

    async def start(self) -> None:
        """Raises StreamError where it cannot begin."""
        await self._start()
        self._running = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        self._over = True
        if self._running is not None:
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.close()
            await asyncio.wait([self._running], timeout=_PATIENCE)
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._kill()

    def say(self, kind: int, line: Line, samples: bytes = b"") -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(HEAD.pack(kind, line.number, line.rate, len(samples)) + samples)

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "digit_detector.webapp.ears", self._options, stdin=PIPE, stdout=PIPE,
            limit=_LONGEST_LINE, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_START_SECONDS):
                is_up = bool(await self._process.stdout.readline())
        except TimeoutError:
            is_up = False
        except asyncio.CancelledError:
            await self._kill()
            raise
        if not is_up:
            await self._kill()
            raise StreamError(f"a process that hears could not begin (exit code {self._process.returncode})")
        self._is_ready, self._silent = True, 0.0

    async def _run(self) -> None:
        """Hear what the process tells; start another when it ends, until `stop`."""
        assert self._process is not None
        while True:
            watching = asyncio.ensure_future(self._watch(self._process))
            try:
                await self._listen(self._process)
            finally:
                watching.cancel()
                self._is_ready = False
            if self._over:
                return
            code = await self._process.wait()
            _log.error("a process that hears ended (exit code %s); another is started", code)
            for line in list(self.lines.values()):
                self._tell(line, _failed(restarted()))
            while True:
                try:
                    await self._start()
                    break
                except (StreamError, OSError) as error:
                    _log.error("%s; it is tried again", error)
                    await asyncio.sleep(_PAUSE)
            self.restarts += 1

    async def _listen(self, process: Process) -> None:
        assert process.stdout is not None
        while (told := await process.stdout.readline()).endswith(b"\n"):  # one that dies may leave half a line
            self._silent = 0.0
            for row in json.loads(told):
                line = self.lines.get(row["stream"])
                if line is not None:  # otherwise it was closed meanwhile
                    self._tell(line, _heard(row))

    async def _watch(self, process: Process) -> None:
        """Kill the process when it has given no sign of life for too long."""
        while self._silent < self._patience:
            await asyncio.sleep(self._beat)
            self._silent += self._beat  # not what the clock says: where this process stood still, so did its reading
        _log.error("a process that hears gave no sign of life for %g s: it is killed", self._patience)
        process.kill()

    async def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def restarted() -> RefusedError:
    """What the streams of a process that has ended or hangs are told."""
    return RefusedError(
        HTTPStatus.SERVICE_UNAVAILABLE, "restarted",
        "what hears this stream does not answer and is started again: start the stream again",
    )  # fmt: skip


def _heard(row: dict[str, object]) -> Heard:
    if "fault" in row:
        return _failed(AudioError(str(row["fault"])))
    return Heard(
        row["pieces"], row["seconds"], row["level_db"], row["voice"],  # type: ignore[arg-type]
        [Detection(*said) for said in row["digits"]], bool(row["ended"]),  # type: ignore[attr-defined]
    )  # fmt: skip


def _failed(error: DigitError) -> Heard:
    return Heard(0, 0.0, -120.0, 0.0, [], True, refusal(error))
