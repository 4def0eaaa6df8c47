"""Recordings as hashes and as samples, both out of the cache in use.

What a file holds is known by its bytes. They are read again only where the system says that the file may have changed
since: another size, inode or time of change. A file changed within the resolution of these times is never trusted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
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

MAX_CLIP_BYTES = 64 << 20  # no recording of a digit is larger; several are in memory at once
_AT_ONCE = 256  # clips of a block
_RACY = 2.0  # seconds that a file has to be old: no file system's times are coarser


@dataclass(frozen=True)
class ClipFile:
    """A file to decode. `fault` says why its name already rules it out."""

    file: str
    read: Callable[[], bytes]
    digit: int = -1
    speaker: str = ""
    index: int = -1
    fault: str = ""
    path: Path | None = None  # where it lies, unless in an archive
    part: str = ""  # of corpus.PARTS, where a table says so
    annotation: str = ""  # what the data hash takes of a table's row; empty where the name says it all


@dataclass(frozen=True)
class Hashes:
    """What names the bytes of a file; of one that cannot be read, "" and those of no bytes."""

    sha256: str
    blob: str  # as git does
    unreadable: str = ""  # why


@dataclass(frozen=True)
class Decoded:
    """The good ones of some files."""

    waveforms: Floats  # (N, 8000)
    lengths: Ints  # (N,)
    kept: Ints  # (N,) which files they are
    skipped: tuple[SkippedClip, ...]


def read_clip(path: Path) -> bytes:
    """The bytes of a recording. Raises OSError, also for what is no regular file or too large to be one digit."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if status.st_size > MAX_CLIP_BYTES:
        raise OSError(errno.EFBIG, f"has {status.st_size} bytes: expected at most {MAX_CLIP_BYTES} for one digit")
    return path.read_bytes()


def threads() -> ThreadPoolExecutor:
    """Decoding and hashing leave Python's lock."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


# --- hashes --------------------------------------------------------------------------------------


def hashes_of(clips: Sequence[ClipFile]) -> list[Hashes]:
    """Of every file, in their order; from the cache where none of them has changed since."""
    in_use = feature_cache.current_cache()
    listing = _listing(clips) if in_use is not None else None
    if in_use is None or listing is None:
        return _hashed(clips)
    key = {"listing": listing}
    if (stored := in_use.find("index", key)) is not None:
        return [Hashes(*row) for row in feature_cache.decode_json(stored["hashes"])]
    found = _hashed(clips)
    if _listing(clips) == listing and not any(hashes.unreadable for hashes in found):
        rows = [(hashes.sha256, hashes.blob) for hashes in found]
        in_use.store("index", key, [{"hashes": feature_cache.encode_json(rows)}])
    return found


def wav_tree_hash(folder: Path) -> str:
    """The git tree hash of the WAV files in a folder, as fsdd.folder_hash finds it. Raises DataError."""
    try:
        paths = sorted(fsdd.wav_files(folder))
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error
    hashes = hashes_of([ClipFile(path.name, path.read_bytes, path=path) for path in paths])
    for path, found in zip(paths, hashes, strict=True):
        if found.unreadable:
            raise DataError(f"cannot read {path}: {found.unreadable}")
    return fsdd.tree_hash({path.name: found.blob for path, found in zip(paths, hashes, strict=True)})


def _listing(clips: Sequence[ClipFile]) -> str | None:
    """SHA-256 of where files lie and what the system says of them; None where it says too little to rely on."""
    digest, now = hashlib.sha256(), time.time()
    for clip in clips:
        if clip.path is None:
            return None
        try:
            status = os.stat(clip.path)
        except OSError:
            return None
        if now - max(status.st_mtime, status.st_ctime) < _RACY:
            return None
        told = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        digest.update(os.fsencode(f"{clip.path.absolute()}\0{told}\n"))
    return digest.hexdigest()


def _hashed(clips: Sequence[ClipFile]) -> list[Hashes]:
    with threads() as pool:
        return list(pool.map(_hashes, clips))


def _hashes(clip: ClipFile) -> Hashes:
    try:
        content = clip.read()
    except OSError as error:
        return Hashes("", fsdd.blob_hash(b""), f"cannot be read: {error.strerror or error}")
    return _named(content)


def _named(content: bytes) -> Hashes:
    return Hashes(hashlib.sha256(content).hexdigest(), fsdd.blob_hash(content))


# --- samples -------------------------------------------------------------------------------------


def decoded(clips: Sequence[ClipFile], hashes: Sequence[Hashes]) -> Decoded:
    """Every file that can be decoded, cut to one second.

    From the cache the samples are memory-mapped. Raises DataError for a file that changes meanwhile.
    """

    def key() -> Key:
        rows = [
            (clip.file, found.sha256, found.unreadable, clip.fault) for clip, found in zip(clips, hashes, strict=True)
        ]
        return {"files": hashlib.sha256(json.dumps(rows).encode()).hexdigest(), "clips": len(clips), **_decoder()}

    arrays = feature_cache.get_or_compute("recordings", key, lambda: _blocks(clips, hashes), len(clips))
    skipped = tuple(SkippedClip(file, reason) for file, reason in feature_cache.decode_json(arrays["skipped"]))
    return Decoded(arrays["waveforms"], np.array(arrays["lengths"]), np.array(arrays["kept"]), skipped)


def _decoder() -> dict[str, str]:
    """What decides the samples besides the bytes."""
    versions = {name: metadata.version(name) for name in ("numpy", "soundfile", "soxr")}
    try:
        versions["av"] = metadata.version("av")
    except metadata.PackageNotFoundError:
        versions["av"] = ""
    import soundfile

    return {
        **versions,
        "libsndfile": soundfile.__libsndfile_version__,
        "code": feature_cache.source_hash(audio, audio_files, audio_headers, audio_streams, __name__),
    }


def _blocks(clips: Sequence[ClipFile], hashes: Sequence[Hashes]) -> Iterator[Block]:
    skipped: list[tuple[str, str]] = []
    nothing = np.zeros((0, NUM_SAMPLES), dtype=np.float32)
    none = np.zeros(0, dtype=np.int64)
    with threads() as pool:
        for block in _in_blocks(list(zip(range(len(clips)), clips, hashes, strict=True))):
            found = pool.map(lambda row: _decode(row[1], row[2]), block)
            good: list[tuple[int, Floats]] = []
            for (row, clip, _), (samples, fault) in zip(block, found, strict=True):
                if samples is None:
                    skipped.append((clip.file, fault))
                else:
                    good.append((row, samples))
            waveforms = np.stack([pad_or_trim(samples) for _, samples in good]) if good else nothing
            lengths = np.array([min(len(samples), NUM_SAMPLES) for _, samples in good], dtype=np.int64)
            kept = np.array([row for row, _ in good], dtype=np.int64)
            yield {
                "waveforms": waveforms,
                "lengths": lengths,
                "kept": kept,
                "skipped": feature_cache.encode_json([])[:0],
            }
    yield {"waveforms": nothing, "lengths": none, "kept": none, "skipped": feature_cache.encode_json(skipped)}


def _in_blocks(rows: list[tuple[int, ClipFile, Hashes]]) -> Iterator[list[tuple[int, ClipFile, Hashes]]]:
    for start in range(0, len(rows), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]


def _decode(clip: ClipFile, hashes: Hashes) -> tuple[Floats | None, str]:
    """The samples or None, and what is wrong with it."""
    if hashes.unreadable:
        return None, hashes.unreadable
    if clip.fault:
        return None, clip.fault
    try:
        content = clip.read()
    except OSError as error:
        raise DataError(
            f"{clip.file} could be read a moment ago and cannot be now: {error.strerror or error}"
        ) from error
    if hashlib.sha256(content).hexdigest() != hashes.sha256:
        raise DataError(f"{clip.file} changed while it was read: start again when nobody writes there")
    if len(content) > MAX_CLIP_BYTES:
        return None, f"has {len(content)} bytes: expected at most {MAX_CLIP_BYTES} for one digit"
    try:
        return decode_sound(content), ""
    except AudioError as error:
        return None, str(error)
