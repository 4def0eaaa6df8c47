"""Writing files so that a reader never finds half of one."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_training.errors import TrainingError


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path` and rename it into place; folders are made as needed.

    Raises TrainingError where the system refuses (disk full, no permission); what lay at `path`
    before is then still there, and nothing half-written is left.
    """
    # The process id keeps two runs that share a folder from writing into each other's file.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # it may lie where there is no folder
            beside.unlink()
        raise TrainingError(
            f"could not write {path}: {error.strerror or error}; make room or choose another place "
            "(--models_dir, --log_dir, --output)"
        ) from error


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON, atomically; numbers that are none become null. Raises TrainingError as above."""
    text = json.dumps(finite(values), indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode("utf-8", errors="backslashreplace"))


def finite(value: Any) -> Any:
    """JSON knows no NaN: such numbers become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value
