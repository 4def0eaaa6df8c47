"""One writer at a time, by the system's own locks on files: they end with the process that holds them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from digit_detector.errors import TrainingError

PATIENCE = 60.0  # seconds; whoever holds the lock copies a few megabytes meanwhile
_PAUSE = 0.02


@contextlib.contextmanager
def locked(path: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock file `path` against other processes and threads; it is made as needed and never removed.

    Raises TrainingError where somebody else still holds it after `patience` seconds, or where it cannot be held at all.
    """
    with _held(path, patience):  # closing the file lets go
        yield


def _held(path: Path, patience: float) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
        deadline = time.monotonic() + patience
        try:
            while not _taken(file.fileno()):
                if time.monotonic() > deadline:
                    raise TrainingError(
                        f"{path} was held by another process for {patience:g} seconds: wait until it ends, or end it"
                    )
                time.sleep(_PAUSE)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise TrainingError(
            f"could not lock {path}: {error.strerror or error}; make room or choose another --models_dir"
        ) from error
    return file


if sys.platform == "win32":
    import msvcrt

    def _taken(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:  # so Windows says that it is held
            return False
        return True

else:
    import fcntl

    def _taken(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
