"""Tables of recordings: a CSV or TSV file with a path and a label in each row, perhaps a speaker and a part."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from digit_detector.errors import DataError
from digit_detector.labels import LABELS
from ml_training.data.clip_files import ClipFile, read_clip
from ml_training.data.corpus import PARTS, TEST, TRAIN, UNKNOWN_SPEAKER, VALIDATION
from ml_training.data.layouts import digit_of

SUFFIXES = (".csv", ".tsv")
MAX_ROWS = 2_000_000
COLUMNS = {  # what a column is for -> what it may be called
    "path": ("path", "file", "filename"),
    "label": ("label", "digit", "word"),
    "speaker": ("speaker",),
    "split": ("split",),
}
_PARTS = {
    "train": TRAIN, "training": TRAIN, "validation": VALIDATION, "valid": VALIDATION, "val": VALIDATION,
    "dev": VALIDATION, "test": TEST, "testing": TEST,
}  # fmt: skip
_DELIMITERS = {".csv": (",", ";", "\t"), ".tsv": ("\t",)}

Row = tuple[int, list[str]]  # number of its line, its cells


def is_table(path: Path) -> bool:
    """Whether a path is that of a table, by its suffix."""
    return path.suffix.lower() in SUFFIXES


def clips_of_table(path: Path) -> list[ClipFile]:
    """A clip for each row, its file looked for from the table's folder on.

    A row that names no digit or no file, or the file of an earlier row, becomes a clip with a fault. Raises DataError
    where the table cannot be read, has no columns of path and label, contradicts itself or divides only some rows.
    """
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} is empty: expected {_expected()}")
    columns = _columns(path, first[1])
    if columns is None:  # no header
        columns, rows = {"path": 0, "label": 1}, chain([first], rows)
    clips: list[ClipFile] = []
    earlier: dict[Path, tuple[int, int]] = {}  # file -> line and digit of the row that names it
    for line, cells in rows:
        if len(clips) == MAX_ROWS:
            raise DataError(f"{path} has more than {MAX_ROWS} rows: divide it")
        values = {name: cells[place].strip() if place < len(cells) else "" for name, place in columns.items()}
        clip = _clip(path, line, values)
        if clip.path is not None:
            before, digit = earlier.setdefault(clip.path, (line, clip.digit))
            if digit != clip.digit:
                raise DataError(
                    f"{path}: line {line} labels {clip.file} {LABELS[clip.digit]}, line {before} {LABELS[digit]}: "
                    "leave one out"
                )
            if before != line:
                clip = _faulty(f"{clip.file} (line {line})", f"line {before} of the table names it already")
        clips.append(clip)
    return clips


def _clip(table: Path, line: int, values: dict[str, str]) -> ClipFile:
    file = _printable(values["path"])
    if not values["path"] or "\0" in values["path"]:
        return _faulty(f"line {line}", "it names no file")
    digit = digit_of(values["label"])
    if digit is None:
        fault = f"line {line} labels it {values['label']!r}, expected 0 to 9 or zero to nine"
        return _faulty(f"{file} (line {line})", fault)
    part = _PARTS.get(values.get("split", "").lower(), "")
    if "split" in values and not part:
        raise DataError(
            f"{table}: line {line} has the split {values['split']!r}: expected one of {', '.join(PARTS)} in every row"
        )
    path = Path(os.path.normpath(table.parent / values["path"]))
    speaker = _printable(values.get("speaker", "")) or UNKNOWN_SPEAKER
    return ClipFile(
        file, partial(read_clip, path), digit, speaker, line, path=path, part=part,
        annotation=f"\0{digit}\0{speaker}\0{part}",
    )  # fmt: skip


def _faulty(file: str, fault: str) -> ClipFile:
    return ClipFile(file, bytes, fault=fault)  # of no bytes: nothing is opened for it


def _columns(path: Path, cells: list[str]) -> dict[str, int] | None:
    """What each column of a header is for; None where the first row is none. Raises DataError."""
    names = [cell.strip().lower() for cell in cells]
    found = {use: [names.index(name) for name in known if name in names] for use, known in COLUMNS.items()}
    twice = [use for use, places in found.items() if len(places) > 1]
    if twice:
        raise DataError(f"{path} has several columns of {twice[0]} ({', '.join(COLUMNS[twice[0]])}): leave one")
    if found["path"] and found["label"]:
        return {use: places[0] for use, places in found.items() if places}
    if len(cells) == 2 and digit_of(cells[1]) is not None:
        return None
    shown = ",".join(_printable(cell) for cell in cells)[:80]
    raise DataError(f"{path} begins with {shown!r}: expected {_expected()}")


def _expected() -> str:
    path, label = ("/".join(COLUMNS[use]) for use in ("path", "label"))
    return f"a header with columns {path} and {label}, and speaker and split if wanted; or path,label without a header"


def _rows(path: Path) -> Iterator[Row]:
    """The rows of a table that are not empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            known = _DELIMITERS[path.suffix.lower()]
            delimiter = next((sign for sign in known if sign in head), known[0])
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save the table as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} is not a table of {path.suffix[1:].upper()}: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
