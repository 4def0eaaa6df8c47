"""Recordings as hashes of their bytes and as samples; the samples come from the cache in use."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from digit_detector import audio, audio_files, audio_headers, audio_streams
from digit_detector.audio import NUM_SAMPLES, decode_sound, pad_or_trim
from digit_detector.errors import AudioError, DataError
from ml_training.data import feature_cache, fsdd
from ml_training.data.feature_cache import Block, Key
from ml_training.results import Floats, Ints, SkippedClip

MAX_CLIP_BYTES = 64 << 20  # several recordings are in memory at once
_AT_ONCE = 256  # clips of a block


@dataclass(frozen=True)
class ClipFile:
    """A file to decode. `fault` says why its name already rules it out."""

    file: str
    read: Callable[[], bytes]
    digit: int = -1
    speaker: str = ""
    index: int = -1
    fault: str = ""
    part: str = ""  # of corpus.PARTS, from a table
    annotation: str = ""  # what the data hash takes from a table's row


@dataclass(frozen=True)
class Hashes:
    """Hashes of a file's bytes; of one that cannot be read, "" and those of no bytes."""

    sha256: str
    blob: str  # git's
    unreadable: str = ""  # why


@dataclass(frozen=True)
class Decoded:
    """The N good ones of some files."""

    waveforms: Floats  # (N, 8000)
    lengths: Ints  # (N,)
    kept: Ints  # (N,) their positions
    skipped: tuple[SkippedClip, ...]


def read_clip(path: Path) -> bytes:
    """The bytes of a recording. Raises OSError, also for what is no regular file or too large to be one digit."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if status.st_size > MAX_CLIP_BYTES:
        raise OSError(errno.EFBIG, f"has {status.st_size} bytes: expected at most {MAX_CLIP_BYTES} for one digit")
    return path.read_bytes()


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # decoding and hashing release Python's lock


def hash_files(clips: Sequence[ClipFile]) -> list[Hashes]:
    """The hashes of every file, in their order."""
    with _threads() as pool:
        return list(pool.map(_hash_file, clips))


def _hash_file(clip: ClipFile) -> Hashes:
    try:
        content = clip.read()
    except OSError as error:
        return Hashes("", fsdd.blob_hash(b""), f"cannot be read: {error.strerror or error}")
    return Hashes(hashlib.sha256(content).hexdigest(), fsdd.blob_hash(content))


def decode_files(clips: Sequence[ClipFile], hashes: Sequence[Hashes]) -> Decoded:
    """Every file that can be decoded, cut to one second; memory-mapped from the cache in use.

    Raises DataError for a file that changes meanwhile.
    """

    def key() -> Key:
        rows = [(c.file, found.sha256, found.unreadable, c.fault) for c, found in zip(clips, hashes, strict=True)]
        return {"files": hashlib.sha256(json.dumps(rows).encode()).hexdigest(), **_decoder_versions()}

    arrays = feature_cache.get_or_compute("recordings", key, lambda: _blocks(clips, hashes))
    skipped = tuple(SkippedClip(file, reason) for file, reason in feature_cache.decode_json(arrays["skipped"]))
    return Decoded(arrays["waveforms"], np.array(arrays["lengths"]), np.array(arrays["kept"]), skipped)


def _decoder_versions() -> dict[str, str]:
    """What decides the samples besides the bytes."""
    import soundfile

    installed = {found.name.lower(): found.version for found in metadata.distributions() if found.name}
    versions = {name: installed.get(name, "") for name in ("numpy", "soundfile", "soxr", "av")}
    code = feature_cache.source_hash(audio, audio_files, audio_headers, audio_streams, __name__)
    return {**versions, "libsndfile": soundfile.__libsndfile_version__, "code": code}


def _blocks(clips: Sequence[ClipFile], hashes: Sequence[Hashes]) -> Iterator[Block]:
    skipped: list[tuple[str, str]] = []
    with _threads() as pool:
        for start in range(0, len(clips), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            kept, good = [], []
            for row, (samples, fault) in enumerate(pool.map(_decode, clips[part], hashes[part]), start):
                if samples is None:
                    skipped.append((clips[row].file, fault))
                else:
                    kept.append(row)
                    good.append(samples)
            yield _block(kept, good, feature_cache.encode_json([])[:0])
    yield _block([], [], feature_cache.encode_json(skipped))


def _block(kept: list[int], good: list[Floats], skipped: feature_cache.AnyArray) -> Block:
    return {
        "waveforms": np.array([pad_or_trim(samples) for samples in good], np.float32).reshape(-1, NUM_SAMPLES),
        "lengths": np.array([min(len(samples), NUM_SAMPLES) for samples in good], np.int64),
        "kept": np.array(kept, np.int64),
        "skipped": skipped,
    }


def _decode(clip: ClipFile, hashes: Hashes) -> tuple[Floats | None, str]:
    """The samples or None, and why there are none."""
    if hashes.unreadable or clip.fault:
        return None, hashes.unreadable or clip.fault
    try:
        content = clip.read()
    except OSError as error:
        raise DataError(f"{clip.file} cannot be read any more: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != hashes.sha256:
        raise DataError(f"{clip.file} changed while it was read: start again when no other program writes there")
    if len(content) > MAX_CLIP_BYTES:
        return None, f"has {len(content)} bytes: expected at most {MAX_CLIP_BYTES} for one digit"
    try:
        return decode_sound(content), ""
    except AudioError as error:
        return None, str(error)
