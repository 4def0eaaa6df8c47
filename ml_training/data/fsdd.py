"""FSDD v1.0.10, the Free Spoken Digit Dataset: 3,000 recordings `{digit}_{speaker}_{index}.wav`.

Their git tree hash is pinned, so a folder, an archive or a download counts as FSDD only if every byte is right,
whatever the archive's own bytes (GitHub recompresses tags).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from lzma import LZMAError
from pathlib import Path

from digit_detector.errors import DataError, DownloadError, MissingExtraError

NAME = "FSDD v1.0.10"
TREE_HASH = "d04322e322a9f937f6f4f7c8546693755184df5b"
URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"
CONNECT_SECONDS, READ_SECONDS = 4.0, 20.0  # the second between two pieces of the answer

Progress = Callable[[int, int], None]  # bytes so far, bytes in all or 0 where the server does not say

# The tag stores these speakers' files as executable, and git hashes that bit too. It is taken from the name, not from
# the disk, so that the hash depends on bytes alone.
_EXECUTABLE_SPEAKERS = ("nicolas", "theo")
# Bounds of an archive, several times what the real one holds.
_MAX_MEMBERS, _MAX_FILE_BYTES, _MAX_TOTAL_BYTES = 20_000, 4 << 20, 256 << 20
_MEMBER = re.compile(r"(?:.*/)?recordings/([0-9]_[0-9A-Za-z-]+_[0-9]+\.wav)")
_FOLDER, _PARTIAL = "fsdd-v1.0.10", ".partial-"  # in the cache
_STALE_SECONDS = 24 * 3600


def blob_hash(content: bytes) -> str:
    """git's SHA-1 of a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def tree_hash(blobs: Mapping[str, str]) -> str:
    """git's SHA-1 of a folder of recordings, given as file name -> blob hash."""
    tree = bytearray()
    for name, blob in sorted((os.fsencode(name), bytes.fromhex(blob)) for name, blob in blobs.items()):
        executable = os.fsdecode(name).split("_")[1:2] in [[speaker] for speaker in _EXECUTABLE_SPEAKERS]
        tree += b"%s %s\0%s" % (b"100755" if executable else b"100644", name, blob)
    return hashlib.sha1(b"tree %d\0" % len(tree) + tree, usedforsecurity=False).hexdigest()


def content_hash(files: Mapping[str, bytes]) -> str:
    """The git tree hash of recordings in memory, file name -> bytes."""
    return tree_hash({name: blob_hash(content) for name, content in files.items()})


def folder_hash(folder: Path) -> str:
    """The git tree hash of the WAV files in a folder or in its recordings/; other files beside them do not count."""
    try:
        paths = [path for path in recordings_folder(folder).iterdir() if path.suffix == ".wav" and path.is_file()]
        return tree_hash({p.name: blob_hash(p.read_bytes()) for p in paths if not p.name.startswith(".")})
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error


# --- finding -------------------------------------------------------------------------------------


def chosen_path(data_dir: str | None) -> Path | None:
    """The place that `--data_dir` or else $DIGIT_DATA_DIR names. Raises DataError where it does not exist."""
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


def recordings_folder(path: Path) -> Path:
    """Where the recordings of a checkout, or of a plain folder of recordings, lie."""
    inner = path / "recordings"
    return inner if inner.is_dir() else path


def cache_folder() -> Path:
    """The user's folder for downloads."""
    try:
        import pooch
    except ImportError:
        raise MissingExtraError("downloading recordings", "train") from None
    return Path(pooch.os_cache("streaming-digit-detector"))


def obtain(url: str | None, report: Callable[[str], None], progress: Progress | None = None) -> Path:
    """The folder of FSDD's recordings in the user's cache, downloaded if it is not there yet.

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
    """The recordings in a tar or zip archive: every */recordings/*.wav, file name -> bytes; nothing is written.

    Raises DataError for an archive that is damaged or unpacks to too much, and for any other file.
    """
    try:
        files: dict[str, bytes] = {}
        total = 0
        for count, (name, size, read) in enumerate(_members(path)):
            total += size
            if count >= _MAX_MEMBERS or total > _MAX_TOTAL_BYTES:
                raise DataError(f"{path} unpacks to more than {NAME} holds: expected its archive")
            match = _MEMBER.fullmatch(name)
            if match and size <= _MAX_FILE_BYTES:
                files[match[1]] = read()
        return files
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError, OSError) as error:
        reason = " ".join(str(error).split())  # tarfile gives a line for each of its formats
        raise DataError(f"{path} is cut off, damaged, or no tar or zip archive: {reason}") from error
    except (RuntimeError, NotImplementedError) as error:  # an encrypted zip, or an unknown compression
        raise DataError(f"{path} cannot be unpacked: {error}") from error


def _members(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """Name, size and reader of the files in an archive."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                yield info.filename, info.file_size, lambda info=info: archive.read(info)  # type: ignore[misc]
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isreg() and (stream := tar.extractfile(member)) is not None:
                yield member.name, member.size, stream.read


# --- download ------------------------------------------------------------------------------------


def download(
    url: str, cache: Path, report: Callable[[str], None], progress: Progress | None = None, expected: str = TREE_HASH
) -> Path:
    """Download FSDD's archive into `cache`, check its tree hash and return its folder of recordings.

    A temporary folder takes its name at the end, so no failure and no Ctrl-C leaves anything behind. Raises
    DownloadError.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for path in cache.glob(f"{_PARTIAL}*"):  # of a killed download
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=cache) as name:
            partial = Path(name)
            report(f"downloading {NAME} from {url}")
            _fetch(url, partial / "archive", progress)
            try:
                files = read_archive(partial / "archive")
            except DataError as error:
                raise DownloadError(f"the file from {url} cannot be used: {error}") from error
            if (found := content_hash(files)) != expected:
                raise DownloadError(
                    f"the file from {url} is not {NAME}: its {len(files)} recordings have the tree hash {found}, "
                    f"expected {expected}"
                )
            recordings = partial / _FOLDER / "recordings"
            recordings.mkdir(parents=True)
            for file, content in files.items():
                (recordings / file).write_bytes(content)
            if (cache / _FOLDER).exists():  # altered, or just downloaded by another process
                (cache / _FOLDER).rename(partial / "old")
            (partial / _FOLDER).rename(cache / _FOLDER)
    except DownloadError as error:
        raise DownloadError(
            f"{error}. Nothing was kept. Check the connection and the address (--data_url, $DIGIT_DATA_URL), or point "
            f"--data_dir at a copy of {NAME}"
        ) from error
    except OSError as error:
        raise DownloadError(f"cannot keep {NAME} in {cache}: {error.strerror or error}; free some space") from error
    finally:
        with contextlib.suppress(OSError):
            cache.rmdir()  # only succeeds when it is empty
    report(f"{NAME}: {len(files)} recordings, complete and unaltered, kept in {cache / _FOLDER}")
    return cache / _FOLDER / "recordings"


def _fetch(url: str, path: Path, progress: Progress | None) -> None:
    """Download `url` to the file `path`. Raises DownloadError, OSError."""
    try:
        import requests
    except ImportError:
        raise MissingExtraError("downloading recordings", "train") from None
    done = total = 0
    try:
        with (
            contextlib.nullcontext(progress) if progress else _progress_bar() as show,
            requests.get(url, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as answer,
            path.open("wb") as file,
        ):
            answer.raise_for_status()
            total = int(answer.headers.get("content-length", 0))
            for chunk in answer.iter_content(1 << 16):
                done += file.write(chunk)
                if done > _MAX_TOTAL_BYTES:
                    raise DownloadError(f"{url} sends more than {_MAX_TOTAL_BYTES >> 20} MB: that is not {NAME}")
                show(done, total)
    except requests.HTTPError as error:
        status = str(error) if error.response is None else f"{error.response.status_code} {error.response.reason}"
        raise DownloadError(f"{url} was refused: {status}") from error
    except requests.RequestException as error:
        if done:
            size = f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
            raise DownloadError(f"{url} was cut off after {size}") from error
        reason = str(error).rsplit(": ", 1)[-1].rstrip("')\"")  # the innermost one
        reason += ")" * (reason.count("(") - reason.count(")"))
        raise DownloadError(f"{url} cannot be reached: {reason}") from error
    except ValueError as error:
        raise DownloadError(f"{url} answers with a header that makes no sense: {error}") from error


@contextlib.contextmanager
def _progress_bar() -> Iterator[Progress]:
    """A bar on a terminal, otherwise nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(NAME, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
