"""Temporary folders, and removal of what killed processes left: `name.<process id>.tmp`."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".digit-detector-work-"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder that is removed afterwards; those of killed processes are removed first."""
    clear_half_written(Path(tempfile.gettempdir()), f"{PREFIX}*.tmp", seconds=3600.0)
    with tempfile.TemporaryDirectory(prefix=PREFIX, suffix=f".{os.getpid()}.tmp") as name:
        yield Path(name)


def clear_half_written(folder: Path, pattern: str = "*.tmp", seconds: float = 10.0) -> None:
    """Remove what a process had begun to write into `folder` when it was killed.

    What has changed in the last `seconds` stays: its process may run on another machine.
    """
    for path in folder.glob(pattern):
        name, _, pid = path.stem.rpartition(".")
        with contextlib.suppress(OSError):
            if name and pid.isdecimal() and not _is_alive(int(pid)) and time.time() - path.lstat().st_mtime > seconds:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # os.kill would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
