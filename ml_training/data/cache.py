"""Arrays that are made once and read by every later run: decoded recordings, synthetic voices, features.

An entry is one file of arrays, named by a hash of everything that decides it, the code that makes it included, so that
another setting looks for another file. It is written beside and renamed: a reader finds a whole entry or none, of
two writers the later one wins with the same bytes, and what a killed one left is swept up by the next. A cache that
cannot be read or written costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from digit_detector.errors import DataError
from ml_training.data.array_file import AnyArray, Arrays, Block, Key, Stored, fault_of, head_of, opened, write

FOLDER_VARIABLE = "DIGIT_CACHE_DIR"
DEFAULT_LIMIT = 8 << 30  # bytes
FORMAT = 1
SUFFIX = ".arrays"
_LIMIT_FILE = "limit"
_PARTIAL = re.compile(r"\..+\.part")
_STALE_SECONDS = 3600.0  # where the system has no locks that end with their process
_YOUNG_SECONDS = 2.0  # a file may not be locked yet, or be about to take its name


@dataclass(frozen=True)
class Entry:
    """What the list of entries tells of one."""

    path: Path
    kind: str
    bytes: int
    used: float  # seconds since 1970
    fault: str = ""  # why it cannot be read

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(SUFFIX)


def default_folder() -> Path:
    """$DIGIT_CACHE_DIR, or the place in which this system keeps what can be made again.

    Raises DataError for a user without a home, as in some containers.
    """
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(os.path.expanduser(named))
    try:
        home = Path.home()
    except RuntimeError as error:
        raise DataError(
            f"no home folder to keep a cache in: name one in ${FOLDER_VARIABLE}, or train with --no_cache"
        ) from error
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "streaming-digit-detector" / "arrays"


def key_hash(kind: str, key: Key) -> str:
    """SHA-256 of what decides an entry."""
    return hashlib.sha256(json.dumps([FORMAT, kind, key], sort_keys=True).encode()).hexdigest()


def code_hash(*modules: ModuleType | str) -> str:
    """SHA-256 of the source of modules, each itself or by its name: who changes one makes everything anew."""
    digest = hashlib.sha256()
    for module in modules:
        found = sys.modules[module] if isinstance(module, str) else module
        # A module without a file was typed in: it is told by its name, and lives no longer than its process.
        file = getattr(found, "__file__", None)
        digest.update(Path(file).read_bytes() if file else f"{found.__name__} {os.getpid()}".encode())
    return digest.hexdigest()


def text(value: Any) -> NDArray[np.uint8]:
    """What JSON can say as an array, to lie beside others; `said` reads it."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def said(array: AnyArray) -> Any:
    """What `text` was given, tuples as lists."""
    return json.loads(array.tobytes())


class Cache:
    """The entries of one folder, which together have at most `limit` bytes.

    `report` hears, once, why nothing can be kept. No method but `clear` and `set_limit` raises anything because of the
    disk.
    """

    def __init__(
        self, folder: Path | None = None, limit: int | None = None, report: Callable[[str], None] = lambda line: None
    ) -> None:
        self.folder = default_folder() if folder is None else folder
        self.limit = self._limit() if limit is None else limit
        self.hits, self.misses = 0, 0
        self._report, self._reported = report, False

    def path(self, kind: str, key: Key) -> Path:
        return self.folder / f"{kind}-{key_hash(kind, key)[:40]}{SUFFIX}"

    # --- reading ---

    def find(self, kind: str, key: Key) -> Stored | None:
        """The entry of a key, or None. A damaged one is removed; one that is found counts as just used."""
        path = self.path(kind, key)
        try:
            with path.open("rb") as file:
                head = head_of(file)
                if head["kind"] != kind or head["key"] != json.loads(json.dumps(key)):
                    raise ValueError("it is of another key")
                stored = opened(file, head)
            with contextlib.suppress(OSError):  # somebody else's folder can be read all the same
                os.utime(path)
        except (FileNotFoundError, NotADirectoryError):
            stored = None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._tell(f"cache: {path.name} is damaged ({error}) and made anew")
            with contextlib.suppress(OSError):
                path.unlink()
            stored = None
        self.hits, self.misses = self.hits + (stored is not None), self.misses + (stored is None)
        return stored

    # --- writing ---

    def keep(self, kind: str, key: Key, blocks: Iterable[Block]) -> Stored | None:
        """Write blocks of rows, one after the other, as the entry of a key, and find it; None where that fails.

        Rows of the first array go to the disk as they come; those of the others are held until the end. What `blocks`
        raises itself is passed on, and nothing is left then.
        """
        path = self.path(kind, key)
        part = self.folder / f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}.part"
        source = iter(blocks)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            with part.open("xb") as file:
                _hold(file)
                if not write(file, kind, key, source, self._room):
                    self._tell(f"cache: an entry is larger than the limit of {size(self.limit)}: not kept")
                    return None
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            self.evict(spare=path)
        except OSError as error:
            if getattr(error, "of_blocks", False):  # what is made failed, not the writing of it
                raise
            self._tell(f"cache: cannot write to {self.folder} ({error.strerror or error}): going on without")
            return None
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        try:
            with path.open("rb") as file:
                return opened(file, head_of(file))
        except (OSError, ValueError):  # another process cleared it meanwhile
            return None

    def _room(self, wanted: int) -> bool:
        """Make room for an entry of so many bytes; False where the limit is below that."""
        if wanted > self.limit:
            return False
        self.evict(self.limit - wanted)
        return True

    def evict(self, limit: int | None = None, spare: Path | None = None) -> list[Entry]:
        """Remove what was used longest ago until all entries together have at most `limit` bytes; what was removed."""
        entries = sorted(self.entries(), key=lambda entry: (entry.path == spare, entry.used))
        left, removed = sum(entry.bytes for entry in entries), []
        for entry in entries:
            if left <= (self.limit if limit is None else limit):
                break
            try:
                entry.path.unlink(missing_ok=True)
            except OSError:  # Windows, while somebody reads it
                continue
            left -= entry.bytes
            removed.append(entry)
        return removed

    def _sweep(self) -> None:
        """Remove what writers left that were killed."""
        for path in self._partial():
            with contextlib.suppress(OSError):
                if _abandoned(path):
                    path.unlink()

    # --- all of them ---

    def entries(self, check: bool = False) -> list[Entry]:
        """Every entry, the one used last first; with `check` every byte of each is read and compared with its sum."""
        found = []
        for path in self._files(SUFFIX):
            try:
                status = path.stat()
                fault = fault_of(path) if check else ""
            except OSError:  # gone meanwhile
                continue
            kind = path.name.rpartition("-")[0]
            found.append(Entry(path, kind, status.st_size, status.st_mtime, fault))
        return sorted(found, key=lambda entry: -entry.used)

    def clear(self) -> list[Entry]:
        """Remove every entry and what killed writers left. Raises DataError where the system refuses."""
        removed = self.entries()
        try:
            for path in [entry.path for entry in removed] + [p for p in self._partial() if _abandoned(p)]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"cannot clear {self.folder}: {error.strerror or error}; change its rights") from error
        return removed

    def set_limit(self, limit: int) -> list[Entry]:
        """Let all entries together have at most so many bytes, from now on and in every run; what had to go."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = self.folder / f"{_LIMIT_FILE}.{os.getpid()}.tmp"
            beside.write_text(f"{limit}\n", encoding="ascii")
            os.replace(beside, self.folder / _LIMIT_FILE)
        except OSError as error:
            raise DataError(
                f"cannot write to {self.folder}: {error.strerror or error}; name another folder in ${FOLDER_VARIABLE}"
            ) from error
        self.limit = limit
        return self.evict()

    def _limit(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / _LIMIT_FILE).read_text(encoding="ascii"))
        return DEFAULT_LIMIT

    def _files(self, suffix: str) -> list[Path]:
        with contextlib.suppress(OSError):
            return [path for path in self.folder.iterdir() if path.name.endswith(suffix) and path.is_file()]
        return []

    def _partial(self) -> list[Path]:
        return [path for path in self._files(".part") if _PARTIAL.fullmatch(path.name)]

    def _tell(self, line: str) -> None:
        if not self._reported:
            self._reported = True
            self._report(line)


if sys.platform == "win32":

    def _hold(file: BinaryIO) -> None:
        pass  # an open file cannot be removed there

    def _abandoned(path: Path) -> bool:
        return time.time() - path.stat().st_mtime > _STALE_SECONDS

else:
    import fcntl

    def _hold(file: BinaryIO) -> None:
        """Show that somebody writes it: the lock ends with this process."""
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _abandoned(path: Path) -> bool:
        age = time.time() - path.stat().st_mtime
        with path.open("rb") as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:
                return age > _STALE_SECONDS
        return age > _YOUNG_SECONDS


# --- in use --------------------------------------------------------------------------------------

_current: Cache | None = None


@contextlib.contextmanager
def caching(cache: Cache | None) -> Iterator[None]:
    """Within, `kept` looks into this cache; None for none. Outside there is none: what is loaded is made."""
    global _current
    before, _current = _current, cache
    try:
        yield
    finally:
        _current = before


def current() -> Cache | None:
    """The cache in use."""
    return _current


def kept(kind: str, key: Callable[[], Key], make: Callable[[], Iterable[Block]], rows: int | None = None) -> Stored:
    """What `make` gives, from the cache in use where it was made before, and into it where it was not.

    Without a cache, or where nothing can be written, the arrays are in memory and `places` is empty; `rows` is how
    many there will be at most, and spares the room for joining blocks.
    """
    cache = _current
    if cache is not None:
        named = key()
        stored = cache.find(kind, named) or cache.keep(kind, named, make())
        if stored is not None:
            return stored
    return Stored(_joined(make(), rows), {})


def _joined(blocks: Iterable[Block], rows: int | None) -> Arrays:
    parts: dict[str, list[AnyArray]] = {}
    large, filled, streamed = None, 0, ""
    for block in blocks:
        streamed = streamed or next(iter(block))
        for name, array in block.items():
            if rows is None or name != streamed:
                parts.setdefault(name, []).append(array)
                continue
            if large is None:
                large = np.zeros((rows, *array.shape[1:]), array.dtype)
            large[filled : filled + len(array)] = array
            filled += len(array)
    found = {name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for name, arrays in parts.items()}
    return found if large is None else {streamed: large[:filled], **found}


def size(count: float) -> str:
    """Bytes for people: 3.2 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in ("bytes", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
