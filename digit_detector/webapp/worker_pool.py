"""Live streams of all WebSockets, distributed over worker processes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from itertools import count
from typing import Any

from digit_detector.errors import AudioError, DigitError, StreamError
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.engine import Detection
from digit_detector.webapp.child_process import ChildProcess
from digit_detector.webapp.errors import RejectedError, as_rejection, make_busy_error
from digit_detector.webapp.worker import DROP, END, FEED, HEADER, START

_log = logging.getLogger("digits.serve")


@dataclass(frozen=True)
class StreamUpdate:
    """State of a stream after a round of its worker, and the digits detected in that round."""

    chunks: int = 0  # processed since the stream began
    seconds: float = 0.0  # of audio processed since then
    level_db: float = -120.0
    voice: float = 0.0  # probability of speech
    detections: list[Detection] = field(default_factory=list)
    provisional: list[Detection] = field(default_factory=list)  # of the utterance that has not ended
    ended: bool = False
    fault: RejectedError | None = None


@dataclass(eq=False)
class StreamHandle:
    """One open stream; `on_update` is called with every update."""

    number: int
    rate: int  # Hz
    on_update: Callable[[StreamUpdate], None]
    worker: _Worker
    sent: list[int] = field(default_factory=list)  # samples of each chunk that is not processed yet
    waiting: int = 0  # sum of `sent`
    chunks: int = 0  # processed


class WorkerPool:
    """Opens, feeds and ends streams; each runs in one of the worker processes."""

    def __init__(
        self, config: DetectorConfig, model: str | None, max_streams: int, backlog_seconds: float, workers: int,
        worker_seconds: float,
    ) -> None:  # fmt: skip
        """`backlog_seconds`: unprocessed audio per stream. `worker_seconds`: heartbeat timeout of a worker."""
        options = {"config": asdict(config), "model": model}
        self.context = config.context  # of streams that name none
        self._max_streams, self._backlog = max_streams, backlog_seconds
        self._workers = [_Worker(options, self._dispatch, worker_seconds) for _ in range(workers)]
        self._streams: dict[int, StreamHandle] = {}
        self._numbers = count()
        self.workers = workers
        self.digits = 0
        self.seconds = 0.0

    async def start(self) -> None:
        """Start the workers; updates arrive in the running event loop. Raises StreamError if one cannot start."""
        try:
            await asyncio.gather(*(worker.start() for worker in self._workers))
        except (StreamError, OSError):
            await self.stop()
            raise

    async def stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    @property
    def workers_alive(self) -> int:
        """Number of workers that accept streams now."""
        return sum(worker.is_alive for worker in self._workers)

    @property
    def restarts(self) -> int:
        return sum(worker.restarts for worker in self._workers)

    @property
    def streams(self) -> int:
        return len(self._streams)

    def open(self, rate: int, context: str, on_update: Callable[[StreamUpdate], None]) -> StreamHandle:
        """Open a stream of `rate` Hz on the worker with the fewest. Raises RejectedError if none is available."""
        if len(self._streams) >= self._max_streams:
            raise make_busy_error(f"{self._max_streams} streams are open, the limit of this server")
        alive = [worker for worker in self._workers if worker.is_alive]
        worker = min(alive, key=lambda each: len(each.streams), default=None)
        if worker is None:
            raise _make_restarted_error()
        stream = StreamHandle(next(self._numbers) % 2**32, rate, on_update, worker)
        self._streams[stream.number] = worker.streams[stream.number] = stream
        worker.send(START, stream, context.encode())
        return stream

    def feed(self, stream: StreamHandle, chunk: bytes) -> None:
        """Send 16-bit samples to a stream's worker. Raises RejectedError if its backlog is full."""
        size = len(chunk) // 2
        stream.waiting += size
        self.seconds += size / stream.rate
        if stream.waiting > self._backlog * stream.rate:
            if not stream.worker.is_alive:
                raise _make_restarted_error()
            raise make_busy_error("more streams are open than this machine can process")
        stream.sent.append(size)
        stream.worker.send(FEED, stream, chunk)

    def end(self, stream: StreamHandle) -> None:
        """Flush a stream: its last update has the remaining digits and `ended`."""
        stream.worker.send(END, stream)

    def close(self, stream: StreamHandle) -> None:
        """Drop a stream; no further update comes."""
        if self._drop(stream):
            stream.worker.send(DROP, stream)

    def _dispatch(self, stream: StreamHandle, update: StreamUpdate) -> None:
        self.digits += len(update.detections)
        processed = update.chunks - stream.chunks
        stream.waiting -= sum(stream.sent[:processed])
        del stream.sent[:processed]
        stream.chunks = update.chunks
        if update.ended:
            self._drop(stream)
        stream.on_update(update)

    def _drop(self, stream: StreamHandle) -> bool:
        stream.worker.streams.pop(stream.number, None)
        return self._streams.pop(stream.number, None) is not None


class _Worker:
    """One worker process and its streams. If it ends or hangs, it is restarted, and its streams fail.

    Every line that it writes is a heartbeat. Time during which this process itself was suspended does not count.
    """

    def __init__(
        self, options: dict[str, Any], dispatch: Callable[[StreamHandle, StreamUpdate], None], timeout: float
    ) -> None:
        """`timeout`: seconds without a heartbeat after which the process is killed."""
        self._heartbeat = min(1.0, timeout / 5)
        command = ("-P", "-m", "digit_detector.webapp.worker")
        self._child = ChildProcess(command, {**options, "heartbeat_seconds": self._heartbeat})
        self._dispatch, self._timeout = dispatch, timeout
        self.streams: dict[int, StreamHandle] = {}
        self.restarts = 0
        self._running: asyncio.Task[None] | None = None
        self._is_ready = False
        self._silent = 0.0  # seconds since the last heartbeat

    @property
    def is_alive(self) -> bool:
        """Whether it accepts streams: it has started, and a heartbeat came recently."""
        return self._is_ready and self._silent < self._timeout / 2

    async def start(self) -> None:
        """Raises StreamError if the process does not start."""
        await self._child.start()
        self._is_ready = True
        self._running = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._child.stop()

    def send(self, kind: int, stream: StreamHandle, content: bytes = b"") -> None:
        if not self._child.has_ended and not self._child.requests.is_closing():
            self._child.requests.write(HEADER.pack(kind, stream.number, stream.rate, len(content)) + content)

    async def _run(self) -> None:
        """Read updates; restart the process whenever it ends."""
        while True:
            watching = asyncio.ensure_future(self._watch_heartbeat())
            try:
                while (line := await self._child.replies.readline()).endswith(b"\n"):  # half a line: it was killed
                    self._silent = 0.0
                    for row in json.loads(line):
                        stream = self.streams.get(row.pop("stream"))
                        if stream is not None:  # otherwise it was closed meanwhile
                            self._dispatch(stream, _parse_update(row))
            finally:
                watching.cancel()
                self._is_ready = False
            _log.error("a worker process ended (exit code %s); it is restarted", await self._child.kill())
            for stream in list(self.streams.values()):
                self._dispatch(stream, _make_failure(_make_restarted_error()))
            await self._child.restart()
            self._is_ready, self._silent = True, 0.0
            self.restarts += 1

    async def _watch_heartbeat(self) -> None:
        """Kill the process after `timeout` seconds without a heartbeat."""
        while self._silent < self._timeout:
            await asyncio.sleep(self._heartbeat)
            self._silent += self._heartbeat  # counted, not read from the clock: it stands still with this process
        _log.error("a worker process sent no heartbeat for %g s: it is killed", self._timeout)
        await self._child.kill()


def _make_restarted_error() -> RejectedError:
    """For the streams of a worker that has ended or hangs."""
    return RejectedError(
        HTTPStatus.SERVICE_UNAVAILABLE, "restarted",
        "the process of this stream does not answer and is being restarted: start the stream again",
    )  # fmt: skip


def _parse_update(row: dict[str, Any]) -> StreamUpdate:
    if "fault" in row:
        return _make_failure(AudioError(row["fault"]))
    detected = {key: [Detection(*values) for values in row[key]] for key in ("detections", "provisional")}
    return StreamUpdate(**{**row, **detected})


def _make_failure(error: DigitError) -> StreamUpdate:
    return StreamUpdate(ended=True, fault=as_rejection(error))
