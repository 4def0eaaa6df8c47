"""Files of arrays: one after the other, each at a multiple of a page, then what they are as JSON, its SHA-256, a mark.

They are read without unpickling: nothing but numbers is ever written.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

_MARK = b"digits:1"
_PAGE = 4096
_TAIL = 32 + 8 + len(_MARK)  # SHA-256 of the JSON, its length, the mark
_KINDS = frozenset("fiub")  # of arrays: nothing that would have to be unpickled

AnyArray = NDArray[Any]
Arrays = dict[str, AnyArray]
Block = Mapping[str, AnyArray]  # arrays of as many rows, of which more may follow
Key = Mapping[str, Any]  # what JSON can say


class Place:
    """Where an array begins in a file, which stays open as long as this is there.

    Who needs few rows of many reads them from here: a row that is touched in a map brings its neighbours into the
    memory of the process, up to megabytes of them.
    """

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file, self._offset = os.dup(file.fileno()), offset
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self._file)

    def read(self, into: memoryview, start: int) -> None:
        """Fill `into` with the bytes from `start` on. Raises OSError where there are too few."""
        done = 0
        while done < len(into):
            count = self._some(into[done:], self._offset + start + done)
            if not count:
                raise OSError("a file of the cache became shorter while it was read")
            done += count

    if sys.platform == "win32":

        def _some(self, into: memoryview, start: int) -> int:
            with self._lock:
                os.lseek(self._file, start, os.SEEK_SET)
                data = os.read(self._file, len(into))
                into[: len(data)] = data
                return len(data)

    else:

        def _some(self, into: memoryview, start: int) -> int:
            return os.preadv(self._file, [into], start)


class Stored(NamedTuple):
    """Arrays that were found."""

    arrays: Arrays  # mapped, not to be written to
    places: dict[str, Place]  # where in a file they lie; without those that lie in memory


def write(file: BinaryIO, kind: str, key: Key, blocks: Iterator[Block], room: Callable[[int], bool]) -> bool:
    """All of an entry but its name; False where `room` has none."""
    streamed, held = "", dict[str, list[AnyArray]]()
    rows, crc, place, first = 0, 0, 0, None
    for block in _told_apart(blocks):
        names = list(block)
        streamed = streamed or names[0]
        array = np.ascontiguousarray(block[streamed])
        first = array if first is None else first
        if array.nbytes:
            data = array.data.cast("B")
            if not room(place + array.nbytes):
                return False
            file.write(data)
            crc, place = zlib.crc32(data, crc), place + array.nbytes
        rows += len(array)
        for name in names[1:]:
            held.setdefault(name, []).append(block[name])
    if first is None:
        raise ValueError("an entry without arrays")
    about = [_about(streamed, first.dtype, (rows, *first.shape[1:]), 0, crc)]
    for name, parts in held.items():
        array = np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))
        place += file.write(bytes(-place % _PAGE))
        content = array.tobytes()
        if not room(place + len(content)):
            return False
        about.append(_about(name, array.dtype, array.shape, place, zlib.crc32(content)))
        place += file.write(content)
    content = json.dumps({"kind": kind, "key": key, "arrays": about, "size": place}).encode()
    file.write(content + hashlib.sha256(content).digest() + len(content).to_bytes(8, "little") + _MARK)
    return True


def _told_apart(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same, but an OSError of whoever makes them can be told from one of the disk."""
    while True:
        try:
            block = next(blocks)
        except StopIteration:
            return
        except OSError as error:
            error.of_blocks = True  # type: ignore[attr-defined]
            raise
        yield block


def _about(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, crc: int) -> dict[str, Any]:
    if dtype.kind not in _KINDS:
        raise ValueError(f"{name} has the type {dtype}: numbers alone can be kept")
    return {"name": name, "dtype": dtype.newbyteorder("<").str, "shape": list(shape), "offset": offset, "crc": crc}


def head_of(file: BinaryIO) -> dict[str, Any]:
    """What an open entry says of itself. Raises ValueError where it is damaged."""
    end = file.seek(0, os.SEEK_END)
    if end < _TAIL:
        raise ValueError("it is cut off")
    file.seek(end - _TAIL)
    tail = file.read(_TAIL)
    length = int.from_bytes(tail[32:40], "little")
    if tail[40:] != _MARK or length > end - _TAIL:
        raise ValueError("it is cut off")
    file.seek(end - _TAIL - length)
    content = file.read(length)
    if hashlib.sha256(content).digest() != tail[:32]:
        raise ValueError("its description has another checksum")
    head: dict[str, Any] = json.loads(content)
    if head["size"] != end - _TAIL - length:
        raise ValueError("it has another size")
    return head


def opened(file: BinaryIO, head: Mapping[str, Any]) -> Stored:
    """The arrays of an open file that says `head` of itself. Raises ValueError where they cannot lie in it."""
    arrays: Arrays = {}
    places: dict[str, Place] = {}
    for about in head["arrays"]:
        dtype, shape = np.dtype(about["dtype"]), tuple(about["shape"])
        if dtype.kind not in _KINDS:
            raise ValueError(f"{about['name']} has the type {dtype}")
        count = int(np.prod(shape, dtype=np.int64))
        if about["offset"] + count * dtype.itemsize > head["size"]:
            raise ValueError(f"{about['name']} is cut off")
        if not count:
            arrays[about["name"]] = np.zeros(shape, dtype)
            continue
        within = about["offset"] % mmap.ALLOCATIONGRANULARITY
        held = mmap.mmap(
            file.fileno(), within + count * dtype.itemsize, access=mmap.ACCESS_READ, offset=about["offset"] - within
        )
        arrays[about["name"]] = np.frombuffer(held, dtype, count, within).reshape(shape)
        places[about["name"]] = Place(file, about["offset"])
    return Stored(arrays, places)


def fault_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = head_of(file)
            for about in head["arrays"]:
                left = int(np.prod(about["shape"], dtype=np.int64)) * np.dtype(about["dtype"]).itemsize
                crc = 0
                file.seek(about["offset"])
                while left and (data := file.read(min(left, 1 << 22))):
                    crc, left = zlib.crc32(data, crc), left - len(data)
                if left or crc != about["crc"]:
                    return f"{about['name']} has another checksum"
    except (ValueError, KeyError, TypeError) as error:
        return str(error)
    return ""
