"""SIGINT, SIGTERM and SIGHUP: a request that a loop serves between two steps, an exception anywhere else."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from digit_detector.errors import Interrupted

STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE = 2.0  # seconds for clean-up, during which further signals are ignored


class StopSignals:
    """Context manager that handles these signals, and restores the previous handlers afterwards.

    Within `deferred` the first signal only sets `signum`; a second one, or any outside of it, raises Interrupted.
    While that exception propagates, further signals are ignored for GRACE seconds, so that they do not interrupt
    clean-up; after that they end the process. An ignored SIGHUP (nohup) stays ignored. Python allows handlers in the
    main thread only: in others nothing changes.
    """

    def __init__(self, unit: str | None = "this step") -> None:
        self.signum: int | None = None
        self.leaving: int | None = None  # the signal of the Interrupted that propagates
        self._unit = unit  # of work that is finished before the loop stops; None for no message
        self._deferring = False
        self._since = 0.0
        self._previous: dict[int, Any] = {}
        self._terminals: tuple[int, ...] = ()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            handled = [s for s in STOPS if s == signal.SIGINT or signal.getsignal(s) != signal.SIG_IGN]
            self._terminals = tuple(descriptor for descriptor in (1, 2) if os.isatty(descriptor))
            self._previous = {s: signal.signal(s, self._handle) for s in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: not set from Python

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the first signal set `signum`, which the body polls, instead of raising."""
        self._deferring = True
        try:
            yield
        except Interrupted as stop:
            self._leave(stop.signum)
            raise
        finally:
            self._deferring = False
        if self.signum is not None:  # it came after the last poll
            self._leave(self.signum)
            raise Interrupted(self.signum)

    def _leave(self, signum: int) -> None:
        if self.leaving is None:
            self.leaving, self._since = signum, time.monotonic()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.leaving is not None:
            if time.monotonic() - self._since >= GRACE:
                end_by(signum)
            return
        if signum not in (signal.SIGINT, signal.SIGTERM):
            self._drop_terminals()
        raises = not self._deferring or self.signum is not None
        # Also if it raises: Python drops exceptions raised in finalisers, and a later loop still stops.
        self.signum = signum
        if raises:
            self._leave(signum)
            raise Interrupted(signum)
        if self._unit is not None:
            with contextlib.suppress(OSError):  # not print: the signal may have interrupted one
                os.write(2, f"\nstopping after {self._unit}; once more leaves at once\n".encode())

    def _drop_terminals(self) -> None:
        """Redirect output to a terminal that hung up to the null device, so that writing is no error."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


def end_by(signum: int) -> None:
    """End this process as the signal's default action does."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def ignore_interrupts() -> None:
    """Ignore Ctrl-C while the process ends."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
