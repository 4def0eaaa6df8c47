"""JSON beside a table: which recordings and which model it answers, and its size and hash when it was finished."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from digit_detector.errors import BatchError
from digit_detector.files import write_json

FORMAT = "streaming-digit-detector batch"
VERSION = 2

Settings = dict[str, Any]


def read_state(path: Path) -> Settings | None:
    """What `write_state` wrote there; None where nothing is, or nothing of this version."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        known = state["format"] == FORMAT and state["version"] == VERSION and isinstance(state["run"], dict)
        return dict(state) if known else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_state(path: Path, state: Settings) -> None:
    """Raises TrainingError where the system refuses; what was there is then still there."""
    write_json(path, {"format": FORMAT, "version": VERSION, **state})


def fingerprint(path: Path) -> Settings:
    """Size in bytes and SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def matching(table: Path, *places: Path) -> tuple[Path, Settings]:
    """Of some places the first whose state is that of a whole table, and that state.

    Raises BatchError where none is: the table was changed, or is none of ours.
    """
    try:
        found = fingerprint(table)
    except OSError as error:
        raise BatchError(f"cannot read {table}: {error.strerror or error}") from error
    state = None
    for place in places:
        state = read_state(place)
        if state is not None and state.items() >= found.items():
            return place, state
    if state is None or "size" not in state:
        why = f"{places[-1].name}, which says what it answers, is missing, damaged or of another version"
    elif state["size"] != found["size"]:
        why = f"it had {state['size']:,} bytes when it was finished"
    else:
        why = "it was changed after it was finished"
    raise BatchError(
        f"{table} ({found['size']:,} bytes) cannot be gone on with: {why}; name another --out, or replace it with "
        "--overwrite"
    )


def refuse_another(run: Settings, before: Settings, table: Path) -> None:
    """Raise BatchError if the recordings or the model of a table differ from those of this run, naming each."""
    faults = []
    for key in sorted(before.keys() | run.keys()):
        then, now = before.get(key), run.get(key)
        if then != now:
            faults.append(f"{key} was {_shown(then)}, is {_shown(now)}")
    if faults:
        raise BatchError(
            f"{table} belongs to another run: {'; '.join(faults)}. Ask the same again, name another --out, or replace "
            "it with --overwrite"
        )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(list(value)[:3]) + (f" and {len(value) - 3} more" if len(value) > 3 else "")
    return str(value)
