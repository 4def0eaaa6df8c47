"""Recordings decoded ahead of the model, by threads: libsndfile, soxr and onnxruntime let Python go on meanwhile."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from digit_detector.audio import NUM_SAMPLES, Floats, load_audio
from digit_detector.errors import DigitError
from ml_training.predict.walk import Found

AHEAD_BYTES = 16 << 20  # of clips that are decoded, or being decoded, while the model is busy
CLIP_BYTES = NUM_SAMPLES * np.dtype(np.float32).itemsize
STRETCH = 16  # files that a decoder takes at a time, or fewer where many decoders share those bytes


class Decoded(NamedTuple):
    """A file's second, float32 (8000,), with memory of its own, or why there is none."""

    name: str
    clip: Floats | None = None
    error: str | None = None
    again: bool = False  # there was no memory, with others being decoded beside it


def decoded(found: Iterator[Found], decoders: int) -> Generator[Decoded]:
    """Decode the files in order, at most AHEAD_BYTES of clips ahead of the consumer."""
    clips = AHEAD_BYTES // CLIP_BYTES
    stretch_size = max(1, min(STRETCH, clips // (2 * decoders)))
    pool = ThreadPoolExecutor(decoders, "decoder")
    waiting: deque[Future[list[Decoded]]] = deque()
    try:
        while True:
            while len(waiting) < clips // stretch_size and (stretch := list(islice(found, stretch_size))):
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
    if _is_pipe(found.name):  # reading one blocks, and a thread cannot be interrupted
        return Decoded(found.name, error=f"{found.name} is a pipe: give it alone, without --out")
    try:
        clip = load_audio(found.name)
        return Decoded(found.name, clip if clip.base is None else clip.copy())  # a view keeps all that it looks at
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
