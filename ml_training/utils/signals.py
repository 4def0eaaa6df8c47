"""Ctrl-C and SIGTERM: a wish that a loop grants when its step is done, an exception anywhere else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from ml_training.errors import Interrupted


class StopSignals:
    """Handles both signals while it is entered; the handlers from before come back afterwards.

    Within `deferred` the first signal only sets `signum`; a second one, or any outside, raises
    Interrupted at once. Python allows handlers in the main thread alone: elsewhere nothing changes.
    """

    def __init__(self, unit: str | None = "this step") -> None:
        self.signum: int | None = None
        self._unit = unit  # what is finished before the loop stops, None where nobody is told
        self._deferring = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: it was not Python's

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the first signal wait for somebody who looks at `signum`."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.signum is not None:  # it came after the last look
            raise Interrupted(self.signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._deferring or self.signum is not None:
            raise Interrupted(signum)
        self.signum = signum
        # Not print: the signal may have come in the middle of one.
        if self._unit is not None:
            os.write(2, f"\nstopping after {self._unit}; once more leaves at once\n".encode())
