"""Answers as people and programs read them, printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ml_training.config import LABELS
from ml_training.utils.text import escape_controls


def print_json(entries: Sequence[Mapping[str, Any]]) -> None:
    """An object for one answer, a list for several entries; nothing where the only one is an error."""
    import json

    if len(entries) > 1:
        print(json.dumps(entries, indent=2))
    elif "error" not in entries[0]:
        print(json.dumps(entries[0], indent=2))


def shown(entry: Mapping[str, Any]) -> str:
    """A FilePrediction in four lines: the digit, then the three most probable with their bars."""
    encoding = (sys.stdout.encoding or "ascii").lower()
    full = "█" if encoding.startswith("utf") else "#"
    bold, dim, off = (
        ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else ("",) * 3
    )
    digit, sure = entry["predicted_digit"], 100 * entry["confidence"]
    said = f"{bold}{digit}{off}  {LABELS[digit]}, {sure:.1f} % sure"
    if not entry["is_digit"]:
        said = f"{bold}-{off}  no digit: its score is {100 * entry['digit_score']:.1f} %; if one, then"
    lines = [f"{said}  {dim}{escape_controls(entry['file'])}{off}"]
    for guess in entry["top3"]:
        bar = full * round(24 * guess["probability"])
        lines.append(f"   {guess['digit']}  {bar:<24}  {100 * guess['probability']:5.1f} %")
    return "\n".join(lines)
