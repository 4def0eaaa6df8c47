"""Rows of a table of answers, as bytes and back: CSV and JSON Lines; Parquet is made of the latter in the end.

Whatever a file is called, a table is valid UTF-8, and a name read from it is the name of the file.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_training.audio import Floats
from ml_training.config import IS_DIGIT, LABELS
from ml_training.errors import BatchError, MissingExtraError

CSV, JSON_LINES, PARQUET = SUFFIXES = (".csv", ".jsonl", ".parquet")
PROBABILITIES = tuple(f"probability_{digit}" for digit in range(len(LABELS)))
ANSWER = ("predicted_digit", "word", "confidence", "is_digit", "digit_score")
COLUMNS = ("file", *ANSWER, *PROBABILITIES, "error", "model")
DECIMALS = 6  # of probabilities

LONGEST = 1 << 20  # bytes of a row: no name is so long
_GROUP = 1 << 14  # rows of a row group in Parquet, held in memory while it is filled
_ESCAPED = re.compile(r"\\ud[89a-f][0-9a-f]{2}")


class Row(NamedTuple):
    """What one file is answered: either both numbers or an error."""

    file: str
    probabilities: Floats | None = None  # (10,)
    digit_score: float | None = None
    error: str | None = None


class Done(NamedTuple):
    """What a row tells of itself when it is read again."""

    file: str
    failed: bool


class Table:
    """How the rows of one kind of table look, and where one ends."""

    header: bytes = b""

    def __init__(self, model: str) -> None:
        self.model = model

    def encode(self, row: Row) -> bytes:
        raise NotImplementedError

    def decode(self, record: bytes) -> Done:
        """Raises ValueError for what is no whole row."""
        raise NotImplementedError

    def records(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Lines with their ends -> rows; the last one may be torn, and any too long to be one."""
        yield from lines


class CsvTable(Table):
    header = ",".join(COLUMNS).encode() + b"\n"

    def encode(self, row: Row) -> bytes:
        if row.probabilities is None or row.digit_score is None:
            answer = "," * (len(ANSWER) + len(PROBABILITIES) - 1)
        else:
            digit, each = _digit(row.probabilities), row.probabilities.tolist()
            shares = ",".join(f"{p:.{DECIMALS}f}" for p in (row.digit_score, *each))
            is_digit = "true" if row.digit_score >= IS_DIGIT else "false"
            answer = f"{digit},{LABELS[digit]},{each[digit]:.{DECIMALS}f},{is_digit},{shares}"
        text = f"{_quoted(row.file)},{answer},{_quoted(row.error or '')},{_quoted(self.model)}\n"
        return text.encode()

    def decode(self, record: bytes) -> Done:
        try:
            rows = list(csv.reader([_whole_line(record)], strict=True))
        except csv.Error as error:
            raise ValueError(str(error)) from error
        if len(rows) != 1 or len(rows[0]) != len(COLUMNS):
            raise ValueError("not a row of this table")
        return Done(unescaped(rows[0][0]), rows[0][COLUMNS.index("error")] != "")

    def records(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        record = b""
        for line in lines:
            record += line
            if record.count(b'"') % 2 == 0 or len(record) > LONGEST:
                yield record
                record = b""
        if record:
            yield record


class JsonLinesTable(Table):
    def encode(self, row: Row) -> bytes:
        values: dict[str, Any] = {"file": row.file, **dict.fromkeys(ANSWER), "probabilities": None}
        if row.probabilities is not None and row.digit_score is not None:
            digit, each = _digit(row.probabilities), [round(p, DECIMALS) for p in row.probabilities.tolist()]
            score = round(row.digit_score, DECIMALS)
            answer = (digit, LABELS[digit], each[digit], bool(row.digit_score >= IS_DIGIT), score)
            values |= {**dict(zip(ANSWER, answer, strict=True)), "probabilities": each}
        values |= {"error": row.error, "model": self.model}
        # A byte of a name that is no text becomes \\udc.., which is how JSON writes what Python made of that byte.
        return json.dumps(values, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"

    def decode(self, record: bytes) -> Done:
        values = json.loads(_whole_line(record))
        if not isinstance(values, dict) or not isinstance(values.get("file"), str) or "error" not in values:
            raise ValueError("not a row of this table")
        return Done(values["file"], values["error"] is not None)


def table_for(out: Path, model: str) -> Table:
    """By the suffix of the file. Raises BatchError for another, MissingExtraError where it cannot be written here."""
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        raise BatchError(f"{out} ends in {suffix or 'no suffix'!r}: expected one of {', '.join(SUFFIXES)}")
    if suffix == PARQUET:
        try:
            import pyarrow.parquet  # noqa: F401 (missed now, not after hours of answers)
        except ImportError:
            raise MissingExtraError(f"{out} (Parquet)", "parquet") from None
    return CsvTable(model) if suffix == CSV else JsonLinesTable(model)


def finisher_for(out: Path) -> Callable[[Path, Path], None] | None:
    """What makes the table of its working file, where renaming is not enough."""
    return write_parquet if out.suffix.lower() == PARQUET else None


def write_parquet(rows: Path, out: Path) -> None:
    """JSON Lines -> Parquet with the columns of the CSV, a group of rows at a time. Raises OSError."""
    import pyarrow as arrow
    from pyarrow import parquet

    kinds = {"file": arrow.string(), "predicted_digit": arrow.int8(), "word": arrow.string(), "is_digit": arrow.bool_()}
    kinds |= {"error": arrow.string(), "model": arrow.string()}
    schema = arrow.schema([(name, kinds.get(name, arrow.float32())) for name in COLUMNS])
    with rows.open("rb") as lines, parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        group: list[dict[str, Any]] = []
        for line in lines:
            values = json.loads(line)
            each = values.pop("probabilities") or [None] * len(PROBABILITIES)
            texts = {key: escaped(values[key]) for key in ("file", "error", "model") if values[key] is not None}
            group.append({**values, **dict(zip(PROBABILITIES, each, strict=True)), **texts})
            if len(group) == _GROUP:
                writer.write_table(arrow.Table.from_pylist(group, schema))
                group = []
        if group:
            writer.write_table(arrow.Table.from_pylist(group, schema))


def escaped(name: str) -> str:
    r"""A name as UTF-8 can hold it: bytes that are no text are written \udc.., as Python calls them.

    In a name that has such a thing, every backslash is doubled; others stay as they are.
    """
    if not _ESCAPED.search(name) and name.isprintable():  # nearly all
        return name
    text = name.encode(errors="backslashreplace").decode()
    if not _ESCAPED.search(text):
        return name
    return name.replace("\\", "\\\\").encode(errors="backslashreplace").decode()


def unescaped(text: str) -> str:
    """The name that `escaped` wrote."""
    if not _ESCAPED.search(text):
        return text
    return re.sub(r"\\(\\|u[0-9a-f]{4})", lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), text)


def _quoted(text: str) -> str:
    text = escaped(text)
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if any(sign in text for sign in ',"\n\r') else text


def _digit(probabilities: Floats) -> int:
    return int(probabilities.argmax())


def _whole_line(record: bytes) -> str:
    if not record.endswith(b"\n") or b"\0" in record or len(record) > LONGEST:
        raise ValueError("torn")
    return record[:-1].decode()
