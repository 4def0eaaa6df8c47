"""Predictions as people and programs read them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from digit_detector.cli.text import escape_controls
from digit_detector.labels import LABELS


def print_json(entries: Sequence[Mapping[str, Any]]) -> None:
    """Print an object for one prediction, a list for several; nothing where the only one is an error."""
    import json

    if len(entries) > 1:
        print(json.dumps(entries, indent=2))
    elif "error" not in entries[0]:
        print(json.dumps(entries[0], indent=2))


LONG_SECONDS = 1.5  # a longer recording may hold more than the one second that is predicted


def format_prediction(entry: Mapping[str, Any]) -> str:
    """A FilePrediction as lines: the digit, a note on a long recording, the three most probable digits."""
    encoding = (sys.stdout.encoding or "ascii").lower()
    full = "█" if encoding.startswith("utf") else "#"
    bold, dim, off = (
        ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else ("",) * 3
    )
    digit, file = entry["predicted_digit"], escape_controls(entry["file"])
    headline = f"{bold}{digit}{off}  {LABELS[digit]}, {100 * entry['confidence']:.1f} % sure  {dim}{file}{off}"
    if not entry["is_digit"]:
        score = 100 * entry["digit_score"]
        headline = f"{bold}{file}: no digit{off} (digit score {score:.1f} %); nearest: {digit} ({LABELS[digit]})"
    lines = [headline]
    if entry["seconds"] > LONG_SECONDS:
        lines.append(
            f"   only the loudest second of {entry['seconds']:.1f} s was looked at; for every digit in it: "
            f"digits listen --file {file}"
        )
    for guess in entry["top3"]:
        bar = full * round(24 * guess["probability"])
        lines.append(f"   {guess['digit']}  {bar:<24}  {100 * guess['probability']:5.1f} %")
    return "\n".join(lines)
