"""How far a long walk is: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from digit_detector.cli.live_line import LiveLine
from digit_detector.cli.text import escape_controls

LIVE_SECONDS = 0.2
LINE_SECONDS = 10.0


class Progress:
    """Tells on `stream` (default: standard error) how many files are done. How many there are, nobody knows."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._line = LiveLine(self._stream)
        self.begin(0)

    def begin(self, done: int) -> None:
        """From now on files are counted, `done` of them done before."""
        self._before, self._began = done, time.monotonic()
        self._due = self._began + (0.0 if self._line.live else LINE_SECONDS)

    def tell(self, done: int, errors: int) -> None:
        """Say where things stand, if it is time to."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + (LIVE_SECONDS if self._line.live else LINE_SECONDS)
        seconds = max(now - self._began, 1e-9)
        line = f"{done:,} files, {(done - self._before) / seconds:,.0f} a second, {errors:,} without an answer"
        line += f", {int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
        if self._line.live:
            self._line.show(line)
        else:
            print(line, file=self._stream, flush=True)

    def note(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        print(escape_controls(line), file=self._stream, flush=True)

    def clear(self) -> None:
        """Leave the terminal as it was."""
        self._line.clear()
