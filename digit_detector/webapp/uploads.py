"""Whole recordings: bounded when they are decoded, and answered by processors."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Protocol

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import did_you_mean
from digit_detector.processors import PROCESSORS, Answer, AudioProcessor, Processors
from digit_detector.webapp.decode_pool import DecodeWorker
from digit_detector.webapp.decode_worker import DecodeLimits
from digit_detector.webapp.errors import RejectedError
from digit_detector.webapp.fair_pool import FairPool
from digit_detector.webapp.limits import ServerLimits

ALL = "all"
_Answers = list[tuple[str, Answer]]  # (processor, answer)
_log = logging.getLogger("digits.serve")


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

    async def answer(self, upload: Upload, method: str, client: str) -> tuple[float, _Answers]:
        """Return the length of a recording in seconds, and the answer of each processor.

        Raises RejectedError. Cancelling releases the turn; a processor that has started is awaited in the background.
        """
        select = self.select(method)
        self.count += 1
        try:
            return await self._answer_by_turns(upload, select, client)
        finally:
            self.count -= 1

    async def _answer_by_turns(
        self, upload: Upload, select: Sequence[AudioProcessor], client: str
    ) -> tuple[float, _Answers]:
        worker = await self._pool.take(client)
        answering: asyncio.Future[_Answers] | None = None
        try:
            samples, seconds = await worker.decode(await upload.read())
            answering = asyncio.ensure_future(asyncio.to_thread(_answer, samples, select))
            return seconds, await asyncio.shield(answering)
        finally:
            task = asyncio.ensure_future(self._give_back(client, worker, answering))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)

    async def _give_back(self, client: str, worker: DecodeWorker, answering: asyncio.Future[_Answers] | None) -> None:
        """Return the worker to the pool once it is usable, so that no other request waits for its restart."""
        if answering is not None:
            await asyncio.wait([answering])
        await worker.recover()
        self._pool.give_back(client, worker)


def _answer(samples: Floats, select: Sequence[AudioProcessor]) -> _Answers:
    wav = _encode_wav(samples)
    return [(processor.name, processor.answer(wav)) for processor in select]


def _hide_files(name: str, why: str) -> str:
    """Why a processor is unavailable, without paths of this machine."""
    if not PROCESSORS[name].is_trained:
        return why
    _log.warning("%s cannot run here: %s", name, why)
    return "the server has no model for it that can be used; its log says more"


def check_method(method: str) -> None:
    """Raise RejectedError for an unknown processor."""
    if method not in PROCESSORS:
        hint = did_you_mean(method[:40], PROCESSORS) or f": expected one of {', '.join(PROCESSORS)}"
        raise RejectedError(HTTPStatus.NOT_FOUND, "no_method", f"there is no method of that name{hint}")


def _encode_wav(samples: Floats) -> bytes:
    """Encode samples (T,) at 8 kHz as a WAV file, the input of processors."""
    import soundfile

    wav = io.BytesIO()
    soundfile.write(wav, samples, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return wav.getvalue()
