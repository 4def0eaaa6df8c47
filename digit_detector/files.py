"""Writing files so that a reader never finds half of one."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import digit_detector
from digit_detector.errors import ConfigError, TrainingError
from digit_detector.labels import PRETRAINED, TRAINED, model_folder


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


def write_durably(path: Path, data: bytes) -> None:
    """Put `data` at `path` whole or not at all: written beside, flushed to the disk, renamed.

    Raises OSError; the temporary file is gone then and what was at `path` is as before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two runs that share a folder from writing into each other's file.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """See that what was renamed in a folder survives a power cut; Windows has no such call. Raises OSError."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unwritable(places: Mapping[str, str | Path | None]) -> list[str]:
    """What can be known before hours of work about files, by setting, that cannot be written."""
    faults = []
    for name, place in places.items():
        if place is None:
            continue
        path = Path(place).absolute()
        if os.path.isdir(path):  # unlike Path.is_dir, no error where a folder on the way is locked
            faults.append(f"{name}: {place} is a folder, expected a file")
            continue
        there = next(folder for folder in path.parents if os.path.lexists(folder))
        if not there.is_dir():
            faults.append(f"{name}: {there} is a file, expected a folder")
        elif not os.access(there, os.W_OK):
            faults.append(f"{name}: {there} cannot be written to, name another place")
    return faults


def check_not_shipped(models_dir: str | Path, setting: str = "models_dir") -> None:
    """Raise ConfigError for the folder of the models that ship, by their name or by its path."""
    shipped = Path(digit_detector.__file__).resolve().parent / PRETRAINED
    if str(models_dir) == PRETRAINED or Path(models_dir).resolve().is_relative_to(shipped):
        raise ConfigError(
            [
                f"{setting}: {models_dir} are the models that ship, which answer and evaluate, but have no checkpoints "
                f"and no versions and are never overwritten: name a folder of your own, e.g. {TRAINED}"
            ]
        )


def check_models_dir(models_dir: str | Path, pipelines: Iterable[str]) -> None:
    """Raise ConfigError where models cannot be written: those that ship, a file, a folder without rights."""
    check_not_shipped(models_dir)
    files = (model_folder(models_dir, pipeline) / "best_model.pt" for pipeline in pipelines)
    faults = [fault for file in files for fault in unwritable({"models_dir": file})]
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))


def unusable(folders: Mapping[str, str | Path]) -> list[str]:
    """The same of folders, by setting, that files cannot be written into."""
    faults = []
    for name, place in folders.items():
        path = Path(place).absolute()
        there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
        if not os.path.isdir(there):
            faults.append(f"{name}: {there} is a file, expected a folder")
        elif not os.access(there, os.W_OK):
            faults.append(f"{name}: {there} cannot be written to, name another place")
    return faults


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON, atomically; numbers that are none become null. Raises TrainingError as above."""
    write_atomically(path, json_bytes(finite(values)))


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Values as JSON for people and programs, a line a value."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode("utf-8", errors="backslashreplace")


def finite(value: Any) -> Any:
    """JSON knows no NaN: such numbers become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value
