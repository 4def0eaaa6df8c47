"""Rows: what is written can be read by anybody, names come back as they were, and a torn end is noticed."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digit_detector.errors import BatchError, MissingExtraError
from digit_detector.labels import LABELS
from ml_training.predict.tables import (
    COLUMNS,
    PROBABILITIES,
    CsvTable,
    JsonLinesTable,
    Row,
    escaped,
    table_for,
    unescaped,
)

# Bytes that are no text become U+DC80 to U+DCFF; the rest is what makes escapes and quotes hard.
NAMES = st.text(st.sampled_from([*"\\udc80ff7a\"',\n\r é七", "\udc80", "\udcff", "\u2028"]), min_size=1, max_size=12)
ODD = [
    "plain.wav",
    'a,"b"\n.wav',
    "\r\n",
    "\\udc80.wav",
    "\udc80.wav",
    "\\\udc80",
    "七.wav",
    "\ufeff",
    " x ",
    "=1+1.wav",
]
MODEL = "models/mfcc, mine/model.onnx"


@given(NAMES)
def test_any_name_is_valid_utf_8_and_comes_back(name: str) -> None:
    assert unescaped(escaped(name).encode().decode()) == name


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_two_names_never_look_the_same(names: list[str]) -> None:
    assert escaped(names[0]) != escaped(names[1])


def test_names_that_are_text_stay_as_they_are() -> None:
    assert escaped("a\\b\\n\n七.wav") == "a\\b\\n\n七.wav"
    assert escaped(os.fsdecode(b"\x80.wav")) == "\\udc80.wav"
    assert escaped("\\udc80.wav") == "\\\\udc80.wav"


def rows_of(answered: Callable[[str], Row]) -> list[Row]:
    return [answered(name) if n % 3 else Row(name, error=f"cannot read {name}: gone") for n, name in enumerate(ODD)]


def test_csv_is_read_by_others(answered: Callable[[str], Row]) -> None:
    table, rows = CsvTable(MODEL), rows_of(answered)
    content = table.header + b"".join(map(table.encode, rows))
    read = list(csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True))
    assert tuple(read[0]) == COLUMNS
    for row, fields in zip(rows, read, strict=True):
        assert unescaped(fields["file"]) == row.file
        assert fields["model"] == MODEL
        if row.probabilities is None:
            assert unescaped(fields["error"]) == row.error
            assert {fields[name] for name in COLUMNS[1:-2]} == {""}
            continue
        shares = [float(fields[name]) for name in PROBABILITIES]
        assert shares == pytest.approx(row.probabilities, abs=1e-6)
        digit = int(fields["predicted_digit"])
        assert digit == int(np.argmax(shares))
        assert fields["word"] == LABELS[digit]
        assert fields["confidence"] == fields[f"probability_{digit}"]
        assert fields["digit_score"] == fields["probability_0"]
        assert (fields["is_digit"], fields["error"]) == ("true" if shares[0] >= 0.5 else "false", "")


def test_json_lines_are_read_by_others(answered: Callable[[str], Row]) -> None:
    table, rows = JsonLinesTable(MODEL), rows_of(answered)
    lines = b"".join(map(table.encode, rows)).decode().split("\n")
    assert lines.pop() == ""
    for row, line in zip(rows, lines, strict=True):
        values = json.loads(line)
        assert (values["file"], values["error"], values["model"]) == (row.file, row.error, MODEL)
        if row.probabilities is None:
            assert values["predicted_digit"] is values["is_digit"] is values["probabilities"] is None
        else:
            assert values["probabilities"] == pytest.approx(row.probabilities, abs=1e-6)
            assert values["word"] == LABELS[values["predicted_digit"]]
            assert values["is_digit"] is (row.digit_score is not None and row.digit_score >= 0.5)


@pytest.mark.parametrize("kind", [CsvTable, JsonLinesTable])
def test_wherever_a_table_is_cut_off_its_whole_rows_are_found(
    kind: type[CsvTable] | type[JsonLinesTable], answered: Callable[[str], Row]
) -> None:
    table, rows = kind(MODEL), rows_of(answered)
    encoded = list(map(table.encode, rows))
    ends = np.cumsum([len(record) for record in encoded])
    content = b"".join(encoded)
    for cut in range(len(content) + 1):
        lines = io.BytesIO(content[:cut]).readlines()
        found = []
        for record in table.records(lines):
            try:
                found.append(table.decode(record))
            except ValueError:
                break
        assert len(found) == np.searchsorted(ends, cut, side="right")
        assert [(done.file, done.failed) for done in found] == [
            (row.file, row.error is not None) for row in rows[: len(found)]
        ]


def test_the_suffix_decides_and_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(table_for(Path("x.CSV"), ""), CsvTable)
    assert isinstance(table_for(Path("x.jsonl"), ""), JsonLinesTable)
    with pytest.raises(BatchError, match=r"x\.txt ends in '\.txt': expected one of \.csv, \.jsonl, \.parquet"):
        table_for(Path("x.txt"), "")
    with pytest.raises(BatchError, match="ends in 'no suffix'"):
        table_for(Path("x"), "")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"Parquet\) needs the \[parquet\] extra"):
        table_for(Path("x.parquet"), "")


def test_parquet_has_the_columns_of_the_csv_and_is_read_again(answered: Callable[[str], Row], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table, rows = table_for(Path("x.parquet"), MODEL), rows_of(answered)
    records = list(map(table.encode, rows))
    table.write(tmp_path / "x.parquet", records)
    again = b"".join(table.read(tmp_path / "x.parquet")).splitlines()
    assert list(map(json.loads, again)) == list(map(json.loads, records))
    read = parquet.read_table(tmp_path / "x.parquet")
    assert tuple(read.column_names) == COLUMNS
    types = {field.name: str(field.type) for field in read.schema}
    assert (types["predicted_digit"], types["is_digit"], types["probability_3"]) == ("int8", "bool", "float")
    for row, fields in zip(rows, read.to_pylist(), strict=True):
        assert unescaped(fields["file"]) == row.file
        assert (fields["error"] is None) == (row.error is None)
        if row.probabilities is None:
            assert fields["probability_0"] is fields["is_digit"] is None
        else:
            assert [fields[name] for name in PROBABILITIES] == pytest.approx(row.probabilities, abs=1e-6)
