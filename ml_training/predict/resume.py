"""A table that is written beside its final place, so that a run that is killed or stopped goes on later.

results.csv.part          rows in the order of the listing; a kill leaves at most the last one incomplete
results.csv.part.old      rows of earlier runs, which are merged into them
results.csv.part.json     the settings of the run: recordings and model
results.csv               the complete table
results.csv.state.json    its settings and SHA-256; --resume changes no other file
"""

from __future__ import annotations

import contextlib
import csv
import heapq
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedWriter
from itertools import takewhile
from pathlib import Path
from typing import Any

from digit_detector.errors import BatchError
from digit_detector.files import sha256_of, write_json
from ml_training.predict.tables import JsonLinesTable, ParquetTable, Recording, sort_key

FORMAT = {"format": "streaming-digit-detector batch", "version": 2}

State = dict[str, Any]


class ResumableTable:
    """The unfinished table of `out`; one process at a time may hold it."""

    def __init__(self, out: Path, table: JsonLinesTable) -> None:
        self.out = Path(os.path.realpath(out)) if out.is_symlink() else out  # the link stays, its target is replaced
        self.table = table
        suffixes = (".part", ".part.old", ".part.json", ".part.tmp", ".state.json")
        paths = [self.out.with_name(self.out.name + suffix) for suffix in suffixes]
        self.part, self.old, self.part_state, self._temporary, self.state = paths
        self.rows = self.errors = self.answered = 0  # rows so far; those with an error; those of this run
        self.rows_before: int | None = None  # of a complete table that is resumed
        self._file: BufferedWriter | None = None

    @property
    def is_unchanged(self) -> bool:
        """Whether a complete table is resumed that needs no other rows."""
        return not self.answered and self.rows == self.rows_before

    def begin(self, run: State, resume: bool = False, overwrite: bool = False) -> bool:
        """Start a table, or resume the one that exists; returns whether one does.

        Raises BatchError where rows of other settings would be mixed, or a file would be lost.
        """
        previous = self._previous_state() if resume else None
        existing = [self.part] * self._is_unfinished() + [self.out] * self.out.exists()
        if existing and previous is None and not overwrite:
            raise BatchError(f"{existing[0]} exists already: --resume adds what it lacks, --overwrite replaces it")
        earlier = run if previous is None else previous["run"]
        keys = sorted(key for key in earlier | run if earlier.get(key) != run.get(key))
        if keys:
            changes = "; ".join(f"{key} was {earlier.get(key)!s:.99}, is {run.get(key)!s:.99}" for key in keys)
            raise BatchError(f"{existing[0]} is of another run: {changes}; name another --out, or --overwrite it")
        with self._writing():
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._file = file = self._open()
            if previous is None:
                self.old.unlink(missing_ok=True)
                file.truncate(0)
            may_replace = overwrite or self.rows_before is not None or (previous or {}).get("overwrite", False)
            self._state = FORMAT | {"run": run, "overwrite": may_replace}
            write_json(self.part_state, self._state)
            if self.rows_before is not None:
                self.table.extract(self.out, self._temporary)
                self._temporary.replace(self.old)
            elif self._has_rows():
                self._append_old_rows(file)
                if os.name == "nt":  # an open file cannot be renamed; elsewhere the lock is held until then
                    file.close()
                self.part.replace(self.old)
                file.close()
                self._file = file = self._open()
            file.truncate(0)
            file.write(self.table.header)
        return previous is not None

    def merge(self, recordings: Iterable[Recording]) -> Iterator[Recording]:
        """Rows that have an answer, and recordings that have none, in order; rows of files that are gone stay."""
        last, rows = "", self._rows_of(self.old)
        answered = (Recording(name, row=row) for name, has_error, row in rows if not has_error)
        for recording in heapq.merge(answered, recordings, key=lambda one: sort_key(one.name)):
            key = sort_key(recording.name)
            if key > last:  # of a row and its recording, the row comes first
                yield recording
                last = key

    def add(self, recordings: Sequence[Recording]) -> None:
        """Append rows, which a kill of this process then leaves whole. Raises BatchError."""
        assert self._file is not None
        with self._writing():
            self._file.write(b"".join(one.row or self.table.encode(one) for one in recordings))
            self._file.flush()
        self.rows += len(recordings)
        self.answered += sum(one.row is None for one in recordings)
        self.errors += sum(one.error is not None for one in recordings)

    def finish(self) -> None:
        """Give the table its final name. Raises BatchError, and a later run tries again; so it does after a kill."""
        assert self._file is not None
        if self.out.exists() and not self._state["overwrite"]:
            raise BatchError(f"{self.out} appeared meanwhile: move it away, and --resume completes {self.part}")
        with self._writing():
            complete = self.part
            if isinstance(self.table, ParquetTable):
                complete = self.table.convert(self.part, self._temporary)
            with complete.open("rb+") as file:
                os.fsync(file.fileno())
            self._copy_rights(complete)
            self._state |= {"rows": self.rows, "errors": self.errors, "sha256": sha256_of(complete), "overwrite": True}
            write_json(self.part_state, self._state)
            self.old.unlink(missing_ok=True)
            if os.name == "nt":
                self._file.close()
            complete.replace(self.out)
            self.part.unlink(missing_ok=True)
            self.part_state.replace(self.state)

    def close(self) -> None:
        """Close the file, and remove those of a run that added nothing."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk
                self._file.close()
            is_empty = self.is_unchanged or not self._is_unfinished()
            for path in (self._temporary, *((self.part, self.old, self.part_state) if is_empty else ())):
                path.unlink(missing_ok=True)

    def _has_rows(self) -> bool:
        return self.part.exists() and self.part.stat().st_size > len(self.table.header)

    def _is_unfinished(self) -> bool:
        return self._has_rows() or self.old.exists()

    def _previous_state(self) -> State | None:
        """What was written beside the rows that exist; None without rows.

        Raises BatchError where that is missing, or where the complete table was changed.
        """
        table, sha256, states = self.part, None, [self.part_state]
        if not self._is_unfinished():
            if not self.out.exists():
                return None
            table, sha256 = self.out, sha256_of(self.out)
            states.append(self.state)
        for path in states:
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
                state: State = json.loads(path.read_text(encoding="utf-8"))
                if state.items() >= FORMAT.items() and dict(state["run"]) and sha256 in (None, state.get("sha256")):
                    if sha256 is not None:
                        path.replace(self.state)  # after a kill before the last step of `finish`
                        self.rows_before = state["rows"]
                    return state
        raise BatchError(
            f"{table} cannot be resumed: it was changed, or its settings in {states[-1].name} are missing, damaged or "
            "of another version; name another --out, or --overwrite it"
        )

    def _open(self) -> BufferedWriter:
        """The file of new rows. Raises BatchError where another process holds it, or has just completed it."""
        file = self.part.open("ab")
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = os.path.samestat(os.fstat(file.fileno()), self.part.stat())
        except (ImportError, OSError) as error:  # Windows, or a file system without locks
            is_free = not isinstance(error, (BlockingIOError, FileNotFoundError))
        if not is_free:
            file.close()
            raise BatchError(f"{self.part} is being written by another process: wait for it, or stop it")
        self._copy_rights(self.part, writable=True)
        return file

    def _copy_rights(self, path: Path, writable: bool = False) -> None:
        """Give a file the mode and, where that is allowed, the owner of the table that it will replace."""
        with contextlib.suppress(FileNotFoundError):
            status = self.out.stat()
            with contextlib.suppress(PermissionError, AttributeError):  # Windows has no owners
                os.chown(path, status.st_uid, status.st_gid)
            path.chmod(stat.S_IMODE(status.st_mode) | (stat.S_IWUSR if writable else 0))

    def _rows_of(self, path: Path) -> Iterator[tuple[str, bool, bytes]]:
        """File, whether it has an error, and bytes of each row, up to the first incomplete or damaged one."""
        with contextlib.suppress(FileNotFoundError, ValueError, csv.Error), path.open("rb") as file:
            file.seek(len(self.table.header))
            yield from self.table.parse(takewhile(_is_whole, file))

    def _append_old_rows(self, file: BufferedWriter) -> None:
        """Append the older rows that a killed run had not merged yet."""
        last, end = "", len(self.table.header)
        for name, _, content in self._rows_of(self.part):
            last, end = sort_key(name), end + len(content)
        file.truncate(end)
        file.writelines(content for name, _, content in self._rows_of(self.old) if sort_key(name) > last)
        file.flush()
        os.fsync(file.fileno())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or error
            raise BatchError(f"cannot write {self.part}: {why}; make room, and --resume continues its rows") from error


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n") and b"\0" not in line  # a power cut leaves zeros
