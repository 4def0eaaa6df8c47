"""The table while it grows: rows are added to a file beside it, which takes its name when it is whole.

    results.csv.part          the rows so far; a kill leaves at most its last row torn
    results.csv.part.json     what they are answers to: the folders and the model
    results.csv               the whole table
    results.csv.state.json    what it answers, and its size and SHA-256: --resume changes no other file

A row is never changed once it is written. Each session writes its rows in the order of the walk, so that a later one
finds out what is done by reading file and folders side by side, whatever came or went meanwhile. A whole table is gone
on with in a copy, and stays as it is until the copy is whole. Rows with an error of an earlier session are left out in
the end: their files are tried again.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from itertools import pairwise, starmap
from pathlib import Path
from typing import NamedTuple

from digit_detector.errors import BatchError
from ml_training.predict.state import Settings, fingerprint, matching, read_state, refuse_another, write_state
from ml_training.predict.tables import LONGEST, Row, Table
from ml_training.predict.walk import Found, place

_SYNC_SECONDS = 5.0  # what a power cut may cost; a kill costs less
_BLOCK = 1 << 16


class _Written(NamedTuple):
    """A row that is in the file."""

    place: list[str]
    file: str
    failed: bool
    record: bytes


class Journal:
    """The unfinished table of `out`; one process at a time may hold it. Use it in a `with`."""

    def __init__(self, out: Path, table: Table, report: Callable[[str], None]) -> None:
        self.out = Path(os.path.realpath(out)) if out.is_symlink() else out  # a link stays, its target is replaced
        self.table, self.report = table, report
        self.part, self.about, self.state = (
            self.out.with_name(self.out.name + suffix) for suffix in (".part", ".part.json", ".state.json")
        )
        self.answers = self.errors = 0  # rows of either kind that the table will hold
        self.failed_before = 0  # rows with an error of earlier sessions, which it will not
        self._file: FileIO | None = None
        self._reader: FileIO | None = None
        self._state: Settings = {}  # what stands in self.about
        self._stated_in = self.state  # the file that holds the whole table's settings
        self._end = 0  # behind the last whole row
        self._runs: list[int] = []  # where rows begin that come earlier in the walk than the row before
        self._session = 0  # where the rows of this session begin
        self._last: list[str] = []  # the place of the last of the rows before it
        self._in_order = True  # whether this session's rows come later in the walk than those before
        self._synced = time.monotonic()

    @property
    def rows(self) -> int:
        return self.answers + self.errors

    @property
    def unchanged(self) -> bool:
        """Whether there is nothing to add to the whole table that was gone on with, and nothing to leave out."""
        return self._end == self._state.get("copied") != 0 and not self.failed_before

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
        """What the rows that are there answer, unfinished ones first; None where there are none.

        Raises BatchError where that is not known, or the table is not as it was when it was finished.
        """
        if self._unfinished():
            state = read_state(self.about)
            if state is None:
                raise BatchError(
                    f"{self.part} cannot be gone on with: what it belongs to stands in {self.about.name}, which is "
                    "missing, damaged or of another version; --overwrite starts anew"
                )
            if state.get("copied") is not None or not os.path.lexists(self.out):
                self._state = state
                return dict(state["run"])
        return self._finished() if os.path.lexists(self.out) else None

    def begin(self, run: Settings, before: Settings | None, overwrite: bool = False) -> None:
        """Start the table of this run or, given what is remembered of it, go on with it.

        Raises BatchError where that would mix two runs, or lose one, or the file of somebody else.
        """
        if before is not None:
            refuse_another(run, before, self.part if self._state else self.out)
        elif not overwrite:
            if self._unfinished():
                raise BatchError(
                    f"{self.part} holds the rows of a run that did not end: --resume goes on with it, --overwrite "
                    "starts anew"
                )
            if os.path.lexists(self.out):
                raise BatchError(f"{self.out} is there already: --resume adds what it lacks, --overwrite replaces it")
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.part.open("ab", buffering=0)
            self._reader = self.part.open("rb", buffering=0)
            self._lock(self._file)
            self._take_rights(self.part, owner_writes=True)
            if not self._state:
                self._file.truncate(0)
                if before is not None:
                    self._copy(run)
                else:
                    self._remember({"run": run, "copied": 0, "overwrite": overwrite})
            self._find_rows()
        except OSError as error:
            raise self._unwritable(error) from error

    def _copy(self, run: Settings) -> None:
        """Make the unfinished table of the whole one."""
        if self._stated_in == self.about:  # killed between the last two steps of `finish`
            self.about.replace(self.state)
        self._remember({"run": run, "copied": None})  # until it is whole, the copy counts for nothing
        assert self._file is not None
        for content in self.table.read(self.out):
            self._write(content)
        os.fsync(self._file.fileno())
        self._remember({"copied": self._end})

    def _remember(self, changes: Settings) -> None:
        self._state |= changes
        write_state(self.about, self._state)

    def _unfinished(self) -> bool:
        """Whether there is an unfinished table with a row in it, or something else in its place."""
        try:
            with self.part.open("rb") as file:
                return not self.table.header.startswith(file.read(len(self.table.header) + 1))
        except FileNotFoundError:
            return False

    def _finished(self) -> Settings:
        """What the whole table answers. Raises BatchError where it is not as it was when it was finished."""
        self._stated_in, state = matching(self.out, self.about, self.state)
        return dict(state["run"])

    def _lock(self, file: FileIO) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        busy = f"{self.part} is being written by another process: wait for it, or stop it"
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchError(busy) from None
        except OSError:  # a file system without locks
            pass
        if not self.part.exists() or not os.path.samestat(os.fstat(file.fileno()), self.part.stat()):
            raise BatchError(busy)  # which has just given it the name of the table

    def _take_rights(self, path: Path, owner_writes: bool = False) -> None:
        """Give a file the owner and the mode of the table that it is to replace."""
        try:
            there = self.out.stat()
        except FileNotFoundError:
            return
        if hasattr(os, "chown"):
            try:
                os.chown(path, there.st_uid, there.st_gid)
            except PermissionError:
                if not owner_writes:
                    self.report(f"{self.out} changes its owner: only root may give files away")
        path.chmod(stat.S_IMODE(there.st_mode) | (stat.S_IWUSR if owner_writes else 0))

    # --- rows that are there ---

    def _find_rows(self) -> None:
        """Count the whole rows, and cut off what follows them."""
        header, size = self.table.header, self.part.stat().st_size
        start = next(self._lines(0, size), b"")
        if not header.startswith(start[: len(header)]):
            raise BatchError(f"{self.part} does not begin like one of ours: --overwrite starts anew")
        self._end = 0
        if len(start) < len(header):
            self._cut()
            self._write(header)
        self._end = len(header)
        self._runs = [self._end]
        try:
            for row in self._rows(self._end, size):
                if row.place <= self._last:
                    self._runs.append(self._end)
                self._last = row.place
                self.answers, self.failed_before = self.answers + (not row.failed), self.failed_before + row.failed
                self._end += len(row.record)
        except _TornError as torn:
            if self._end + len(torn.record) < size:
                rows = self.answers + self.failed_before
                self.report(f"{self.part} is damaged behind row {rows}: what follows is answered anew")
        self._cut()
        self._session = self._end

    def done(self) -> Iterator[str]:
        """The files that earlier sessions answered, in the order of the walk."""
        return (row.file for row in self._answered())

    def _answered(self) -> Iterator[_Written]:
        runs = pairwise([*self._runs, self._session])
        return (row for row in heapq.merge(*starmap(self._rows, runs), key=_place) if not row.failed)

    def _rows(self, start: int, end: int) -> Iterator[_Written]:
        for record in self.table.records(self._lines(start, end)):
            try:
                file, failed = self.table.decode(record)
            except ValueError as error:
                raise _TornError(record) from error
            yield _Written(place(file), file, failed, record)

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
        if self._session == self._end and rows:
            self._in_order = place(rows[0].file) > self._last
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
        """Give the table its name, its rows in order. Raises BatchError; then nothing is lost, and --resume tries.

        Killed between any two steps, it leaves what `remembered` understands.
        """
        assert self._file is not None
        beside = self.out.with_name(f".{self.out.name}.tmp")
        try:
            self._refuse_to_replace()
            os.fsync(self._file.fileno())
            whole = self.part
            if not (self.table.is_renamed and self._in_order and not self.failed_before and len(self._runs) == 1):
                whole = beside
                whole.touch()
                self._take_rights(whole, owner_writes=True)
                rows = heapq.merge(self._answered(), self._rows(self._session, self._end), key=_place)
                self.table.write(whole, (row.record for row in rows))
                with whole.open("ab") as file:
                    os.fsync(file.fileno())
            self._take_rights(whole)
            self._remember({"rows": self.rows, "errors": self.errors, **fingerprint(whole)})
            if os.name == "nt":  # there, what is open is not renamed; elsewhere the lock is held to the end
                self.close()
            whole.replace(self.out)
            self.part.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process may have done it
                self.about.replace(self.state)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)

    def _refuse_to_replace(self) -> None:
        """Raises BatchError where a file has appeared, or was changed, in the place of the table."""
        if self._state.get("overwrite") or not os.path.lexists(self.out):
            return
        with contextlib.suppress(BatchError):
            if self._finished() == self._state["run"]:
                return
        raise BatchError(
            f"{self.out} appeared or was changed while its rows were written to {self.part}: move it away, and "
            "--resume finishes"
        )

    def discard(self) -> None:
        """Leave nothing behind of a run that added nothing."""
        self.close()
        self.part.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> BatchError:
        return BatchError(
            f"cannot write {self.part}: {error.strerror or error}; the {self.rows} rows before are "
            "whole: make room, and --resume goes on"
        )


class _TornError(Exception):
    """Bytes that are no whole row."""

    def __init__(self, record: bytes) -> None:
        super().__init__(len(record))
        self.record = record


def _place(row: _Written) -> list[str]:
    return row.place


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
