"""Progress of jobs that run at once: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class JobProgress:
    """A bar of `total` units with what runs at the moment; `report` is given a line for each event.

    The bar is drawn on standard error, below the lines, and only where that is a terminal.
    """

    def __init__(self, total: int, report: Callable[[str], None], completed: int = 0) -> None:
        live = sys.stderr is not None and sys.stderr.isatty()  # 2>&- leaves none
        columns = (BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        console = Console(stderr=True) if live else None
        self._bar = Progress(*columns, console=console, transient=True) if live else None
        self._task = self._bar.add_task("", total=total, completed=completed) if self._bar else None
        self._running: dict[object, str] = {}
        self.report = report

    def __enter__(self) -> JobProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, job: object, running: str | None, advance: float = 0.0) -> None:
        """Show `running` for a job, None once it has ended, and move the bar on by `advance` units."""
        if running is None:
            self._running.pop(job, None)
        else:
            self._running[job] = running
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=advance, description=", ".join(self._running.values()))
