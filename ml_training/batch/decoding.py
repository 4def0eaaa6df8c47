"""Recordings decoded ahead of the model, by threads: libsndfile, soxr and onnxruntime let Python go on meanwhile."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from ml_training.audio import Floats, load_audio
from ml_training.batch.walk import Found
from ml_training.errors import DigitError

STRETCH = 16  # files that a decoder takes at a time
AHEAD = 6  # stretches for each decoder that are decoded or being decoded while the model is busy; a clip is 32 kB
LONG = 1 << 20  # bytes; of files above, one is decoded at a time: a folder of long ones keeps others waiting

_long = threading.Lock()


class Decoded(NamedTuple):
    """A file's second, float32 (8000,), or why there is none."""

    name: str
    clip: Floats | None = None
    error: str | None = None
    again: bool = False  # there was no memory, with others being decoded beside it


def decoded(found: Iterator[Found], decoders: int) -> Generator[Decoded]:
    """What is found, decoded, in its order; a bounded number of files ahead of whoever takes them."""
    pool = ThreadPoolExecutor(decoders, "decoder")
    waiting: deque[Future[list[Decoded]]] = deque()
    try:
        while True:
            while len(waiting) < decoders * AHEAD and (stretch := list(islice(found, STRETCH))):
                waiting.append(pool.submit(_decode_all, stretch))
            if not waiting:
                return
            for one in waiting.popleft().result():
                yield _decode(Found(one.name), last_try=True) if one.again else one
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _decode_all(stretch: Sequence[Found]) -> list[Decoded]:
    return [_decode(found) for found in stretch]


def _decode(found: Found, last_try: bool = False) -> Decoded:
    if found.fault is not None:
        return Decoded(found.name, error=found.fault)
    if _is_pipe(found.name):  # whoever waits for one cannot be interrupted in a thread
        return Decoded(found.name, error=f"{found.name} is a pipe: give it alone, without --out")
    try:
        with _long if _is_long(found.name) else contextlib.nullcontext():
            return Decoded(found.name, load_audio(found.name))
    except DigitError as error:
        return Decoded(found.name, error=str(error))
    except MemoryError:
        error_line = f"{found.name} takes more memory to decode than there is"
        return Decoded(found.name, error=error_line, again=not last_try)
    except Exception as error:  # of a million files one must not end the work for the others
        told = f"{type(error).__name__}: {error}"
        return Decoded(found.name, error=f"{found.name} made the decoder fail ({told}): please report it")


def _is_pipe(name: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(name).st_mode)
    except (OSError, ValueError):
        return False


def _is_long(name: str) -> bool:
    try:
        return os.stat(name).st_size > LONG
    except OSError:
        return False
