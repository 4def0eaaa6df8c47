"""Clips that lie in files: as much of an array as whoever trains needs of it, in the memory that a few of them take."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np

from ml_training.data.array_file import AnyArray, Place
from ml_training.results import Floats, Ints

_BLOCK = 4096  # rows that are hashed at once


class Source(NamedTuple):
    """Rows of one array, mapped or not."""

    array: AnyArray  # (N, ...)
    place: Place | None = None  # where in a file it lies
    identity: str = ""  # a hash of what decides its values; empty where only they can tell


class Rows:
    """(N, ...) rows of several arrays, one after the other, in any order; what is asked for is copied, no more.

    Indexed as an array is: by a number, a slice, positions or a mask.
    """

    def __init__(self, sources: Sequence[Source], chosen: Ints | None = None) -> None:
        self.sources = tuple(sources)
        self._ends = np.cumsum([len(source.array) for source in sources])
        self._chosen = chosen
        first = sources[0].array
        self.dtype = first.dtype
        self.shape = (int(self._ends[-1]) if chosen is None else len(chosen), *first.shape[1:])
        if any(source.array.shape[1:] != first.shape[1:] or source.array.dtype != first.dtype for source in sources):
            raise ValueError(
                f"rows of {[(source.array.shape, source.array.dtype) for source in sources]} are not alike"
            )

    def __len__(self) -> int:
        return int(self.shape[0])

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __getitem__(self, wanted: Any) -> AnyArray:
        if isinstance(wanted, (int, np.integer)):
            row: AnyArray = self._copied(self._places(np.array([wanted])))[0]
            return row
        return self._copied(self._places(wanted))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> AnyArray:
        found = self[:]
        return found if dtype is None else found.astype(dtype, copy=False)

    def of(self, wanted: Any) -> Rows:
        """Some of the rows, without reading them."""
        return Rows(self.sources, self._places(wanted))

    @property
    def identity(self) -> str:
        """SHA-256 of what decides these values; those of arrays that nothing is known of are read for it."""
        digest = hashlib.sha256()
        for source in self.sources:
            digest.update(f"{source.identity or identity_of(source.array)} {source.array.shape}\n".encode())
        if self._chosen is not None:
            digest.update(np.ascontiguousarray(self._chosen, dtype="<i8").tobytes())
        return digest.hexdigest()

    def _places(self, wanted: Any) -> Ints:
        """Positions in the sources, one after the other."""
        if isinstance(wanted, slice):
            places = np.arange(*wanted.indices(len(self)), dtype=np.int64)
        else:
            places = np.asarray(wanted)
            if places.dtype == np.bool_:
                places = np.flatnonzero(places)
            places = places.astype(np.int64)
            if len(places) and not (-len(self) <= places.min() and places.max() < len(self)):
                raise IndexError(f"rows {places.min()} to {places.max()} were asked for, there are {len(self)}")
            places = np.where(places < 0, places + len(self), places)
        return places if self._chosen is None else self._chosen[places]

    def _copied(self, places: Ints) -> AnyArray:
        found = np.empty((len(places), *self.shape[1:]), self.dtype)
        which = np.searchsorted(self._ends, places, side="right")
        for number, source in enumerate(self.sources):
            here = np.flatnonzero(which == number)
            rows = places[here] - (int(self._ends[number]) - len(source.array))
            if source.place is None:
                found[here] = source.array[rows]
            elif len(here) and found[:1].nbytes:
                _read(source.place, rows, found, here)
        return found


def _read(place: Place, rows: Ints, found: AnyArray, here: Ints) -> None:
    """Read rows of a file into the places `here` of `found`; those that follow each other there and here at once."""
    size = found[:1].nbytes
    whole = found.reshape(-1).view(np.uint8).data
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(here) != 1)) + 1
    for start, end in pairwise([0, *breaks.tolist(), len(rows)]):
        into = int(here[start]) * size
        place.read(whole[into : into + (end - start) * size], int(rows[start]) * size)


def joined(parts: Sequence[Floats]) -> Floats:
    """Clips one after the other: in one array, or as Rows where some are."""
    if not any(isinstance(part, Rows) for part in parts):
        return np.concatenate(parts)
    sources: list[Source] = []
    chosen: list[Ints] = []
    count = 0
    for part in parts:
        rows = cast(Any, part) if isinstance(part, Rows) else Rows([Source(part)])
        chosen.append(rows._places(slice(None)) + count)
        sources += rows.sources
        count += sum(len(source.array) for source in rows.sources)
    return as_array(Rows(sources, np.concatenate(chosen)))


def some(clips: Floats, chosen: Ints) -> Floats:
    """Some of the clips: Rows of Rows, which reads none of them, and a copy otherwise."""
    return as_array(clips.of(chosen)) if isinstance(clips, Rows) else clips[chosen]


def as_array(rows: Rows) -> Floats:
    """Rows for whom they are as good as an array: who indexes them. What they cannot do, numpy does with a copy."""
    return cast(Floats, rows)


def identity_of(array: AnyArray | Rows) -> str:
    """SHA-256 of what decides the values of an array."""
    if isinstance(array, Rows):
        return array.identity
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    for start in range(0, len(array), _BLOCK):
        digest.update(np.ascontiguousarray(array[start : start + _BLOCK]).data)
    return digest.hexdigest()
