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
from digit_detector.streaming.engine import Detection
from digit_detector.streaming.thresholds import Thresholds
from digit_detector.webapp.worker import END, DROP, HEADER, FEED
from digit_detector.webapp.errors import RejectedError, make_busy_error, as_rejection

_MAX_LINE_BYTES = 1 << 24  # bytes that a process may tell at once
_RETRY_SECONDS = 2.0  # seconds between two attempts to start one
_START_SECONDS = 60.0  # that one is given to load its models
_STOP_SECONDS = 5.0  # seconds that it is given to end
_log = logging.getLogger("digits.serve")


@dataclass(frozen=True)
class StreamUpdate:
    """What was made of the pieces of a stream until now."""

    chunks: int  # how many of them were heard
    seconds: float
    level_db: float
    voice: float
    detections: list[Detection]
    ended: bool = False
    fault: RejectedError | None = None


@dataclass(eq=False)
class StreamHandle:
    """One stream, and who is told what was heard in it."""

    number: int
    rate: int
    on_update: Callable[[StreamUpdate], None]
    worker: _WorkerProcess
    sent: list[int] = field(default_factory=list)  # samples of each piece that was not heard yet
    waiting: int = 0  # samples in them
    chunks: int = 0  # that were heard


class WorkerPool:
    """Opens, feeds and ends streams; each is heard in one of some processes."""

    def __init__(
        self, model_dir: str, pipelines: Sequence[str], thresholds: Thresholds, max_streams: int,
        backlog_seconds: float, workers: int, worker_seconds: float, spotter: str | None = None,
    ) -> None:  # fmt: skip
        """`worker_seconds`: a process that gives no sign of life for so long is replaced."""
        options: dict[str, object] = {
            "model_dir": model_dir,
            "pipelines": list(pipelines),
            "thresholds": asdict(thresholds),
            "spotter": spotter,
        }
        self._max_streams, self._backlog = max_streams, backlog_seconds
        self._workers = [_WorkerProcess(options, self._dispatch, worker_seconds) for _ in range(workers)]
        self._streams: dict[int, StreamHandle] = {}
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
        return len(self._streams)

    def open(self, rate: int, on_update: Callable[[StreamUpdate], None]) -> StreamHandle:
        """A new stream. Raises RejectedError where there are too many, or nothing hears just now."""
        if len(self._streams) >= self._max_streams:
            raise make_busy_error(f"{self._most} streams are open, as many as are heard at once")
        alive = [worker for worker in self._workers if worker.is_alive]
        least = min(alive, key=lambda worker: len(worker.streams), default=None)
        if least is None:
            raise make_restarted_error()
        stream = StreamHandle(next(self._numbers) % 2**32, rate, on_update, least)
        self._streams[stream.number] = least.streams[stream.number] = stream
        return stream

    def feed(self, stream: StreamHandle, chunk: bytes) -> None:
        """More of a stream, 16-bit samples. Raises RejectedError where too much of it waits."""
        size = len(chunk) // 2
        stream.waiting += size
        self.seconds += size / stream.rate
        if stream.waiting > self._backlog * stream.rate:
            if not stream.worker.is_alive:
                raise make_restarted_error()
            raise make_busy_error("more streams are open than this machine can hear")
        stream.sent.append(size)
        stream.worker.send(FEED, stream, chunk)

    def end(self, stream: StreamHandle) -> None:
        """No more of a stream will come: its last digits are told, and that it has ended."""
        stream.worker.send(END, stream)

    def close(self, stream: StreamHandle) -> None:
        """Forget a stream."""
        if self._drop(stream):
            stream.worker.send(DROP, stream)

    def _dispatch(self, stream: StreamHandle, update: StreamUpdate) -> None:
        self.digits += len(update.detections)
        new = update.chunks - stream.chunks
        stream.waiting -= sum(stream.sent[:new])
        del stream.sent[:new]
        stream.chunks = update.chunks
        if update.ended:
            self._drop(stream)
        stream.on_update(update)

    def _drop(self, stream: StreamHandle) -> bool:
        stream.worker.streams.pop(stream.number, None)
        return self._streams.pop(stream.number, None) is not None


class _WorkerProcess:
    """One process that hears, seen from the server. One that ends or hangs is replaced, and its streams are lost.

    Every line that it writes is a sign of life. Time in which this process itself stood still does not count.
    """

    def __init__(self, options: dict[str, object], on_update: Callable[[StreamHandle, StreamUpdate], None], timeout: float) -> None:
        """`patience`: seconds without a sign of life, after which it is killed."""
        self._heartbeat = min(1.0, timeout / 5)
        self._options = json.dumps({**options, "heartbeat_seconds": self._heartbeat})
        self._dispatch, self._timeout = on_update, timeout
        self.streams: dict[int, StreamHandle] = {}
        self.restarts = 0
        self._process: Process | None = None
        self._running: asyncio.Task[None] | None = None
        self._is_ready = self._stopping = False
        self._silent = 0.0  # seconds since the last sign of life

    @property
    def is_alive(self) -> bool:
        """Whether it may be given streams: it has been started, and gave a sign of life just now."""
        return self._is_ready and self._silent < self._timeout / 2

    async def start(self) -> None:
        """Raises StreamError where it cannot begin."""
        await self._start()
        self._running = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        self._stopping = True
        if self._running is not None:
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.close()
            await asyncio.wait([self._running], timeout=_STOP_SECONDS)
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._kill()

    def send(self, kind: int, stream: StreamHandle, samples: bytes = b"") -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(HEADER.pack(kind, stream.number, stream.rate, len(samples)) + samples)

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "digit_detector.webapp.worker", self._options, stdin=PIPE, stdout=PIPE,
            limit=_MAX_LINE_BYTES, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
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
            watching = asyncio.ensure_future(self._watch_heartbeat(self._process))
            try:
                await self._read_updates(self._process)
            finally:
                watching.cancel()
                self._is_ready = False
            if self._stopping:
                return
            code = await self._process.wait()
            _log.error("a process that hears ended (exit code %s); another is started", code)
            for stream in list(self.streams.values()):
                self._dispatch(stream, _failure(make_restarted_error()))
            while True:
                try:
                    await self._start()
                    break
                except (StreamError, OSError) as error:
                    _log.error("%s; it is tried again", error)
                    await asyncio.sleep(_RETRY_SECONDS)
            self.restarts += 1

    async def _read_updates(self, process: Process) -> None:
        assert process.stdout is not None
        while (line := await process.stdout.readline()).endswith(b"\n"):  # one that dies may leave half a line
            self._silent = 0.0
            for row in json.loads(line):
                stream = self.streams.get(row["stream"])
                if stream is not None:  # otherwise it was closed meanwhile
                    self._dispatch(stream, _parse_update(row))

    async def _watch_heartbeat(self, process: Process) -> None:
        """Kill the process when it has given no sign of life for too long."""
        while self._silent < self._timeout:
            await asyncio.sleep(self._heartbeat)
            self._silent += self._heartbeat  # not what the clock says: where this process stood still, so did its reading
        _log.error("a process that hears gave no sign of life for %g s: it is killed", self._timeout)
        process.kill()

    async def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def make_restarted_error() -> RejectedError:
    """What the streams of a process that has ended or hangs are told."""
    return RejectedError(
        HTTPStatus.SERVICE_UNAVAILABLE, "restarted",
        "what hears this stream does not answer and is started again: start the stream again",
    )  # fmt: skip


def _parse_update(row: dict[str, object]) -> StreamUpdate:
    if "fault" in row:
        return _failure(AudioError(str(row["fault"])))
    return StreamUpdate(
        row["pieces"], row["seconds"], row["level_db"], row["voice"],  # type: ignore[arg-type]
        [Detection(*row) for row in row["digits"]], bool(row["ended"]),  # type: ignore[attr-defined]
    )  # fmt: skip


def _failure(error: DigitError) -> StreamUpdate:
    return StreamUpdate(0, 0.0, -120.0, 0.0, [], True, as_rejection(error))
