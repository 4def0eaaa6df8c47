"""Recordings of files and folders predicted into a table, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from digit_detector.audio import AUDIO_SUFFIXES
from digit_detector.classifier import DigitClassifier
from digit_detector.cli.live_line import LiveLine
from digit_detector.cli.signals import StopSignals
from digit_detector.cli.text import escape_controls
from digit_detector.errors import BatchError, Interrupted
from digit_detector.files import sha256_of
from ml_training.predict.batching import Report
from ml_training.predict.resume import ResumableTable
from ml_training.predict.tables import Recording, sort_key, table_for

LIVE_SECONDS, LINE_SECONDS = 0.2, 10.0  # between two progress lines, on a terminal and elsewhere

Predict = Callable[[Iterator[Recording], Report], Iterator[list[Recording]]]


class Listing:
    """The recordings in and below `named`, in the order of their names' parts.

    In a folder these are the files whose names end like a recording's; hidden files and folders are left out. Links
    are followed, each folder is listed once. One that cannot be read is a Recording with an error. The names of one
    folder are held in memory. Raises BatchError for names that do not exist or overlap.
    """

    def __init__(self, named: Iterable[str]) -> None:
        self.kinds: dict[str, str] = {}
        self.other_files = 0
        self._seen: set[tuple[int, int]] = set()  # device and inode of folders
        for name in sorted((name.rstrip(os.sep) or name[:1] for name in named), key=sort_key):
            try:
                mode = os.stat(name).st_mode
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise BatchError(f"{name!r} is no file and no folder ({reason}): name one that exists") from error
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise BatchError(f"{name!r} is a pipe or a device: predict it alone, without --out")
            self.kinds[name] = "folder" if stat.S_ISDIR(mode) else "file"
        folders = {Path(os.path.realpath(name)): name for name, kind in self.kinds.items() if kind == "folder"}
        for name in self.kinds:
            for parent in Path(os.path.realpath(name)).parents:
                if parent in folders:
                    raise BatchError(f"{name!r} lies in {folders[parent]!r}, which is named too: name it once")

    def __iter__(self) -> Iterator[Recording]:
        waiting = [(name, kind == "folder") for name, kind in reversed(self.kinds.items())]
        while waiting:
            name, is_folder = waiting.pop()
            if not is_folder:
                yield Recording(name)
                continue
            try:
                waiting += sorted(self._entries(name), key=lambda entry: sort_key(entry[0]), reverse=True)
            except OSError as error:
                yield Recording(name, error=f"cannot read the folder {name}: {error.strerror or error}")

    def _entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Recordings and folders in a folder, and whether each is a folder. Raises OSError."""
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in self._seen:
            return
        self._seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                is_link = entry.is_symlink()
                if entry.name.startswith("."):  # also what macOS keeps beside each recording
                    continue
                if os.path.isdir(entry.path) if is_link else entry.is_dir():
                    yield entry.path, True
                elif entry.name.lower().endswith(AUDIO_SUFFIXES) and (is_link or entry.is_file()):  # no pipe
                    yield entry.path, False
                else:
                    self.other_files += 1


def predict_folder(
    classifier: DigitClassifier, answered_by: str, listing: Listing, out: Path, predict: Predict, resume: bool = False,
    overwrite: bool = False,
) -> int:  # fmt: skip
    """Write a row for each recording of `listing` into a table, and print what it holds.

    Returns the exit code, 1 where a file has no answer. Ctrl-C and SIGTERM end it behind a batch with Interrupted.
    Raises BatchError for a table that cannot be written or resumed.
    """
    format_ = table_for(out, str(classifier.model_file))
    if out.exists() and not out.is_file():
        raise BatchError(f"{out} is a folder or a device: expected the name of a table to write")
    is_relative = not all(map(os.path.isabs, listing.kinds))
    run = {
        "named": listing.kinds, "working_folder": os.getcwd() if is_relative else None,
        "pipeline": classifier.metadata["pipeline"],
        "model": sha256_of(classifier.model_file),
    }  # fmt: skip
    progress = Progress()
    with contextlib.closing(ResumableTable(out, format_)) as table, StopSignals("these files") as signals:
        is_resumed = table.begin(run, resume, overwrite)
        if resume:
            existing = table.part if table.rows_before is None else out
            progress.note(f"continuing {existing}" if is_resumed else f"no {out} to resume: starting anew")
        try:
            with signals.deferred():
                for recordings in predict(table.merge(listing), progress.note):
                    table.add(recordings)
                    progress.update(table)
                    if signals.signum is not None:
                        raise Interrupted(signals.signum)
        except Interrupted:
            progress.note(f"stopped: {table.rows:,} rows are in {table.part}, --resume continues")
            raise
        finally:
            progress.clear()
        others = f"{listing.other_files:,} other files"
        if not table.rows:
            raise BatchError(
                f"no recordings in {', '.join(listing.kinds)} ({others}): expected files whose names end in "
                f"{', '.join(AUDIO_SUFFIXES)}"
            )
        contents = f"{table.rows - table.errors:,} answers and {table.errors:,} errors"
        contents += f"; {others} left out" if listing.other_files else ""
        if table.is_unchanged:
            progress.note(f"{out} is complete, with {contents}: nothing to resume")
            return 0
        table.finish()
    print(escape_controls(f"{contents} in {out}"))
    progress.note(f"answered by {answered_by}")
    return 1 if table.errors else 0


class Progress(LiveLine):
    """A line that is rewritten on a terminal, or one every ten seconds elsewhere, on standard error."""

    def __init__(self) -> None:
        super().__init__()
        self._start = time.monotonic()
        self._due = self._start + (0.0 if self.live else LINE_SECONDS)

    def update(self, table: ResumableTable) -> None:
        """Show how far the table is, if it is time to."""
        now = time.monotonic()
        if now >= self._due:
            self._due, seconds = now + (LIVE_SECONDS if self.live else LINE_SECONDS), now - self._start
            line = f"{table.rows:,} files, {table.answered / seconds:,.0f} a second, "
            line += f"{table.errors:,} without an answer, {timedelta(seconds=int(seconds))}"
            self.show(line) if self.live else self.note(line)

    def note(self, line: str) -> None:
        """Print a line that stays."""
        self.clear()
        print(escape_controls(line), file=sys.stderr, flush=True)
