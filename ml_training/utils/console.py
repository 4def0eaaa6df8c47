"""Lines for people on standard error."""

from __future__ import annotations

import sys


def print_note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
