r"""Predictions as rows of CSV or JSON Lines; Parquet is converted from CSV when the table is complete.

Tables are UTF-8: a byte of a file name that is not UTF-8 is written as its surrogate escape, \udc80 to \udcff.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from digit_detector.audio import Floats
from digit_detector.cli.program import require
from digit_detector.errors import BatchError
from digit_detector.labels import IS_DIGIT, LABELS

ANSWER = ("predicted_digit", "word", "confidence", "is_digit", "digit_score")
PROBABILITIES = tuple(f"probability_{digit}" for digit in range(len(LABELS)))
COLUMNS = ("file", *ANSWER, *PROBABILITIES, "error", "model")
DECIMALS = 6


class Recording(NamedTuple):
    """A file on its way into the table: named, then decoded, then predicted; or with the row of an earlier run."""

    name: str
    clip: Floats | None = None  # (8000,)
    probabilities: Floats | None = None  # (C,)
    digit_score: float = 0.0
    error: str | None = None
    row: bytes | None = None


class JsonLinesTable:
    """One JSON object a line."""

    header = b""

    def __init__(self, model: str) -> None:
        self.model = model  # the file that answers

    def record(self, one: Recording) -> dict[str, Any]:
        record: dict[str, Any] = {"file": one.name, **dict.fromkeys(ANSWER), "probabilities": None}
        if one.probabilities is not None:
            probabilities = [round(p, DECIMALS) for p in one.probabilities.tolist()]
            digit, score = int(one.probabilities.argmax()), round(one.digit_score, DECIMALS)
            answer = (digit, LABELS[digit], probabilities[digit], one.digit_score >= IS_DIGIT, score)
            record |= {**dict(zip(ANSWER, answer, strict=True)), "probabilities": probabilities}
        return record | {"error": one.error, "model": self.model}

    def encode(self, one: Recording) -> bytes:
        return escape(json.dumps(self.record(one), ensure_ascii=False) + "\n").encode()

    def parse(self, lines: Iterable[bytes]) -> Iterator[tuple[str, bool, bytes]]:
        """File, whether it has an error, and bytes of each row. Raises ValueError for a line that is no row."""
        for line in lines:
            record = json.loads(line)
            if not isinstance(record, dict) or not {"file", "error"} <= record.keys():
                raise ValueError("not a row of this table")
            yield record["file"], record["error"] is not None, line

    def extract(self, out: Path, rows: Path) -> None:
        """Copy the rows of a complete table. Raises OSError."""
        shutil.copyfile(out, rows)


class CsvTable(JsonLinesTable):
    """Comma-separated values with a header."""

    header = ",".join(COLUMNS).encode() + b"\n"

    def encode(self, one: Recording) -> bytes:
        record, text = self.record(one), io.StringIO(newline="")
        probabilities = record.pop("probabilities") or [None] * len(PROBABILITIES)
        file, *answer, error, model = record.values()
        csv.writer(text).writerow([file, *map(_format, answer + probabilities), error, model])
        # With its own line end, \r\n, the writer quotes names that hold either of both.
        return escape(text.getvalue()[:-2] + "\n").encode()

    def parse(self, lines: Iterable[bytes]) -> Iterator[tuple[str, bool, bytes]]:
        read: list[bytes] = []  # a name may hold line ends

        def decode() -> Iterator[str]:
            for line in lines:
                read.append(line)
                yield line.decode()

        for fields in csv.reader(decode(), strict=True):
            if len(fields) != len(COLUMNS):
                raise ValueError("not a row of this table")
            yield fields[0], fields[COLUMNS.index("error")] != "", b"".join(read)
            read.clear()


class ParquetTable(CsvTable):
    """CSV while it grows, Parquet when it is complete."""

    def convert(self, rows: Path, out: Path) -> Path:
        """Write complete CSV as Parquet, a block at a time; returns `out`. Raises OSError."""
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet

        options = arrow_csv.ConvertOptions(column_types=_schema(), null_values=[""], strings_can_be_null=True)
        layout = arrow_csv.ParseOptions(newlines_in_values=True)
        with (
            arrow_csv.open_csv(rows, parse_options=layout, convert_options=options) as batches,
            parquet.ParquetWriter(out, batches.schema, compression="zstd") as writer,
        ):
            for batch in batches:
                writer.write_batch(batch)
        return out

    def extract(self, out: Path, rows: Path) -> None:
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet

        with rows.open("wb") as file, parquet.ParquetFile(out) as table:
            file.write(self.header)
            options = arrow_csv.WriteOptions(include_header=False)
            with arrow_csv.CSVWriter(file, _schema(), write_options=options) as writer:
                for batch in table.iter_batches():
                    writer.write_batch(batch)


TABLES = {".csv": CsvTable, ".jsonl": JsonLinesTable, ".parquet": ParquetTable}


def table_for(out: Path, model: str) -> JsonLinesTable:
    """The table that the suffix of `out` names. Raises BatchError for another, MissingExtraError without pyarrow."""
    suffix = out.suffix.lower()
    if suffix not in TABLES:
        raise BatchError(f"{out} ends in {suffix or 'no suffix'!r}: expected one of {', '.join(TABLES)}")
    if suffix == ".parquet":
        require(f"{out}", ("pyarrow",), "parquet")
    return TABLES[suffix](model)


def escape(name: str) -> str:
    """A name as UTF-8 can hold it: the surrogates of bytes that are not UTF-8 as text."""
    return name.encode(errors="backslashreplace").decode()


def sort_key(name: str) -> str:
    """Names sort by their parts, so that the files of a folder stay together."""
    return escape(name).replace(os.sep, "\0")


def _format(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.{DECIMALS}f}"
    return str(value).lower() if isinstance(value, bool) else value


def _schema() -> Any:
    import pyarrow as arrow

    types = dict.fromkeys(("file", "word", "error", "model"), arrow.string())
    types |= {"predicted_digit": arrow.int8(), "is_digit": arrow.bool_()}
    return arrow.schema([(name, types.get(name, arrow.float32())) for name in COLUMNS])
