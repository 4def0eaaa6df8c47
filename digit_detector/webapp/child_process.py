"""Child processes of the server: Python programs that read requests from standard input and write replies to standard
output. They isolate what may crash, exhaust memory or hold the Python lock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence

from digit_detector.errors import StreamError

READY = b"[]\n"  # first line of a child, once it can work
_MAX_LINE_BYTES = 1 << 24
_START_SECONDS, _STOP_SECONDS = 60.0, 5.0
_RETRY_SECONDS = 2.0  # between two attempts to start
# uvloop raises where event loops in two threads of a process spawn children at the same time.
_spawning = threading.Lock()
_log = logging.getLogger("digits.serve")


class ChildProcess:
    """One child, which can be started again after its end."""

    def __init__(self, command: Sequence[str], options: object) -> None:
        """`command`: arguments of the Python interpreter; `options`: its last one, as JSON."""
        self._arguments = [*command, json.dumps(options)]
        self._process: Process | None = None

    @property
    def has_ended(self) -> bool:
        return self._process is None or self._process.returncode is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def requests(self) -> StreamWriter:
        """Standard input of the child."""
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def replies(self) -> StreamReader:
        """Standard output of the child."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout

    async def start(self) -> None:
        """Start it and wait until it is ready. Raises StreamError, OSError."""
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        while not _spawning.acquire(blocking=False):
            await asyncio.sleep(0.01)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *self._arguments, stdin=PIPE, stdout=PIPE, limit=_MAX_LINE_BYTES,
                env={**os.environ, **environment},
            )  # fmt: skip
        finally:
            _spawning.release()
        ready = b""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_START_SECONDS):
                    ready = await self.replies.readline()
        finally:
            if ready != READY:
                await self.kill()
        if ready != READY:
            raise StreamError(f"a child process of the server could not start (exit code {self._process.returncode})")

    async def restart(self) -> None:
        """Start it, with as many attempts as needed."""
        while True:
            try:
                return await self.start()
            except (StreamError, OSError) as error:
                _log.error("%s; retrying", error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def stop(self) -> None:
        """End it by closing its standard input, or kill it if that takes too long."""
        if not self.has_ended and self._process is not None:
            self.requests.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._process.wait()
        await self.kill()

    async def kill(self) -> int | None:
        """Kill it, wait for its end, even if the caller is cancelled, and return its exit code."""
        if self._process is None:
            return None
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                # Process.kill polls a process that has just ended, which hides its exit code from the event loop.
                os.kill(self._process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        return await asyncio.shield(asyncio.ensure_future(self._process.wait()))
