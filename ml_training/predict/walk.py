"""Every recording in and below some folders, in one order that does not depend on the file system.

Nothing grows with the number of files: of each folder on the way down, at most CHUNK names are held at a time.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from digit_detector.audio import AUDIO_SUFFIXES
from digit_detector.errors import BatchError

CHUNK = 1 << 15  # names of one folder; a larger folder is listed anew for each so many
FOLDER, FILE, LINK, SPECIAL = "folder", "file", "link", "special"  # special: a pipe, a device
ELSEWHERE = "elsewhere"  # no file of this machine
WALKED = "walked"  # a link to a folder that is come by without it

_Identity = tuple[int, int]  # device and inode


class Found(NamedTuple):
    """A recording, or what stands in its place and cannot be one."""

    name: str  # what was named, and the path below it
    fault: str | None = None  # why there is nothing to decode


class _Entry(NamedTuple):
    name: str
    kind: str


def place(name: str) -> list[str]:
    """Where a name stands in the order: by its parts, so that a folder's files stay together."""
    return name.split(os.sep)


def kinds_of(named: tuple[str, ...], before: Mapping[str, str] | None = None) -> dict[str, str]:
    """FOLDER or FILE for each of `named`, in the order of the walk.

    Raises BatchError for what is not there, but for files that were when the walk began, as `before` tells.
    """
    kinds: dict[str, str] = {}
    for name in named:
        clean = name.replace(os.altsep, os.sep) if os.altsep else name
        clean = clean.rstrip(os.sep) or os.sep[: len(clean)]
        try:
            kinds[clean] = FOLDER if stat.S_ISDIR(os.stat(clean).st_mode) else FILE
        except (OSError, ValueError) as error:
            if before and before.get(clean) == FILE:
                kinds[clean] = FILE
                continue
            reason = getattr(error, "strerror", None) or error
            raise BatchError(f"{name!r} is no file and no folder ({reason}): name what is there") from error
    folders = [name for name, kind in kinds.items() if kind == FOLDER]
    for spelled in (str, os.path.realpath):  # what one name has in common with another, and what lies behind both
        walked = {spelled(name): name for name in folders}
        for name in kinds:
            if other := next((walked[up] for up in _upwards(spelled(name)) if walked.get(up, name) != name), None):
                raise BatchError(f"{name!r} lies in {other!r}, which is named too: name it once")
    return {name: kinds[name] for name in sorted(kinds, key=place)}


class Walk:
    """The recordings of `named`, as `kinds_of` gives them; a folder's are those whose names end like a recording's.

    Files and folders whose names begin with a dot are left out. Links to files are files. A link to a folder is
    followed unless that folder, or one above it, is walked anyway: nobody walks in circles, and none twice. A folder
    that cannot be listed is found with a fault.
    """

    def __init__(self, named: Mapping[str, str]) -> None:
        self.named = named
        self.left_out = 0  # other files that were come by
        self._walked = {_identity(name) for name, kind in named.items() if kind == FOLDER}

    def __iter__(self) -> Iterator[Found]:
        for name, kind in self.named.items():
            if kind == FILE:
                yield Found(name)
            else:
                yield from self._folder(name)

    def _folder(self, top: str) -> Iterator[Found]:
        """A loop in the place of a recursion: folders may lie deeper than Python may call."""
        found = self._listed(top)
        if isinstance(found, Found):
            yield found
            return
        folders, entries = [top], [found]
        while folders:
            entry = next(entries[-1], None)
            if entry is None:
                folders.pop()
                entries.pop()
                continue
            name = os.path.join(folders[-1], entry.name)
            kind = self._resolved(name) if entry.kind == LINK else entry.kind
            if kind == FOLDER and (entry.kind == LINK or _identity(name) not in self._walked):
                inner = self._listed(name)
                if isinstance(inner, Found):
                    yield inner
                else:
                    folders.append(name)
                    entries.append(inner)
            elif kind == FILE and _sounds(name):
                yield Found(name)
            elif kind == SPECIAL and _sounds(name):
                yield Found(name, f"{name} is a pipe or a device: expected an audio file")
            elif kind in (FILE, SPECIAL):
                self.left_out += 1

    def _listed(self, folder: str) -> Iterator[_Entry] | Found:
        """The entries of a folder, or why there are none."""
        try:
            first = self._names_after("", folder)
        except OSError as error:
            return Found(folder, f"cannot read the folder {folder}: {error.strerror or error}")
        return self._entries(folder, first)

    def _entries(self, folder: str, chunk: list[_Entry]) -> Iterator[_Entry]:
        while chunk:
            yield from chunk
            if len(chunk) < CHUNK:
                return
            try:
                chunk = self._names_after(chunk[-1].name, folder)
            except OSError as error:
                raise BatchError(
                    f"the folder {folder} could be read before and cannot any more: {error.strerror or error}"
                ) from error

    def _names_after(self, last: str, folder: str) -> list[_Entry]:
        """The next CHUNK names of a folder, sorted, of those that matter. Raises OSError."""
        with os.scandir(folder) as entries:
            return heapq.nsmallest(CHUNK, self._that_matter(entries, last))

    def _that_matter(self, entries: Iterator[os.DirEntry[str]], last: str) -> Iterator[_Entry]:
        for entry in entries:
            if entry.name <= last:
                continue
            if entry.name.startswith("."):  # what programs keep for themselves, and macOS beside each recording
                continue
            if entry.is_symlink():
                yield _Entry(entry.name, LINK)
            elif entry.is_dir(follow_symlinks=False):
                yield _Entry(entry.name, FOLDER)
            elif _sounds(entry.name):
                yield _Entry(entry.name, FILE if entry.is_file(follow_symlinks=False) else SPECIAL)
            elif not last:
                self.left_out += 1

    def _resolved(self, link: str) -> str:
        """What a link leads to: FOLDER if it is to be followed."""
        try:
            mode = os.stat(link).st_mode
        except OSError:  # to nothing, or to itself: who opens it says so
            return FILE
        if not stat.S_ISDIR(mode):
            return FILE if stat.S_ISREG(mode) else SPECIAL
        real = Path(os.path.realpath(link))
        for folder in (real, *real.parents):
            if _identity(folder) in self._walked:
                return WALKED
            if folder.name.startswith("."):  # nobody comes by what is hidden, so the link is the only way there
                break
        self._walked.add(_identity(real))
        return FOLDER


def _upwards(path: str) -> Iterator[str]:
    """A path, and the folders above it."""
    while True:
        yield path
        above = os.path.dirname(path)
        if above == path or not above:
            return
        path = above


def _sounds(name: str) -> bool:
    return name.lower().endswith(AUDIO_SUFFIXES)


def _identity(folder: str | Path) -> _Identity | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino
