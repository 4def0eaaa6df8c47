"""The table while it grows: rows are added to a file beside it, which takes its name when it is whole.

    results.csv.part          the rows so far; a kill leaves at most its last row torn
    results.csv.part.json     what they are answers to: the folders and the model

A row is never changed once it is written. Each session writes its rows in the order of the walk, so that a later one
finds out what is done by reading file and folders side by side, whatever came or went meanwhile.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from ml_training.batch.tables import LONGEST, Row, Table, finisher_for
from ml_training.batch.walk import Found, place
from ml_training.errors import BatchError
from ml_training.utils.files import write_json

FORMAT = "streaming-digit-detector batch"
VERSION = 1

_SYNC_SECONDS = 5.0  # what a power cut may cost; a kill costs less
_BLOCK = 1 << 16

Settings = dict[str, Any]


class Journal:
    """The unfinished table of `out`; one process at a time may hold it. Use it in a `with`."""

    def __init__(self, out: Path, table: Table, report: Callable[[str], None]) -> None:
        self.out, self.table, self.report = out, table, report
        self.part = out.with_name(out.name + ".part")
        self.about = out.with_name(out.name + ".part.json")
        self.answers = self.errors = 0  # rows of either kind, of all sessions
        self._file: FileIO | None = None
        self._reader: FileIO | None = None
        self._end = 0  # behind the last whole row
        self._runs: list[int] = []  # where rows begin that come earlier in the walk than the row before
        self._synced = time.monotonic()

    @property
    def rows(self) -> int:
        return self.answers + self.errors

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in (self._file, self._reader):
            if file is not None:
                file.close()

    # --- beginning ---

    def remembered(self) -> Settings | None:
        """What the unfinished table belongs to; None where there is none. Raises BatchError where that is not known."""
        if not self.part.exists():
            return None
        try:
            settings = json.loads(self.about.read_text(encoding="utf-8"))
            if settings.pop("format") == FORMAT and settings.pop("version") == VERSION:
                return dict(settings)
        except FileNotFoundError:
            if self.part.stat().st_size <= len(self.table.header):  # killed before there was anything to know
                return None
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            pass
        raise BatchError(
            f"{self.part} cannot be gone on with: what it belongs to stands in {self.about.name}, which is missing, "
            "damaged or of another version; remove both to start anew"
        )

    def begin(self, settings: Settings, before: Settings | None) -> None:
        """Start the table or, given what is remembered of it, go on with it.

        Raises BatchError where that would mix two runs, or lose one.
        """
        if before is not None:
            self._refuse_others(before, settings)
        elif self.part.exists() and self.part.stat().st_size > len(self.table.header):
            raise BatchError(
                f"{self.part} holds the rows of a run that did not end: --resume goes on with it; or remove it"
            )
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.part.open("ab", buffering=0)
            self._reader = self.part.open("rb", buffering=0)
            self._lock(self._file)
            if before is None:
                self._file.truncate(0)
                write_json(self.about, {"format": FORMAT, "version": VERSION, **settings})
                self._write(self.table.header)
            else:
                self._find_rows()
        except OSError as error:
            raise self._unwritable(error) from error

    def _refuse_others(self, before: Settings, settings: Settings) -> None:
        faults = []
        for key in sorted(before.keys() | settings.keys()):
            then, now = before.get(key), settings.get(key)
            if then != now:
                faults.append(f"{key} was {_shown(then)}, is {_shown(now)}")
        if faults:
            raise BatchError(
                f"{self.part} belongs to another run: {'; '.join(faults)}. Ask the same again, or remove it"
            )

    def _lock(self, file: FileIO) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchError(f"{self.part} is being written by another process: wait for it, or stop it") from None
        except OSError:  # a file system without locks
            pass

    # --- rows that are there ---

    def _find_rows(self) -> None:
        """Count the whole rows, and cut off what follows them."""
        header, size = self.table.header, self.part.stat().st_size
        start = next(self._lines(0, size), b"")
        if not header.startswith(start[: len(header)]):
            raise BatchError(f"{self.part} does not begin like one of ours: remove it to start anew")
        if len(start) < len(header):
            self._cut()
            self._write(header)
            return
        self._end = len(header)
        self._runs = [self._end]
        last: list[str] = []
        for record in self.table.records(self._lines(self._end, size)):
            try:
                done = self.table.decode(record)
            except ValueError:
                if self._end + len(record) < size:
                    self.report(f"{self.part} is damaged behind row {self.rows}: what follows is answered anew")
                break
            here = place(done.file)
            if here <= last:
                self._runs.append(self._end)
            last = here
            self.answers, self.errors = self.answers + (not done.failed), self.errors + done.failed
            self._end += len(record)
        self._cut()

    def done(self) -> Iterator[str]:
        """The files that rows of earlier sessions are about, in the order of the walk."""
        runs = zip(self._runs, [*self._runs[1:], self._end], strict=False)
        return heapq.merge(*(self._names(start, end) for start, end in runs), key=place)

    def _names(self, start: int, end: int) -> Iterator[str]:
        for record in self.table.records(self._lines(start, end)):
            yield self.table.decode(record).file

    def _lines(self, start: int, end: int) -> Iterator[bytes]:
        """The lines from one byte to another. Any number of these share one open file."""
        assert self._reader is not None
        rest = b""
        while start < end and len(rest) <= LONGEST:  # a longer line is no row of ours
            self._reader.seek(start)
            block = self._reader.read(min(_BLOCK, end - start))
            start = start + len(block) if block else end
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield line + b"\n"
        if rest:
            yield rest

    # --- rows to come ---

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows so that they are there when the process is killed. Raises BatchError; earlier rows stay whole."""
        self._write(b"".join(map(self.table.encode, rows)))
        errors = sum(row.error is not None for row in rows)
        self.answers, self.errors = self.answers + len(rows) - errors, self.errors + errors

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        try:
            written = 0
            while written < len(content):
                written += self._file.write(memoryview(content)[written:])
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            with contextlib.suppress(OSError):  # whoever goes on does it otherwise
                self._cut()
            raise self._unwritable(error) from error
        self._end += len(content)

    def _cut(self) -> None:
        assert self._file is not None
        self._file.truncate(self._end)

    def finish(self) -> None:
        """Give the table its name. Raises BatchError; then nothing is lost, and --resume tries again."""
        assert self._file is not None
        finisher = finisher_for(self.out)
        beside = self.out.with_name(f".{self.out.name}.tmp")
        try:
            os.fsync(self._file.fileno())
            if finisher is not None:
                finisher(self.part, beside)
            self.close()
            (self.part if finisher is None else beside).replace(self.out)
            self.part.unlink(missing_ok=True)
            self.about.unlink(missing_ok=True)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise self._unwritable(error) from error

    def discard(self) -> None:
        """Leave nothing behind of a run that found nothing."""
        self.close()
        self.part.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> BatchError:
        return BatchError(
            f"cannot write {self.part}: {error.strerror or error}; the {self.rows} rows before are "
            "whole: make room, and --resume goes on"
        )


def _shown(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)[:12]  # of a hash
    return ", ".join(list(value)[:3]) + (f" and {len(value) - 3} more" if len(value) > 3 else "")


def without(found: Iterable[Found], done: Iterator[str]) -> Iterator[Found]:
    """What is found and not done yet; both in the order of the walk. Files that came meanwhile are found, wherever
    they lie, and rows about files that are gone stay."""
    current = next(done, None)
    for item in found:
        here = place(item.name)
        while current is not None and place(current) < here:
            current = next(done, None)
        if item.name != current:
            yield item
