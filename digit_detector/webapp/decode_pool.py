"""Decoder processes, seen from the server; one is restarted after an upload that exceeds a limit."""

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
_PATIENCE = 5.0  # seconds for a process to end
_GRACE = 0.25  # seconds to finish an upload whose client has disconnected
_LARGEST_FAULT = 1 << 16  # bytes
_log = logging.getLogger("digits.serve")


class _Reply(NamedTuple):
    kind: int
    ends: bool  # whether the process ends
    seconds: float
    payload: bytes


class DecodeWorker:
    """One decoder process, one upload at a time. After it has ended, `recover` starts another."""

    command: ClassVar[Sequence[str]] = ("-P", "-m", "digit_detector.webapp.decode_worker")

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        self._process: Process | None = None
        self._stopping = False

    async def start(self) -> None:
        """Start the process and wait until it is ready. Raises StreamError if it does not start."""
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
            raise StreamError(f"a decoder process could not start (exit code {await process.wait()})")
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
        """Restart the process if it has ended; returns when it is ready, or the server stops."""
        while self._process is None and not self._stopping:
            try:
                await self.start()
            except (StreamError, OSError) as error:
                _log.error("%s; retrying", error)
                await asyncio.sleep(_PAUSE)

    async def decode(self, content: bytes) -> tuple[Floats, float]:
        """Decode an upload to one channel (T,) at 8 kHz; also returns its length in seconds.

        Raises RejectedError if it is not a recording or exceeds a limit. The process ends if a limit is exceeded, or
        the caller is cancelled.
        """
        process, self._process = self._process, None  # until it is known to be reusable
        if process is None or process.stdin is None or process.stdout is None or process.returncode is not None:
            raise make_busy_error("the decoder process has ended and is being restarted")
        exchange = asyncio.ensure_future(self._exchange(process.stdin, process.stdout, content))
        keep = False
        try:
            async with asyncio.timeout(self._limits.wall_seconds):
                reply = await asyncio.shield(exchange)
            keep = not reply.ends
        except TimeoutError:
            raise self._refused(f"takes more than {self._limits.wall_seconds:g} s to decode") from None
        except asyncio.CancelledError:  # a process that finishes at once need not be restarted
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
            raise StreamError(f"a decoder process sent an invalid reply of {size} bytes")
        return _Reply(kind, bool(ends), seconds, await replies.readexactly(size))

    def _died(self, code: int) -> RejectedError:
        if code == -getattr(signal, "SIGPROF", 0):
            return self._refused(f"takes more than {self._limits.cpu_seconds:g} s of a processor to decode")
        _log.warning("a decoder process ended (exit code %s) during an upload; it is restarted", code)
        return self._refused("made the decoder fail: it is damaged, or not a recording")

    def _refused(self, why: str) -> RejectedError:
        return RejectedError(HTTPStatus.UNPROCESSABLE_ENTITY, "bad_audio", f"the recording {why}")


async def _kill(process: Process) -> None:
    """Kill a process and wait for its end, even if the caller is cancelled."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await asyncio.shield(asyncio.ensure_future(process.wait()))
