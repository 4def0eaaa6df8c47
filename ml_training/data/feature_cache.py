"""An on-disk cache of arrays that are expensive to compute: decoded recordings, synthetic speech, features.

An entry is a folder `<kind>-<hash of its key>` of .npy files, opened with np.load(mmap_mode="r"), and of entry.json:
its key and the size and SHA-256 of each file. The key holds everything that decides the values, source code included.
Folders are written under another name and renamed, so that readers see complete entries only; of two writers the
first wins. No failure to read or write raises: the arrays are then computed and stay in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
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

AnyArray = NDArray[Any]
Arrays = dict[str, AnyArray]
Block = Mapping[str, AnyArray]  # rows of every array of an entry; more blocks may follow
Key = Mapping[str, Any]  # JSON

FOLDER_VARIABLE = "DIGIT_CACHE_DIR"
DEFAULT_LIMIT = 8 << 30  # bytes
FORMAT = 2
_ENTRY_FILE, _LIMIT_FILE = "entry.json", "limit"
_ENTRY = re.compile(r"([a-z]+)-[0-9a-f]{40}")
_OLD_ENTRY = re.compile(r"[a-z]+-[0-9a-f]{40}\.arrays|\..+\.arrays\.\d+\.[0-9a-f]{8}\.part")  # of 0.1
_PARTIAL = re.compile(r"\.[a-z]+-[0-9a-f]{40}\.(\d{1,10})\.[0-9a-f]{8}\.part")
_STALE_SECONDS = 3600.0
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError)  # what reading a damaged entry raises
_NUMERIC_KINDS = frozenset("fiub")  # dtype kinds that need no pickle


@dataclass(frozen=True)
class Entry:
    """A cache entry as it is listed."""

    path: Path
    kind: str
    bytes: int
    used: float  # seconds since 1970
    fault: str = ""  # why it cannot be read


class _TooLargeError(Exception):
    """An entry needs more bytes than the whole cache may have."""


def default_folder() -> Path:
    """$DIGIT_CACHE_DIR, or this system's folder for caches.

    Raises DataError for a user without a home folder, as in some containers.
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


def is_entry(path: Path) -> bool:
    """Whether a folder is named as an entry is."""
    return _ENTRY.fullmatch(path.name) is not None


class Cache:
    """The entries of one folder, which together have at most `limit` bytes.

    `report` receives one line, once, when something cannot be read or written. Only `clear` and `set_limit` raise
    errors of the disk.
    """

    def __init__(
        self, folder: Path | None = None, limit: int | None = None, report: Callable[[str], None] = lambda line: None
    ) -> None:
        self.folder = default_folder() if folder is None else folder
        self.limit = self._read_limit() if limit is None else limit
        self.hits, self.misses = 0, 0
        self._report, self._reported = report, False

    def path(self, kind: str, key: Key) -> Path:
        digest = hashlib.sha256(json.dumps([FORMAT, kind, key], sort_keys=True).encode()).hexdigest()
        return self.folder / f"{kind}-{digest[:40]}"

    def find(self, kind: str, key: Key) -> Arrays | None:
        """The arrays of a key, memory-mapped read-only, or None. A damaged entry is removed."""
        path = self.path(kind, key)
        found = None
        try:
            found = _load(path, kind, key)
            with contextlib.suppress(OSError):  # a folder of another user may be readable only
                os.utime(path / _ENTRY_FILE)
        except (FileNotFoundError, NotADirectoryError):
            if path.is_dir():  # its description is missing
                self._discard(path)
        except (OSError, *_DAMAGED) as error:
            self._warn(f"cache: {path.name} is damaged ({error}) and made anew")
            self._discard(path)
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def store(self, kind: str, key: Key, blocks: Iterable[Block]) -> Arrays | None:
        """Write the concatenated blocks as the entry of a key and open it; None where that fails.

        Raises errors of `blocks`, but for OSError, which cannot be told from one of the disk.
        """
        path = self.path(kind, key)
        part = self._hidden(path)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
            part.mkdir()
            size = _write(part, kind, key, blocks, self.limit)
            self.evict(self.limit - size)
            with contextlib.suppress(OSError):  # another process was first
                os.replace(part, path)
        except _TooLargeError:
            self._warn(f"cache: an entry is larger than the limit of {self.limit / 1e6:.4g} MB: not kept")
        except OSError as error:
            self._warn(f"cache: cannot write to {self.folder} ({error.strerror or error}): going on without")
        finally:
            shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError, *_DAMAGED):  # not written, or cleared by another process meanwhile
            return _load(path, kind, key)
        return None

    def evict(self, limit: int | None = None) -> list[Entry]:
        """Remove the least recently used entries until all have at most `limit` bytes together; what was removed."""
        entries = self.entries()[::-1]
        total, removed = sum(entry.bytes for entry in entries), []
        for entry in entries:
            if total <= (self.limit if limit is None else limit):
                break
            if self._discard(entry.path):
                total -= entry.bytes
                removed.append(entry)
        return removed

    def entries(self, check: bool = False) -> list[Entry]:
        """All entries, the most recently used first; `check` compares every file with its checksum."""
        found = []
        for path in self._listing():
            match = _ENTRY.fullmatch(path.name)
            if match is None or not path.is_dir():
                continue
            with contextlib.suppress(OSError):  # removed meanwhile
                fault = _fault(path) if check else ""
                size = sum(file.stat().st_size for file in path.iterdir())
                marker = path / _ENTRY_FILE
                used = (marker if marker.exists() else path).stat().st_mtime
                found.append(Entry(path, match[1], size, used, fault))
        return sorted(found, key=lambda entry: -entry.used)

    def remove(self, path: Path) -> None:
        """Remove an entry. Raises OSError."""
        hidden = self._hidden(path)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, hidden)  # atomic for readers
            shutil.rmtree(hidden)

    def clear(self) -> list[Entry]:
        """Remove all entries and what killed writers left. Raises DataError where the system refuses."""
        removed = self.entries()
        try:
            for entry in removed:
                self.remove(entry.path)
        except OSError as error:
            raise DataError(f"cannot clear {self.folder}: {error.strerror or error}; change its rights") from error
        self._clear_leftovers()
        return removed

    def set_limit(self, limit: int) -> list[Entry]:
        """Bound the size of all entries, in this and every later run, in bytes; returns the evicted entries."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self.folder / f"{_LIMIT_FILE}.{os.getpid()}.tmp"
            part.write_text(f"{limit}\n", encoding="ascii")
            os.replace(part, self.folder / _LIMIT_FILE)
        except OSError as error:
            raise DataError(
                f"cannot write to {self.folder}: {error.strerror or error}; name another folder in ${FOLDER_VARIABLE}"
            ) from error
        self.limit = limit
        return self.evict()

    def _read_limit(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / _LIMIT_FILE).read_text(encoding="ascii"))
        return DEFAULT_LIMIT

    def _listing(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return sorted(self.folder.iterdir())
        return []

    def _hidden(self, path: Path) -> Path:
        return self.folder / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part"

    def _discard(self, path: Path) -> bool:
        """Remove an entry if possible (on Windows not while it is open)."""
        with contextlib.suppress(OSError):
            self.remove(path)
            return True
        return False

    def _clear_leftovers(self) -> None:
        """Remove folders of killed processes, and entries in the format of earlier versions."""
        for path in self._listing():
            match = _PARTIAL.fullmatch(path.name)
            with contextlib.suppress(OSError):
                if match is not None and _is_abandoned(path, int(match[1])):
                    shutil.rmtree(path, ignore_errors=True)
                elif _OLD_ENTRY.fullmatch(path.name) and path.is_file():
                    path.unlink()

    def _warn(self, line: str) -> None:
        if not self._reported:
            self._reported = True
            self._report(line)


def _is_abandoned(path: Path, pid: int) -> bool:
    """Whether no process of this machine writes a folder any more; on Windows, where none can be asked for, by age."""
    if sys.platform == "win32":
        return time.time() - path.stat().st_mtime > _STALE_SECONDS
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
    return False


def _write(folder: Path, kind: str, key: Key, blocks: Iterable[Block], limit: int) -> int:
    """Write the files of an entry; returns their size in bytes. Raises OSError, _TooLargeError."""
    arrays: dict[str, tuple[BinaryIO, AnyArray]] = {}  # file and first block of each
    rows: Counter[str] = Counter()
    total = 0
    with contextlib.ExitStack() as stack:
        for block in blocks:
            total += sum(array.nbytes for array in block.values())
            if total > limit:
                raise _TooLargeError
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
    if not arrays:
        raise ValueError("an entry without arrays")
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    files = {name: {"bytes": count, "sha256": _sha256(folder / name)} for name, count in sizes.items()}
    described = json.dumps({"kind": kind, "key": key, "files": files})
    (folder / _ENTRY_FILE).write_text(described, encoding="utf-8")
    return len(described) + sum(sizes.values())


def _write_header(file: BinaryIO, array: AnyArray, rows: int) -> None:
    if array.dtype.kind not in _NUMERIC_KINDS:
        raise ValueError(f"arrays of type {array.dtype} would have to be pickled: numbers alone can be kept")
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": (rows, *array.shape[1:])}
    np.lib.format.write_array_header_1_0(file, header)


def _describe(path: Path) -> dict[str, Any]:
    """entry.json. Raises OSError, ValueError for files that are missing, cut off or too long."""
    described: dict[str, Any] = json.loads((path / _ENTRY_FILE).read_text(encoding="utf-8"))
    for name, file in described["files"].items():
        if (path / name).stat().st_size != file["bytes"]:
            raise ValueError(f"{name} has {(path / name).stat().st_size} bytes, expected {file['bytes']}")
    return described


def _load(path: Path, kind: str, key: Key) -> Arrays:
    described = _describe(path)
    if described["kind"] != kind or described["key"] != json.loads(json.dumps(key)):
        raise ValueError("it is of another key")
    files = {name.removesuffix(".npy"): path / name for name in described["files"]}
    return {name: np.load(file, mmap_mode="r", allow_pickle=False) for name, file in files.items()}


def _fault(path: Path) -> str:
    try:
        for name, file in _describe(path)["files"].items():
            if _sha256(path / name) != file["sha256"]:
                return f"{name.removesuffix('.npy')} has another checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing" if path.is_dir() else ""
    except _DAMAGED as error:
        return str(error)
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def current_cache() -> Cache | None:
    return _current


def get_or_compute(
    kind: str, key: Callable[[], Key], compute: Callable[[], Iterable[Block]], rows: int | None = None
) -> Arrays:
    """The concatenated blocks of `compute`: memory-mapped out of the cache in use, which keeps them, or in memory.

    `rows` is how many the first array has at most; it is then filled in place.
    """
    if _current is not None:
        named = key()
        found = _current.find(kind, named)
        if found is None:
            found = _current.store(kind, named, compute())
        if found is not None:
            return found
    return _concatenate_blocks(compute(), rows)


def _concatenate_blocks(blocks: Iterable[Block], rows: int | None) -> Arrays:
    parts: dict[str, list[AnyArray]] = {}
    filled, count = None, 0
    for block in blocks:
        for place, (name, array) in enumerate(block.items()):
            if rows is None or place > 0:
                parts.setdefault(name, []).append(array)
                continue
            if filled is None:
                first, filled = name, np.zeros((rows, *array.shape[1:]), array.dtype)
            filled[count : count + len(array)] = array
            count += len(array)
    found = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return found if filled is None else {first: filled[:count], **found}
