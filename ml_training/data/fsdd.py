"""FSDD v1.0.10, the Free Spoken Digit Dataset: recognised by its bytes, wherever it lies.

The dataset is 3,000 recordings `{digit}_{speaker}_{index}.wav`. Their git tree hash is pinned, so
a folder, an archive or a download counts as FSDD only when every byte is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from lzma import LZMAError
from pathlib import Path

from digit_detector.errors import DataError, DownloadError, MissingExtraError
from ml_training.data.download import Progress, fetch

NAME = "FSDD v1.0.10"
TREE_HASH = "d04322e322a9f937f6f4f7c8546693755184df5b"
URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"

# The tag stores these speakers' files as executable, and git hashes that bit too. It is taken from
# the name, not from the disk, so that the hash depends on bytes alone.
_EXECUTABLE_SPEAKERS = ("nicolas", "theo")

# Bounds of an archive, several times what the real one holds.
_MAX_MEMBERS = 20_000
_MAX_FILE_BYTES = 4 << 20
_MAX_TOTAL_BYTES = 256 << 20
_MEMBER = re.compile(r"(?:.*/)?recordings/([0-9]_[0-9A-Za-z-]+_[0-9]+\.wav)")

_FOLDER = "fsdd-v1.0.10"  # in the cache
_PARTIAL = ".partial-"
_STALE_SECONDS = 24 * 3600


# --- hash ----------------------------------------------------------------------------------------


def blob_hash(content: bytes) -> str:
    """The SHA-1 by which git names a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def tree_hash(blobs: Mapping[str, str]) -> str:
    """The SHA-1 by which git names a folder of recordings, given as file name -> blob hash."""
    tree = bytearray()
    for name, blob in sorted((os.fsencode(name), bytes.fromhex(blob)) for name, blob in blobs.items()):
        tree += b"%s %s\0%s" % (_mode(name), name, blob)
    return hashlib.sha1(b"tree %d\0" % len(tree) + tree, usedforsecurity=False).hexdigest()


def _mode(name: bytes) -> bytes:
    speaker = os.fsdecode(name).split("_")[1:2]
    return b"100755" if speaker and speaker[0] in _EXECUTABLE_SPEAKERS else b"100644"


def content_hash(files: Mapping[str, bytes]) -> str:
    """The git tree hash of recordings in memory, file name -> bytes."""
    return tree_hash({name: blob_hash(content) for name, content in files.items()})


def folder_hash(folder: Path) -> str:
    """The git tree hash of the WAV files in a folder; other files beside them do not count."""
    try:
        return tree_hash({path.name: blob_hash(path.read_bytes()) for path in wav_files(folder)})
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error


# --- finding -------------------------------------------------------------------------------------


def chosen_path(data_dir: str | None) -> Path | None:
    """The place the user named, by `--data_dir` or else $DIGIT_DATA_DIR. DataError when there is nothing."""
    source, named = "--data_dir", data_dir
    if not named:
        source, named = "$DIGIT_DATA_DIR", os.environ.get("DIGIT_DATA_DIR")
    if not named:
        return None
    path = Path(os.path.expanduser(named))  # leaves an unknown ~name as it is
    if not path.exists():
        raise DataError(
            f"{source} is {path}, where nothing is: expected a folder or table of recordings, or an archive of {NAME}"
        )
    return path


def wav_files(folder: Path) -> list[Path]:
    """The WAV files that lie directly in a folder."""
    return [
        path for path in folder.iterdir() if path.suffix == ".wav" and not path.name.startswith(".") and path.is_file()
    ]


def recordings_folder(path: Path) -> Path:
    """Where the recordings of a checkout, or of a plain folder of recordings, lie."""
    inner = path / "recordings"
    return inner if inner.is_dir() else path


def cache_folder() -> Path:
    """Where downloads are kept for the user."""
    try:
        import pooch
    except ImportError:
        raise MissingExtraError("downloading recordings", "train") from None
    return Path(pooch.os_cache("streaming-digit-detector"))


def obtain(url: str | None, report: Callable[[str], None], progress: Progress | None = None) -> Path:
    """The folder of FSDD's recordings in the user's cache, downloaded when it is not there yet.

    `url` is the address of the archive, else $DIGIT_DATA_URL, else the public tag. Raises DownloadError.
    """
    cache = cache_folder()
    recordings = cache / _FOLDER / "recordings"
    if recordings.is_dir():
        if folder_hash(recordings) == TREE_HASH:
            return recordings
        report(f"the recordings in {recordings} are not {NAME} any more: downloading them again")
    return download(url or os.environ.get("DIGIT_DATA_URL") or URL, cache, report, progress, TREE_HASH)


# --- archives ------------------------------------------------------------------------------------


def read_archive(path: Path) -> dict[str, bytes]:
    """The recordings in a tar or zip archive: every */recordings/*.wav, file name -> bytes.

    Nothing is written, names that lead elsewhere are passed over, and size is bounded. Raises
    DataError when the archive is damaged, too large, or no archive.
    """
    try:
        members = _zip_members(path) if zipfile.is_zipfile(path) else _tar_members(path)
        files: dict[str, bytes] = {}
        total = 0
        for count, (name, size, read) in enumerate(members):
            total += size
            if count >= _MAX_MEMBERS or total > _MAX_TOTAL_BYTES:
                raise DataError(f"{path} unpacks to more than {NAME} holds: expected its archive")
            match = _MEMBER.fullmatch(name)
            if match and size <= _MAX_FILE_BYTES:
                files[match[1]] = read()
        return files
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError, OSError) as error:
        reason = " ".join(str(error).split())  # tarfile tells what each of its formats says, a line each
        raise DataError(f"{path} is cut off, damaged, or no tar or zip archive: {reason}") from error
    except (RuntimeError, NotImplementedError) as error:  # an encrypted zip, or an unknown compression
        raise DataError(f"{path} cannot be unpacked: {error}") from error


_Member = tuple[str, int, Callable[[], bytes]]  # name, size, how to read it


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            yield info.filename, info.file_size, lambda info=info: archive.read(info)  # type: ignore[misc]


def _tar_members(path: Path) -> Iterator[_Member]:
    with tarfile.open(path) as archive:
        for info in archive:
            stream = archive.extractfile(info) if info.isreg() else None
            if stream is not None:
                yield info.name, info.size, stream.read


# --- download ------------------------------------------------------------------------------------


def download(
    url: str,
    cache: Path,
    report: Callable[[str], None],
    progress: Progress | None = None,
    expected: str = TREE_HASH,
) -> Path:
    """Download FSDD's archive into `cache`, check it and return its folder of recordings.

    Everything happens in a temporary folder that takes its name only when the tree hash is
    `expected`, so that no failure and no Ctrl-C leaves anything behind. Raises DownloadError.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_stale(cache)
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=cache) as name:
            partial = Path(name)
            report(f"downloading {NAME} from {url}")
            fetch(url, partial / "archive", _MAX_TOTAL_BYTES, NAME, report, progress)
            try:
                files = read_archive(partial / "archive")
            except DataError as error:
                raise DownloadError(f"what {url} sent is of no use: {error}") from error
            found = content_hash(files)
            if found != expected:
                raise DownloadError(
                    f"what {url} sent is not {NAME}: its {len(files)} recordings have the tree hash {found}, "
                    f"expected {expected}"
                )
            recordings = partial / _FOLDER / "recordings"
            recordings.mkdir(parents=True)
            for file, content in files.items():
                (recordings / file).write_bytes(content)
            _put_in_place(partial, cache)
    except DownloadError as error:
        raise DownloadError(
            f"{error}. Nothing was kept. Check the connection and the address (--data_url, $DIGIT_DATA_URL), or point "
            f"--data_dir at a copy of {NAME}"
        ) from error
    except OSError as error:
        raise DownloadError(
            f"cannot keep {NAME} in {cache}: {error.strerror or error}; free some space there"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            cache.rmdir()  # only succeeds when it is empty
    report(f"{NAME}: {len(files)} recordings, complete and unaltered, kept in {cache / _FOLDER}")
    return cache / _FOLDER / "recordings"


def _put_in_place(partial: Path, cache: Path) -> None:
    if (cache / _FOLDER).exists():  # altered, or just downloaded by another process
        (cache / _FOLDER).rename(partial / "old")
    (partial / _FOLDER).rename(cache / _FOLDER)


def _remove_stale(cache: Path) -> None:
    """Remove what a download left that was killed or lost its power."""
    for path in cache.glob(f"{_PARTIAL}*"):
        if time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
