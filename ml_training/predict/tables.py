"""Rows of a table of answers, as bytes and back: CSV and JSON Lines; Parquet is made of the latter in the end.

Whatever a file is called, a table is valid UTF-8, and a name read from it is the name of the file.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from digit_detector.audio import Floats
from digit_detector.errors import BatchError, MissingExtraError
from digit_detector.labels import IS_DIGIT, LABELS

CSV, JSON_LINES, PARQUET = SUFFIXES = (".csv", ".jsonl", ".parquet")
PROBABILITIES = tuple(f"probability_{digit}" for digit in range(len(LABELS)))
ANSWER = ("predicted_digit", "word", "confidence", "is_digit", "digit_score")
COLUMNS = ("file", *ANSWER, *PROBABILITIES, "error", "model")
SHARES = ("confidence", "digit_score", *PROBABILITIES)
DECIMALS = 6  # of shares

LONGEST = 1 << 20  # bytes of a row: no name is so long
_GROUP = 1 << 14  # rows of a row group in Parquet, held in memory while it is filled
_BLOCK = 1 << 16
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
    is_renamed = True  # its rows as bytes, one behind the other, are the whole table

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

    def write(self, out: Path, records: Iterable[bytes]) -> None:
        """Write a whole table of encoded rows. Raises OSError."""
        with out.open("wb") as file:
            file.write(self.header)
            file.writelines(records)

    def read(self, out: Path) -> Iterator[bytes]:
        """The header and the encoded rows of a whole table, in pieces. Raises OSError."""
        with out.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block


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
        return _json_line(values)

    def decode(self, record: bytes) -> Done:
        values = json.loads(_whole_line(record))
        if not isinstance(values, dict) or not isinstance(values.get("file"), str) or "error" not in values:
            raise ValueError("not a row of this table")
        return Done(values["file"], values["error"] is not None)


class ParquetTable(JsonLinesTable):
    """JSON Lines until it is whole: rows cannot be added to Parquet one by one."""

    is_renamed = False

    def write(self, out: Path, records: Iterable[bytes]) -> None:
        """With the columns of the CSV, a group of rows at a time."""
        import pyarrow as arrow
        from pyarrow import parquet

        kinds = dict.fromkeys(("file", "word", "error", "model"), arrow.string())
        kinds |= {"predicted_digit": arrow.int8(), "is_digit": arrow.bool_()}
        schema = arrow.schema([(name, kinds.get(name, arrow.float32())) for name in COLUMNS])
        rows = iter(records)
        with parquet.ParquetWriter(out, schema, compression="zstd") as writer:
            while group := [_columns(json.loads(record)) for record in islice(rows, _GROUP)]:
                writer.write_table(arrow.Table.from_pylist(group, schema))

    def read(self, out: Path) -> Iterator[bytes]:
        from pyarrow import parquet

        with parquet.ParquetFile(out) as file:
            for group in file.iter_batches(_GROUP):
                yield b"".join(_json_line(_values(row)) for row in group.to_pylist())


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
    return {CSV: CsvTable, JSON_LINES: JsonLinesTable, PARQUET: ParquetTable}[suffix](model)


def _json_line(values: Mapping[str, Any]) -> bytes:
    # A byte of a name that is no text becomes \\udc.., which is how JSON writes what Python made of that byte.
    return json.dumps(values, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _columns(values: dict[str, Any]) -> dict[str, Any]:
    """A row of JSON Lines as one of Parquet."""
    each = values.pop("probabilities") or [None] * len(PROBABILITIES)
    return values | dict(zip(PROBABILITIES, each, strict=True)) | _texts(values, escaped)


def _values(columns: dict[str, Any]) -> dict[str, Any]:
    """A row of Parquet as one of JSON Lines."""
    shares = {name: None if columns[name] is None else round(columns[name], DECIMALS) for name in SHARES}
    values = columns | shares | _texts(columns, unescaped)
    each = [values.pop(name) for name in PROBABILITIES]
    return values | {"probabilities": None if each[0] is None else each}


def _texts(values: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, str]:
    return {key: change(values[key]) for key in ("file", "error", "model") if values[key] is not None}


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
