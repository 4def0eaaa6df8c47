"""A progress line of a terminal."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO


class LiveLine:
    """Shows a line on `stream` (default: standard error), replacing the previous one; nothing without a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self.live = self._stream is not None and self._stream.isatty()  # 2>&- leaves none
        self._shown = False

    def show(self, line: str) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{line[:width]:<{width}}")
            self._stream.flush()
            self._shown = True

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            self._stream.write(f"\r{'':<{shutil.get_terminal_size().columns - 1}}\r")
            self._stream.flush()
            self._shown = False
