"""What is written on the way to something else: folders to work in, and what a process leaves of its own when killed.

A folder is locked while its process lives, so that the next process recognises abandoned ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

PREFIX = ".digit-detector-work-"
_LOCK = "lock"
_HALF_WRITTEN = re.compile(r".+\.(\d{1,10})\.tmp")  # as files.py calls them
_RESTING = 10.0  # seconds that such a file has not grown: its process may be one of another machine


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder that is gone afterwards. Those of killed processes of this user are removed first."""
    clear_folders()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, FileLock(Path(name, _LOCK)):
        files = Path(name, "files")
        files.mkdir()
        yield files


def clear_folders() -> None:
    """Remove the folders of processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another's, or in use
            if hasattr(os, "getuid") and path.lstat().st_uid != os.getuid():
                continue
            if path.is_symlink() or not (path / _LOCK).is_file():
                continue
            with FileLock(path / _LOCK, timeout=0):
                shutil.rmtree(path / "files", ignore_errors=True)
            shutil.rmtree(path, ignore_errors=True)


def clear_half_written(folder: Path) -> None:
    """Remove files that a killed process had begun to write into a folder, by their names; no live process's."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            match = _HALF_WRITTEN.fullmatch(path.name)
            if match is None or _is_alive(int(match[1])) or not path.is_file():
                continue
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _RESTING:
                    path.unlink()


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # there os.kill ends it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
