"""FSDD v1.0.10, the Free Spoken Digit Dataset: recognised by its bytes, wherever it lies.

The dataset is 3,000 recordings `{digit}_{speaker}_{index}.wav`. Their git tree hash is pinned, so
a folder or an archive counts as FSDD only when every byte is right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

NAME = "FSDD v1.0.10"
TREE_HASH = "d04322e322a9f937f6f4f7c8546693755184df5b"
URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"
FILES = 3000

# The tag stores these speakers' files as executable, and git hashes that bit too. It is taken from
# the name, not from the disk, so that the hash depends on bytes alone.
_EXECUTABLE_SPEAKERS = ("nicolas", "theo")


# --- hash ----------------------------------------------------------------------------------------


def blob_hash(content: bytes) -> str:
    """The SHA-1 by which git names a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def tree_hash(blobs: Mapping[str, str]) -> str:
    """The SHA-1 by which git names a folder of recordings, given as file name -> blob hash."""
    tree = bytearray()
    for name, blob in sorted((name.encode(), bytes.fromhex(blob)) for name, blob in blobs.items()):
        tree += b"%s %s\0%s" % (_mode(name), name, blob)
    return hashlib.sha1(b"tree %d\0" % len(tree) + tree, usedforsecurity=False).hexdigest()


def _mode(name: bytes) -> bytes:
    speaker = name.decode().split("_")[1:2]
    return b"100755" if speaker and speaker[0] in _EXECUTABLE_SPEAKERS else b"100644"


def folder_hash(folder: Path) -> str:
    """The git tree hash of the WAV files in a folder; other files beside them do not count."""
    return tree_hash({path.name: blob_hash(path.read_bytes()) for path in wav_files(folder)})


def wav_files(folder: Path) -> list[Path]:
    """The WAV files that lie directly in a folder."""
    return [path for path in folder.iterdir() if path.suffix == ".wav" and not path.name.startswith(".")]


def recordings_folder(path: Path) -> Path:
    """Where the recordings of a checkout or of a plain folder of recordings lie."""
    inner = path / "recordings"
    return inner if inner.is_dir() else path
