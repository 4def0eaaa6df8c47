"""Terminal output of `digits listen`: a live line with level, voice activity and digits; a line for each detection."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import TextIO

from digit_detector.cli.live_line import LiveLine
from digit_detector.cli.text import escape_controls
from digit_detector.streaming.engine import Detection

_INTERVAL = 0.08  # seconds between two updates of the live line
_MIN_DB = -70.0
_PARTS = " ▏▎▍▌▋▊▉█"
_PLAIN = " ##"
_MAX_DIGITS = 24  # in the live line


class Display:
    """The live line on standard error, if that is a terminal, and a line for each digit on standard output."""

    def __init__(
        self, as_json: bool, out: TextIO | None = None, live: TextIO | None = None, by_utterance: bool = False
    ) -> None:
        """`by_utterance`: digits reported at different times are separated by a blank line."""
        self._json = as_json
        self._by_utterance = by_utterance
        self._out = out or sys.stdout
        self._line = LiveLine(live or sys.stderr)
        self._digits: deque[str] = deque(maxlen=_MAX_DIGITS)
        self._last: Detection | None = None  # since the beginning of a recording
        self._due = 0.0
        try:
            _PARTS.encode(getattr(live or sys.stderr, "encoding", None) or "ascii")
            self._characters = _PARTS
        except (UnicodeEncodeError, LookupError):
            self._characters = _PLAIN

    def level(self, level_db: float, voice: float, seconds: float, provisional: Sequence[Detection] = ()) -> None:
        """Show the level in dBFS, the probability of speech, the seconds processed, and digits that may change."""
        now = time.monotonic()
        if not self._line.live or now < self._due:
            return
        self._due = now + _INTERVAL
        level = bar((level_db - _MIN_DB) / -_MIN_DB, 16, self._characters)
        clock = f"{int(seconds) // 60}:{int(seconds) % 60:02}"
        line = f"{clock}  level |{level}|  voice |{bar(voice, 8, self._characters)}|  "
        columns = max(0, shutil.get_terminal_size().columns - 1 - len(line))
        faint = " ".join(str(each.digit) for each in provisional)
        faint = faint[max(0, len(faint) - columns) :]  # the newest are the last
        digits = "".join(f"{digit} " for digit in self._digits) if faint else " ".join(self._digits)
        self._line.show(line + digits[max(0, len(digits) - columns + len(faint)) :], faint)

    def show(self, detection: Detection) -> None:
        """Print a detection."""
        self._digits.append(str(detection.digit))
        self._due = 0.0
        if self._json:
            self._print_json(
                digit=detection.digit, confidence=round(detection.confidence, 4), start=round(detection.start, 3),
                end=round(detection.end, 3), delay=round(detection.delay, 3),
            )  # fmt: skip
            return
        if self._by_utterance and self._last is not None and detection.reported - self._last.reported > 1e-3:
            self._print("")
        self._last = detection
        self._print(
            f"{detection.digit}   {100 * detection.confidence:3.0f} %   {detection.start:.2f}-{detection.end:.2f} s"
            f"   known after {1e3 * detection.delay:.0f} ms"
        )

    def summary(self, file: str, digits: str, seconds: float, several: bool) -> None:
        """Print the digits of a recording as its last line, or a line on standard error if there are none."""
        self._digits.clear()
        self._last = None
        if self._json:
            self._print_json(file=file, digits=digits, seconds=round(seconds, 3))
        elif several:
            self._print(f"{escape_controls(file)}: {digits or 'no digits'}")
        elif digits:
            self._print(digits)
        if not digits and (self._json or not several):
            self.note(f"no digits in {file}")

    def fault(self, file: str, reason: str) -> None:
        """Print why one of several recordings has no digits."""
        self._last = None
        self.note(f"error: {reason}")
        if self._json:
            self._print_json(file=file, error=reason)

    def note(self, line: str) -> None:
        """Print a line on standard error."""
        self._line.clear()
        if sys.stderr is not None:  # closed by 2>&-; print would take standard output instead
            print(escape_controls(line), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the live line."""
        self._line.clear()

    def _print(self, line: str) -> None:
        self._line.clear()
        print(line, file=self._out, flush=True)

    def _print_json(self, **row: object) -> None:
        self._print(json.dumps(row))


def bar(share: float, width: int, characters: str = _PARTS) -> str:
    """A bar of `width` characters, of which a share from 0 to 1 is filled."""
    steps = len(characters) - 1
    whole, part = divmod(round(min(1.0, max(0.0, share)) * width * steps), steps)
    return (characters[-1] * whole + (characters[part] if part else "")).ljust(width)
