"""Rows, concatenation and hashes of arrays that may be memory-mapped and larger than memory."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ml_training.data.feature_cache import ENTRY, AnyArray, Block, get_or_compute
from ml_training.results import Floats

_ROWS_AT_ONCE = 1024


def take(array: AnyArray, rows: Any) -> AnyArray:
    """A copy in memory of some rows, given as positions, a mask or a slice."""
    found: AnyArray = np.asarray(array[rows])
    return found if found.base is None else found.copy()


def concatenate(parts: Sequence[Floats]) -> Floats:
    """Clips one after the other: memory-mapped where one of the parts is, if the cache in use can keep them."""

    def blocks() -> Iterator[Block]:
        for part in parts:
            for start in range(0, len(part), _ROWS_AT_ONCE):
                yield {"waveforms": take(part, slice(start, start + _ROWS_AT_ONCE))}

    if not any(isinstance(part, np.memmap) for part in parts):
        return np.concatenate(parts)
    return get_or_compute("joined", lambda: {"parts": [content_hash(part) for part in parts]}, blocks)["waveforms"]


def content_hash(array: AnyArray) -> str:
    """SHA-256 of type, shape and values; of a whole array of the cache, the hash of its key instead."""
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
        path = Path(str(array.filename))
        if ENTRY.fullmatch(path.parent.name):
            return f"{path.parent.name}/{path.name}"
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    for start in range(0, len(array), _ROWS_AT_ONCE):
        digest.update(take(array, slice(start, start + _ROWS_AT_ONCE)).data)
    return digest.hexdigest()
