"""A progress line of a terminal."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TextIO


class LiveLine:
    """Shows a line on `stream` (default: standard error), replacing the previous one; nothing without a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self.live = self._stream is not None and self._stream.isatty()  # 2>&- leaves none
        self._dim, self._normal = ("\x1b[2m", "\x1b[22m") if os.environ.get("TERM", "dumb") != "dumb" else ("", "")
        self._shown = False

    def show(self, line: str, provisional: str = "") -> None:
        """Show a line, and after it a part that is dim where the terminal can."""
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            line = line[:width]
            provisional = provisional[: width - len(line)]
            blanks = " " * (width - len(line) - len(provisional))
            faint = f"{self._dim}{provisional}{self._normal}" if provisional else ""
            self._stream.write(f"\r{line}{faint}{blanks}")
            self._stream.flush()
            self._shown = True

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            self._stream.write(f"\r{'':<{shutil.get_terminal_size().columns - 1}}\r")
            self._stream.flush()
            self._shown = False

    def close(self) -> None:
        self.clear()
