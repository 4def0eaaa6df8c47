"""Rows of CSV and TSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from digit_detector.errors import DataError

_DELIMITERS = {".csv": (",", ";", "\t"), ".tsv": ("\t",)}


def is_table(path: Path) -> bool:
    """Whether a path is that of a table, by its suffix."""
    return path.suffix.lower() in _DELIMITERS


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of the rows of a table that are not empty. Raises DataError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            known = _DELIMITERS[path.suffix.lower()]
            reader = csv.reader(file, delimiter=next((d for d in known if d in head), known[0]), strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save the table as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} is not a table of {path.suffix[1:].upper()}: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
