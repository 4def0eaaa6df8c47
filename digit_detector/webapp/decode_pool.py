"""The processes that decode uploads, seen from the server: one is replaced after an upload that asks too much."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import ClassVar, NamedTuple

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import StreamError
from digit_detector.webapp.decode_worker import DECODED, READY, REPLY, REQUEST, DecodeLimits
from digit_detector.webapp.errors import RejectedError, make_busy_error

_PAUSE = 2.0  # seconds between two attempts to start a process
_PATIENCE = 5.0  # seconds that it is given to end
_GRACE = 0.25  # seconds that it is given to be done with an upload that nobody waits for any more
_LARGEST_FAULT = 1 << 16  # bytes
_log = logging.getLogger("digits.serve")


class _Reply(NamedTuple):
    kind: int
    ends: bool  # whether the process does
    seconds: float
    payload: bytes


class DecodeWorker:
    """One process that decodes, one upload at a time. One that ended is replaced by `recover`."""

    command: ClassVar[Sequence[str]] = ("-P", "-m", "digit_detector.webapp.decode_worker")

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        self._process: Process | None = None
        self._stopping = False

    async def start(self) -> None:
        """Return when the process is ready. Raises StreamError where it cannot begin."""
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, *self.command, json.dumps(asdict(self._limits)), stdin=PIPE, stdout=PIPE,
            env={**os.environ, **environment},
        )  # fmt: skip
        assert process.stdout is not None
        try:
            ready = await process.stdout.read(1)
        except asyncio.CancelledError:
            await _kill(process)
            raise
        if ready != READY:
            raise StreamError(f"the process that decodes uploads could not begin (exit code {await process.wait()})")
        self._process = process

    async def stop(self) -> None:
        self._stopping = True
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            async with asyncio.timeout(_PATIENCE):
                await process.wait()
        except TimeoutError:
            await _kill(process)

    async def recover(self) -> None:
        """Start the process again where it ended; returns when it is ready, or the server stops."""
        while self._process is None and not self._stopping:
            try:
                await self.start()
            except (StreamError, OSError) as error:
                _log.error("%s; it is tried again", error)
                await asyncio.sleep(_PAUSE)

    async def decode(self, content: bytes) -> tuple[Floats, float]:
        """An upload -> one channel (T,) at 8 kHz, and its length in seconds.

        Raises RejectedError for one that is no recording or costs more than the limits allow; the process ends then, as
        it does when the caller is cancelled.
        """
        process, self._process = self._process, None  # until it is known to be fit for a further upload
        if process is None or process.stdin is None or process.stdout is None or process.returncode is not None:
            raise make_busy_error("the process that decodes uploads has ended and is started again")
        exchange = asyncio.ensure_future(self._exchange(process.stdin, process.stdout, content))
        keep = False
        try:
            async with asyncio.timeout(self._limits.wall_seconds):
                reply = await asyncio.shield(exchange)
            keep = not reply.ends
        except TimeoutError:
            raise self._refused(f"takes more than {self._limits.wall_seconds:g} s to decode") from None
        except asyncio.CancelledError:  # a process that is done at once need not be replaced
            await asyncio.wait((exchange,), timeout=_GRACE)
            keep = exchange.done() and exchange.exception() is None and not exchange.result().ends
            raise
        except (asyncio.IncompleteReadError, ConnectionError):
            raise self._died(await process.wait()) from None
        finally:
            if keep:
                self._process = process
            else:
                exchange.cancel()
                await _kill(process)
        if reply.kind == DECODED:
            return np.frombuffer(reply.payload, dtype="<f4"), reply.seconds
        fault = json.loads(reply.payload)
        if fault["log"]:
            _log.error("an upload of %d bytes could not be decoded: %s", len(content), ascii(fault["log"]))
        raise RejectedError(fault["status"], fault["code"], fault["message"])

    async def _exchange(self, requests: asyncio.StreamWriter, replies: asyncio.StreamReader, content: bytes) -> _Reply:
        requests.write(REQUEST.pack(len(content)))
        requests.write(content)
        await requests.drain()
        kind, ends, seconds, size = REPLY.unpack(await replies.readexactly(REPLY.size))
        if size > max(_LARGEST_FAULT, 4 * SAMPLE_RATE * (self._limits.most_seconds + 1)):
            raise StreamError(f"a process that decodes uploads is not to be trusted: it answered with {size} bytes")
        return _Reply(kind, bool(ends), seconds, await replies.readexactly(size))

    def _died(self, code: int) -> RejectedError:
        if code == -getattr(signal, "SIGPROF", 0):
            return self._refused(f"takes more than {self._limits.cpu_seconds:g} s of a processor to decode")
        _log.warning("a decoder ended (exit code %s) with an upload; it is started again", code)
        return self._refused("made the decoder fail: it is damaged, or no recording")

    def _refused(self, why: str) -> RejectedError:
        return RejectedError(HTTPStatus.UNPROCESSABLE_ENTITY, "bad_audio", f"the recording {why}")


async def _kill(process: Process) -> None:
    """End a process and wait for that, also when the caller is cancelled meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await asyncio.shield(asyncio.ensure_future(process.wait()))
