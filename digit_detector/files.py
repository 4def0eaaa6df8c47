"""Atomic file writes, JSON output and early checks of output paths."""

from __future__ import annotations

import contextlib
import hashlib
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
    """Replace `path` by `content` in one step; folders are made as needed.

    Raises TrainingError where the system refuses (disk full, no permission); the old file is intact then.
    """
    try:
        _replace(path, content, sync=False)
    except OSError as error:
        raise TrainingError(
            f"could not write {path}: {error.strerror or error}; make room or choose another place "
            "(--models_dir, --log_dir, --output)"
        ) from error


def write_durably(path: Path, data: bytes) -> None:
    """The same, flushed to the disk before and after the rename. Raises OSError."""
    _replace(path, data, sync=True)
    sync_folder(path.parent)


def _replace(path: Path, data: bytes, sync: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two runs may share a folder
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush renames within `folder` to the disk; Windows has no such call. Raises OSError."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unwritable(files: Mapping[str, str | Path | None]) -> list[str]:
    """Faults of output files, by setting, that can be found before hours of work."""
    faults = []
    for name, file in files.items():
        if file is not None and os.path.isdir(file):
            faults.append(f"{name}: {file} is a folder, expected a file")
        elif file is not None:
            faults += unusable({name: Path(file).parent})
    return faults


def unusable(folders: Mapping[str, str | Path]) -> list[str]:
    """Faults of output folders, by setting."""
    faults = []
    for name, folder in folders.items():
        path = Path(folder).absolute()
        existing = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
        if not os.path.isdir(existing):  # unlike Path.is_dir, no error where a parent cannot be searched
            faults.append(f"{name}: {existing} is a file, expected a folder")
        elif not os.access(existing, os.W_OK):
            faults.append(f"{name}: {existing} cannot be written to, name another place")
    return faults


def check_not_shipped(models_dir: str | Path, setting: str = "models_dir") -> None:
    """Raise ConfigError for the folder of the pretrained models, by its name or by its path."""
    shipped = Path(digit_detector.__file__).resolve().parent / PRETRAINED
    if str(models_dir) == PRETRAINED or Path(models_dir).resolve().is_relative_to(shipped):
        raise ConfigError(
            [
                f"{setting}: {models_dir} are the models that ship, which answer and evaluate, but have no checkpoints "
                f"and no versions and are never overwritten: name a folder of your own, e.g. {TRAINED}"
            ]
        )


def check_models_dir(models_dir: str | Path, pipelines: Iterable[str]) -> None:
    """Raise ConfigError where models cannot be written: the pretrained ones, a file, a folder without rights."""
    check_not_shipped(models_dir)
    faults = [f for p in pipelines for f in unusable({"models_dir": model_folder(models_dir, p)})]
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write `values` as JSON, atomically; NaN and infinity become null. Raises TrainingError as write_atomically."""
    write_atomically(path, json_bytes(values))


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """`values` as indented JSON in UTF-8; NaN and infinity become null."""
    text = json.dumps(_replace_non_finite(values), indent=2, ensure_ascii=False)
    return f"{text}\n".encode("utf-8", errors="backslashreplace")


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _replace_non_finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_non_finite(v) for v in value]
    return value
