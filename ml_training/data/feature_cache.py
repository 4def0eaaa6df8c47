"""An on-disk cache of arrays that are expensive to compute: decoded recordings, synthetic speech, features.

An entry is a folder `<kind>-<hash of its key>` of .npy files, opened with np.load(mmap_mode="r"), and of entry.json:
its key and the size and SHA-256 of each file. The key holds everything that decides the values, source code included.
Folders are written under another name and renamed, so readers see complete entries only, and of two writers the first
wins. No failure to read or write raises: the arrays are then computed and stay in memory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from digit_detector.errors import DataError
from digit_detector.files import sha256_of

_log = logging.getLogger(__name__)

AnyArray = NDArray[Any]
Arrays = dict[str, AnyArray]
Block = Mapping[str, AnyArray]  # rows of every array of an entry; more blocks may follow
Key = Mapping[str, Any]  # JSON

FOLDER_VARIABLE = "DIGIT_CACHE_DIR"
DEFAULT_LIMIT = 8 << 30  # bytes
FORMAT = 3
ENTRY = re.compile(r"([a-z]+)-[0-9a-f]{40}")
_LEFTOVER = re.compile(r"\..+\.part|[a-z]+-[0-9a-f]{40}\.arrays")  # of killed writers; entries of version 0.1
_STALE_SECONDS = 24 * 3600.0
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what reading a damaged entry raises


@dataclass(frozen=True)
class Entry:
    """A cache entry as it is listed."""

    path: Path
    kind: str
    bytes: int
    used: float  # seconds since 1970
    fault: str = ""  # why it cannot be read


def default_folder() -> Path:
    """$DIGIT_CACHE_DIR, or this system's folder for caches. Raises DataError for a user without a home folder."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(os.path.expanduser(named))
    bases = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
    variable, below_home = bases.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    try:
        base = Path(os.environ.get(variable) or Path.home() / below_home)
    except RuntimeError as error:
        raise DataError(
            f"no home folder to keep a cache in: name one in ${FOLDER_VARIABLE}, or train with --no_cache"
        ) from error
    return base / "streaming-digit-detector" / "arrays"


def source_hash(*modules: ModuleType | str) -> str:
    """SHA-256 of the source files of modules, given as modules or by name."""
    digest = hashlib.sha256()
    for module in modules:
        found = sys.modules[module] if isinstance(module, str) else module
        file = getattr(found, "__file__", None)  # none for a module typed in, which lives as long as its process
        digest.update(Path(file).read_bytes() if file else f"{found.__name__} {os.getpid()}".encode())
    return digest.hexdigest()


def encode_json(value: Any) -> NDArray[np.uint8]:
    """A JSON value as an array, to be stored beside others."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def decode_json(array: AnyArray) -> Any:
    """The value that `encode_json` was given, tuples as lists."""
    return json.loads(array.tobytes())


class Cache:
    """The entries of one folder, which together have at most `limit` bytes.

    The first failure to read or write is logged. Only `remove`, `clear` and `set_limit` raise errors of the disk.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = default_folder() if folder is None else folder
        self.limit = DEFAULT_LIMIT if limit is None else limit
        if limit is None:
            with contextlib.suppress(OSError, ValueError):
                self.limit = int((self.folder / "limit").read_text(encoding="ascii"))
        self.hits, self.misses = 0, 0
        self._has_warned = False

    def path(self, kind: str, key: Key) -> Path:
        digest = hashlib.sha256(json.dumps([FORMAT, kind, key], sort_keys=True).encode()).hexdigest()
        return self.folder / f"{kind}-{digest[:40]}"

    def find(self, kind: str, key: Key) -> Arrays | None:
        """The arrays of a key, memory-mapped read-only, or None. A damaged entry is removed."""
        path = self.path(kind, key)
        found = None
        try:
            found = _load(path, key)
            with contextlib.suppress(OSError):  # a folder of another user may be readable only
                os.utime(path / "entry.json")
        except _DAMAGED as error:
            if path.is_dir():
                self._warn(f"cache: {path.name} is damaged ({error}), computing it again")
                with contextlib.suppress(OSError):
                    self.remove(path)
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def store(self, kind: str, key: Key, blocks: Iterable[Block]) -> Arrays | None:
        """Write the concatenated blocks as the entry of a key and open it; None where that fails.

        Raises errors of `blocks`, except OSError, which cannot be distinguished from one of the disk.
        """
        path = self.path(kind, key)
        part = self._hidden(path)
        try:
            part.mkdir(parents=True)
            size = _write(part, key, blocks, self.limit)
            self._clear_leftovers()
            self._evict(self.limit - size)
            with contextlib.suppress(OSError):  # another process was first
                os.replace(part, path)
        except OSError as error:
            self._warn(f"cache: cannot write to {self.folder} ({error.strerror or error}): going on without")
        finally:
            shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(*_DAMAGED):  # not written, or cleared by another process meanwhile
            return _load(path, key)
        return None

    def entries(self, check: bool = False) -> list[Entry]:
        """All entries, the most recently used first; `check` compares every file with its checksum."""
        found = []
        for path in self.folder.glob("*-*"):
            with contextlib.suppress(OSError):  # removed meanwhile
                if (match := ENTRY.fullmatch(path.name)) is not None:
                    sizes = {file.name: file.stat().st_size for file in path.iterdir()}
                    used = (path / "entry.json" if "entry.json" in sizes else path).stat().st_mtime
                    found.append(Entry(path, match[1], sum(sizes.values()), used, _fault(path) if check else ""))
        return sorted(found, key=lambda entry: -entry.used)

    def remove(self, path: Path) -> None:
        """Remove an entry. Raises OSError, on Windows also while it is open."""
        hidden = self._hidden(path)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, hidden)  # atomic for readers
            shutil.rmtree(hidden)

    def clear(self) -> list[Entry]:
        """Remove all entries; returns them. Raises DataError where the system refuses."""
        removed = self.entries()
        try:
            for entry in removed:
                self.remove(entry.path)
        except OSError as error:
            raise DataError(f"cannot clear {self.folder}: {error.strerror or error}; change its rights") from error
        self._clear_leftovers()
        return removed

    def set_limit(self, limit: int) -> list[Entry]:
        """Bound the size of all entries in bytes, in this and every later run; returns the evicted entries."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "limit").write_text(f"{limit}\n", encoding="ascii")
        except OSError as error:
            raise DataError(
                f"cannot write to {self.folder}: {error.strerror or error}; name another folder in ${FOLDER_VARIABLE}"
            ) from error
        self.limit = limit
        return self._evict(limit)

    def _evict(self, limit: int) -> list[Entry]:
        """Remove the least recently used entries until all have at most `limit` bytes; returns the removed ones."""
        entries = self.entries()
        total, removed = sum(entry.bytes for entry in entries), []
        while total > limit and entries:
            oldest = entries.pop()
            with contextlib.suppress(OSError):
                self.remove(oldest.path)
                total -= oldest.bytes
                removed.append(oldest)
        return removed

    def _hidden(self, path: Path) -> Path:
        return self.folder / f".{path.name}.{secrets.token_hex(4)}.part"

    def _clear_leftovers(self) -> None:
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            with contextlib.suppress(OSError):
                if _LEFTOVER.fullmatch(path.name) and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _warn(self, line: str) -> None:
        if not self._has_warned:
            _log.warning(line)
            self._has_warned = True


def _write(folder: Path, key: Key, blocks: Iterable[Block], limit: int) -> int:
    """Write the files of an entry; returns their size in bytes. Raises OSError."""
    arrays: dict[str, tuple[BinaryIO, AnyArray]] = {}  # file and first block of each
    rows: Counter[str] = Counter()
    total = 0
    with contextlib.ExitStack() as stack:
        for block in blocks:
            total += sum(array.nbytes for array in block.values())
            if total > limit:
                raise OSError(errno.EFBIG, f"an entry is larger than the limit of {limit / 1e6:.4g} MB")
            for name, array in block.items():
                if name not in arrays:
                    arrays[name] = stack.enter_context((folder / f"{name}.npy").open("wb")), array
                    _write_header(*arrays[name], 0)
                file, first = arrays[name]
                file.write(np.ascontiguousarray(array, first.dtype).data)
                rows[name] += len(array)
        for name, (file, first) in arrays.items():
            file.seek(0)  # numpy leaves room in the header for any number of rows
            _write_header(file, first, rows[name])
            file.flush()
            os.fsync(file.fileno())  # no power cut leaves an entry of zeros
    files = {path.name: [path.stat().st_size, sha256_of(path)] for path in sorted(folder.iterdir())}
    (folder / "entry.json").write_text(json.dumps({"key": key, "files": files}), encoding="utf-8")
    return sum(path.stat().st_size for path in folder.iterdir())


def _write_header(file: BinaryIO, array: AnyArray, rows: int) -> None:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"arrays of type {array.dtype} would have to be pickled: numbers alone can be kept")
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": (rows, *array.shape[1:])}
    np.lib.format.write_array_header_1_0(file, header)


def _load(path: Path, key: Key | None = None) -> Arrays:
    """The arrays of an entry; without a key checksums are compared. Raises one of _DAMAGED."""
    described = json.loads((path / "entry.json").read_text(encoding="utf-8"))
    if key is not None and described["key"] != json.loads(json.dumps(key)):
        raise ValueError("it is of another key")
    arrays: Arrays = {}
    for file, (size, sha256) in described["files"].items():
        name = file.removesuffix(".npy")
        if (path / file).stat().st_size != size:
            raise ValueError(f"{file} has {(path / file).stat().st_size} bytes, expected {size}")
        if key is None and sha256_of(path / file) != sha256:
            raise ValueError(f"{name} has another checksum")
        arrays[name] = np.load(path / file, mmap_mode="r", allow_pickle=False)
    return arrays


def _fault(path: Path) -> str:
    try:
        _load(path)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing" if path.is_dir() else ""
    except _DAMAGED as error:
        return str(error)
    return ""


_current: Cache | None = None


@contextlib.contextmanager
def use_cache(cache: Cache | None) -> Iterator[None]:
    """Make `get_or_compute` use this cache, None for none. Without this context there is none."""
    global _current
    before, _current = _current, cache
    try:
        yield
    finally:
        _current = before


def get_or_compute(kind: str, key: Callable[[], Key], compute: Callable[[], Iterable[Block]]) -> Arrays:
    """The concatenated blocks of `compute`: memory-mapped from the cache in use, or in memory."""
    if _current is not None:
        named = key()
        found = _current.find(kind, named) or _current.store(kind, named, compute())
        if found is not None:
            return found
    blocks = list(compute())
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
