"""Jobs in several processes: ProcessPoolExecutor with progress messages, one retry after a crash and a stop that waits.

As with everything that starts processes by spawn, a script that calls this needs `if __name__ == "__main__":`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_connections
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from digit_detector.cli.signals import StopSignals
from digit_detector.errors import DigitError, Interrupted

Job = TypeVar("Job")

POLL = 0.2  # seconds between looks at signals and progress messages
PATIENCE = 60.0  # seconds in which a process that was asked to stop may finish its step
CRASHED = "its process ended twice without an error message, as when memory is short"


@dataclass
class Worker:
    """The worker process as its jobs see it."""

    send: Callable[[Any], None]  # a progress message to the parent, small and picklable
    stop: StopSignals = field(default_factory=lambda: StopSignals(unit=None))  # set when the parent is to stop
    kept: dict[str, Any] = field(default_factory=dict)  # values that later jobs use again


@dataclass(frozen=True)
class Outcome(Generic[Job]):
    """The end of a job: its result or its error."""

    job: Job
    result: Any = None
    error: str | None = None


Function = Callable[[Worker, Job], Any]


def run_jobs(
    function: Function[Job], jobs: Iterable[Job], processes: int, signals: StopSignals,
    on_message: Callable[[Any], None], on_end: Callable[[Outcome[Job]], None],
) -> None:  # fmt: skip
    """Call `function(worker, job)` for every job, at most `processes` at once, each in a process by itself.

    `jobs` is read one at a time as processes become free. After a crash, the jobs that were running are tried again,
    one at a time; one that crashes alone has failed. `function` and jobs must be picklable. Raises Interrupted after a
    signal, when the running jobs have stopped.
    """
    waiting, suspects = iter(jobs), list[Job]()
    running: dict[Future[tuple[Any, str | None]], Job] = {}
    pool: _Pool | None = None
    alone, deadline = False, float("inf")
    try:
        with signals.deferred():
            while time.monotonic() < deadline:
                if not running:
                    alone = bool(suspects)
                while signals.signum is None and len(running) < (1 if alone else processes):
                    if alone and not suspects:
                        break
                    try:
                        job = suspects.pop(0) if alone else next(waiting)
                    except StopIteration:
                        break
                    pool = pool or _Pool(processes)
                    running[pool.submit(function, job)] = job
                if pool is None or not running:
                    break
                done, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
                crashed = any(isinstance(future.exception(), BrokenProcessPool) for future in done)
                if crashed:
                    done, _ = wait(running)
                while not pool.messages.empty():
                    on_message(pool.messages.get())
                for future in done:
                    job = running.pop(future)
                    if not isinstance(future.exception(), BrokenProcessPool):
                        on_end(Outcome(job, *future.result()))
                    elif alone:
                        on_end(Outcome(job, error=CRASHED))
                    else:
                        suspects.append(job)
                if crashed:
                    pool.close()
                    pool = None
                elif signals.signum is not None and deadline == float("inf"):
                    pool.ask_to_stop()
                    deadline = time.monotonic() + PATIENCE
    finally:
        if pool is not None:
            pool.close(kill=bool(running))


class _Pool:
    """An executor, the queue of its progress messages and the pipe that asks its processes to stop.

    Not SIGTERM: an executor that lost a process ends the others by it, which must not wait for the end of a step.
    """

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._others = set(multiprocessing.active_children())
        self.messages = context.SimpleQueue()
        reader, self._stop = context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(processes, context, _start, (self.messages, reader))

    def submit(self, function: Function[Job], job: Job) -> Future[tuple[Any, str | None]]:
        # New processes inherit a blocked SIGINT until they have a session of their own.
        mask = getattr(signal, "pthread_sigmask", None)  # not on Windows
        before = mask(signal.SIG_BLOCK, {signal.SIGINT}) if mask else set()
        try:
            return self._executor.submit(_call, function, job)
        except BrokenProcessPool as error:  # a process ended while it was idle
            failed: Future[tuple[Any, str | None]] = Future()
            failed.set_exception(error)
            return failed
        finally:
            if mask:
                mask(signal.SIG_SETMASK, before)

    def ask_to_stop(self) -> None:
        self._stop.send_bytes(b"stop")  # never received: the pipe stays readable in all workers

    def close(self, kill: bool = False) -> None:
        if kill:
            for process in set(multiprocessing.active_children()) - self._others:
                process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._stop.close()
        self.messages.close()


class JobProgress:
    """A bar of `total` units with what runs at the moment, on standard error where that is a terminal."""

    def __init__(self, total: int, report: Callable[[str], None], completed: int = 0) -> None:
        live = sys.stderr is not None and sys.stderr.isatty()  # 2>&- leaves none
        columns = (BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not live)
        self._task = self._bar.add_task("", total=total, completed=completed)
        self._running: dict[object, str] = {}
        self.report = report

    def __enter__(self) -> JobProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, job: object, running: str | None, advance: float = 0.0) -> None:
        """Show `running` for a job, None once it has ended, and advance the bar by `advance` units."""
        if running is None:
            self._running.pop(job, None)
        else:
            self._running[job] = running
        self._bar.update(self._task, advance=advance, description=", ".join(self._running.values()))


# --- in a worker process -------------------------------------------------------------------------

_worker: Worker | None = None


def _start(messages: Any, stop: Connection) -> None:
    global _worker
    if hasattr(os, "setsid"):
        os.setsid()  # signals of the terminal are for the parent, which passes them on
    _worker = Worker(messages.put)
    threading.Thread(target=_watch_parent, args=(stop, _worker.stop), daemon=True).start()


def _watch_parent(pipe: Connection, stop: StopSignals) -> None:
    """Set the stop signal when the parent asks for it; end this process as soon as the parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_connections([parent.sentinel, pipe])
    stop.signum = signal.SIGTERM
    parent.join()
    os._exit(1)


def _call(function: Function[Job], job: Job) -> tuple[Any, str | None]:
    assert _worker is not None
    try:
        return function(_worker, job), None
    except Interrupted:
        return None, "interrupted"
    except DigitError as error:
        return None, str(error)
    except Exception as error:  # a bug in one job must not cost the others
        return None, f"{type(error).__name__}: {error}"
