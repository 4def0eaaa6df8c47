"""Terminal output of `digits listen`: level, voice activity, the last digits; and a line for each detection."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import deque
from typing import TextIO

from digit_detector.cli.live_line import LiveLine
from digit_detector.cli.text import escape_controls
from digit_detector.streaming.engine import Detection

_EVERY = 0.08  # seconds between two looks of the live line
_QUIETEST_DB = -70.0
_PARTS = " ▏▎▍▌▋▊▉█"
_PLAIN = " ##"
_LAST = 24  # digits that the live line remembers


class Display:
    """A live line on standard error, where that is a terminal, and on standard output a line for each digit."""

    def __init__(self, as_json: bool, out: TextIO | None = None, live: TextIO | None = None) -> None:
        self._json = as_json
        self._out = out or sys.stdout
        self._line = LiveLine(live or sys.stderr)
        self._said: deque[str] = deque(maxlen=_LAST)
        self._due = 0.0
        encoding = getattr(live or sys.stderr, "encoding", None) or "ascii"
        self._signs = _PARTS if _can(encoding, _PARTS) else _PLAIN

    def level(self, level_db: float, voice: float, seconds: float) -> None:
        """Show the level in dBFS, the probability of speech, and the seconds processed."""
        now = time.monotonic()
        if not self._line.live or now < self._due:
            return
        self._due = now + _EVERY
        loud = bar((level_db - _QUIETEST_DB) / -_QUIETEST_DB, 16, self._signs)
        clock = f"{int(seconds) // 60}:{int(seconds) % 60:02}"
        line = f"{clock}  level |{loud}|  voice |{bar(voice, 8, self._signs)}|  "
        room = shutil.get_terminal_size().columns - 1 - len(line)
        said = " ".join(self._said)
        self._line.show(line + said[max(0, len(said) - room) :])  # the newest are the last

    def show(self, detection: Detection) -> None:
        """Print a detection."""
        self._said.append(str(detection.digit))
        self._line.clear()
        self._due = 0.0
        if self._json:
            row = {
                "digit": detection.digit, "confidence": round(detection.confidence, 4),
                "start": round(detection.start, 3), "end": round(detection.end, 3), "delay": round(detection.delay, 3),
            }  # fmt: skip
            line = json.dumps(row)
        else:
            line = (
                f"{detection.digit}   {100 * detection.confidence:3.0f} %   {detection.start:.2f}-{detection.end:.2f} s"
                f"   known after {1e3 * detection.delay:.0f} ms"
            )
        print(line, file=self._out, flush=True)

    def summary(self, file: str, digits: str, seconds: float, several: bool) -> None:
        """Print the digits of a recording as its last line, or a line on standard error if there are none."""
        self._line.clear()
        self._said.clear()
        if self._json:
            row = {"file": file, "digits": digits, "seconds": round(seconds, 3)}
            print(json.dumps(row), file=self._out, flush=True)
        elif several:
            print(f"{escape_controls(file)}: {digits or 'no digits'}", file=self._out, flush=True)
        elif digits:
            print(digits, file=self._out, flush=True)
        if not digits and (self._json or not several):
            self.note(f"no digits in {file}")

    def fault(self, file: str, reason: str) -> None:
        """Say why one of several recordings has no digits."""
        self.note(f"error: {reason}")
        if self._json:
            print(json.dumps({"file": file, "error": reason}), file=self._out, flush=True)

    def note(self, line: str) -> None:
        """A line for people, which stays."""
        self._line.clear()
        if sys.stderr is not None:  # closed by 2>&-; print would take standard output in its place
            print(escape_controls(line), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._line.clear()


def bar(share: float, width: int, signs: str = _PARTS) -> str:
    """A bar of so many signs, of which a share from 0 to 1 is filled."""
    steps = len(signs) - 1
    filled = round(min(1.0, max(0.0, share)) * width * steps)
    whole, part = divmod(filled, steps)
    return (signs[-1] * whole + (signs[part] if part else "")).ljust(width)


def _can(encoding: str, signs: str) -> bool:
    try:
        signs.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
