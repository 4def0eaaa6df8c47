"""Ctrl-C, SIGTERM and a hang-up: a wish that a loop grants when its step is done, an exception anywhere else."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from digit_detector.errors import Interrupted

STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE = 2.0  # seconds in which a program that is leaving clears up, whatever else is typed


class StopSignals:
    """Handles these signals while it is entered; the handlers from before come back afterwards.

    Within `deferred` the first signal only sets `signum`; a second one, or any outside, raises
    Interrupted at once. While that exception is on its way further signals are passed over, so that none
    breaks into what clears up; after GRACE seconds one ends the process.
    A hang-up that is ignored (nohup) stays ignored. Python allows handlers in the main thread alone: elsewhere nothing
    changes.
    """

    def __init__(self, unit: str | None = "this step") -> None:
        self.signum: int | None = None
        self.leaving: int | None = None  # the signal for which Interrupted is on its way
        self._unit = unit  # unit of work that is finished before the loop stops; None for no message
        self._deferring = False
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._terminals: tuple[int, ...] = ()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            wanted = [s for s in STOPS if s == signal.SIGINT or signal.getsignal(s) != signal.SIG_IGN]
            self._terminals = tuple(descriptor for descriptor in (1, 2) if os.isatty(descriptor))
            self._before = {s: signal.signal(s, self._handle) for s in wanted}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: it was not Python's

    @contextmanager
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
        if self.signum is not None:  # it came after the last look
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
            self._let_go_of_terminals()
        raises = not self._deferring or self.signum is not None
        # Also where it raises: Python drops exceptions raised in finalisers, and a later loop still stops.
        self.signum = signum
        if raises:
            self._leave(signum)
            raise Interrupted(signum)
        # Not print: the signal may have come in the middle of one.
        if self._unit is not None:
            with contextlib.suppress(OSError):
                os.write(2, f"\nstopping after {self._unit}; once more leaves at once\n".encode())

    def _let_go_of_terminals(self) -> None:
        """Redirect output to a terminal that hung up to the null device, so that writing is no error."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def end_by(signum: int) -> None:
    """End this process as the signal's default action does."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def ignore_interrupts() -> None:
    """Let no further Ctrl-C break into the end of a process that was asked to end."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
