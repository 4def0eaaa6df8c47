"""Uploaded recordings: decoded in child processes within limits, and classified, with clients in turns."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
from collections.abc import Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, ClassVar, Protocol

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import AudioError, did_you_mean
from digit_detector.processors import PROCESSORS, Answer, AudioProcessor, Processors
from digit_detector.webapp.child_process import ChildProcess
from digit_detector.webapp.clients import FairPool
from digit_detector.webapp.decode_worker import DecodeLimits
from digit_detector.webapp.errors import RejectedError, as_rejection, make_busy_error
from digit_detector.webapp.limits import ServerLimits

ALL = "all"
_GRACE = 0.25  # seconds to finish an upload whose client has disconnected
_Answers = list[tuple[str, Answer]]  # (processor, answer)
_log = logging.getLogger("digits.serve")


class DecodeWorker:
    """A decoder process, one upload at a time; it is restarted after an upload that exceeds a limit."""

    command: ClassVar[Sequence[str]] = ("-P", "-m", "digit_detector.webapp.decode_worker")

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        self.child = ChildProcess(self.command, asdict(limits))
        self.start, self.stop = self.child.start, self.child.stop

    async def recover(self) -> None:
        """Restart the process if it has ended; returns when it is ready."""
        if self.child.has_ended:
            await self.child.restart()

    async def decode(self, content: bytes, encoding: str | None = None, rate: int | None = None) -> Floats:
        """Decode an upload to one channel (T,) at 8 kHz; `encoding` and `rate` are of sound without a header.

        Raises RejectedError if it is not a recording or exceeds a limit. The process ends if a limit is exceeded, or
        the caller is cancelled.
        """
        if self.child.has_ended:
            raise make_busy_error("the decoder process has ended and is being restarted")
        exchange = asyncio.ensure_future(self._exchange(content, encoding, rate))
        keep = False
        try:
            async with asyncio.timeout(self._limits.wall_seconds):
                reply, payload = await asyncio.shield(exchange)
            keep = not reply["ends"]
        except TimeoutError:
            raise _reject(f"takes more than {self._limits.wall_seconds:g} s to decode") from None
        except asyncio.CancelledError:  # a process that finishes at once need not be restarted
            await asyncio.wait((exchange,), timeout=_GRACE)
            keep = exchange.done() and exchange.exception() is None and not exchange.result()[0]["ends"]
            raise
        except (EOFError, ConnectionError, ValueError):  # no reply, or half of one
            raise self._explain_end(await self.child.kill()) from None
        finally:
            if not keep:
                exchange.cancel()
                await self.child.kill()
        if log := reply.get("log"):
            _log.error("an upload of %d bytes could not be decoded: %s", len(content), ascii(log))
        if "code" in reply:
            raise RejectedError(reply["status"], reply["code"], reply["message"])
        return np.frombuffer(payload, dtype="<f4")

    async def _exchange(self, content: bytes, encoding: str | None, rate: int | None) -> tuple[dict[str, Any], bytes]:
        header = {"size": len(content), "encoding": encoding, "rate": rate}
        self.child.requests.write(json.dumps(header).encode() + b"\n")
        self.child.requests.write(content)
        await self.child.requests.drain()
        reply = json.loads(await self.child.replies.readline())
        if reply["size"] > 4 * SAMPLE_RATE * (self._limits.most_seconds + 1):
            raise ValueError(f"a decoder process sent an invalid reply of {reply['size']} bytes")
        return reply, await self.child.replies.readexactly(reply["size"])

    def _explain_end(self, code: int | None) -> RejectedError:
        if code == -getattr(signal, "SIGPROF", 0):
            return _reject(f"takes more than {self._limits.cpu_seconds:g} s of a processor to decode")
        _log.warning("a decoder process ended (exit code %s) during an upload; it is restarted", code)
        return _reject("made the decoder fail: it is damaged, or not a recording")


class Upload(Protocol):
    """The file of a request, which may be on disk until its turn."""

    async def read(self) -> bytes: ...


class UploadProcessor:
    """Decodes and classifies uploads, a few at a time, with clients in turns."""

    def __init__(self, processors: Processors, limits: ServerLimits) -> None:
        self.processors = processors
        self.reasons = {name: _hide_files(name, why) for name, why in processors.unavailable.items()}
        decode_limits = DecodeLimits(
            limits.upload_seconds, limits.decode_cpu_seconds, limits.decode_seconds, limits.decode_bytes
        )
        self._workers = [DecodeWorker(decode_limits) for _ in range(limits.uploads)]
        self._pool = FairPool(self._workers, limits.uploads_waiting)
        self._returning: set[asyncio.Task[None]] = set()
        self.count = 0  # in progress or waiting

    async def start(self) -> None:
        """Start the decoder processes. Raises StreamError if one does not start."""
        await asyncio.gather(*(worker.start() for worker in self._workers))

    async def stop(self) -> None:
        for task in self._returning:
            task.cancel()
        await asyncio.gather(*self._returning, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    def select(self, method: str) -> Sequence[AudioProcessor]:
        """The processor of a name, or all. Raises RejectedError for one that is unknown or unavailable."""
        if method == ALL:
            return list(self.processors.values())
        if method in self.processors:
            return [self.processors[method]]
        check_method(method)
        raise RejectedError(HTTPStatus.CONFLICT, "not_available", f"{method} cannot run here: {self.reasons[method]}")

    async def answer(
        self, upload: Upload, method: str, client: str, encoding: str | None = None, rate: int | None = None
    ) -> tuple[float, _Answers]:
        """Return the length of a recording in seconds, and the answer of each processor.

        Raises RejectedError. Cancelling releases the turn; a processor that has started is awaited in the background.
        """
        select = self.select(method)
        self.count += 1
        try:
            worker = await self._pool.take(client)
            answering: asyncio.Future[_Answers] | None = None
            try:
                samples = await worker.decode(await upload.read(), encoding, rate)
                answering = asyncio.ensure_future(asyncio.to_thread(_answer, samples, select))
                return len(samples) / SAMPLE_RATE, await asyncio.shield(answering)
            finally:
                task = asyncio.ensure_future(self._give_back(client, worker, answering))
                self._returning.add(task)
                task.add_done_callback(self._returning.discard)
        finally:
            self.count -= 1

    async def _give_back(self, client: str, worker: DecodeWorker, answering: asyncio.Future[_Answers] | None) -> None:
        """Return the worker to the pool once it is usable, so that no other request waits for its restart."""
        if answering is not None:
            await asyncio.wait([answering])
        await worker.recover()
        self._pool.give_back(client, worker)


def check_method(method: str) -> None:
    """Raise RejectedError for an unknown processor."""
    if method not in PROCESSORS:
        hint = did_you_mean(method[:40], PROCESSORS) or f": expected one of {', '.join(PROCESSORS)}"
        raise RejectedError(HTTPStatus.NOT_FOUND, "no_method", f"there is no method of that name{hint}")


def _reject(why: str) -> RejectedError:
    return as_rejection(AudioError(f"the recording {why}"))


def _answer(samples: Floats, select: Sequence[AudioProcessor]) -> _Answers:
    import soundfile

    wav = io.BytesIO()
    soundfile.write(wav, samples, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return [(processor.name, processor.answer(wav.getvalue())) for processor in select]


def _hide_files(name: str, why: str) -> str:
    """Why a processor is unavailable, without paths of this machine."""
    if not PROCESSORS[name].is_trained:
        return why
    _log.warning("%s cannot run here: %s", name, why)
    return "the server has no model for it that can be used; its log says more"
