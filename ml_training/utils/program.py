"""What a command-line door owes to whatever its output goes to."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Sequence
from typing import Protocol


class Main(Protocol):
    """Words of a command line, or else those that the process was started with, to an exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def program(main: Main) -> Main:
    """A door's `main`, for terminals that cannot show every name and readers that do not read to the end.

    Signs that the output has no code for are escaped; a closed pipe (`| head -1`) ends it without a traceback,
    with the exit code that a shell expects.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            code = main(argv)
            if sys.stdout is not None:  # pythonw has none
                sys.stdout.flush()
            return code
        except BrokenPipeError:
            # What is left in the buffer would fail again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141  # 128 + SIGPIPE

    return wrapped
