"""Rows: what is written can be read by other programs, names come back as they were, a torn end is noticed."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from digit_detector.errors import BatchError, MissingExtraError
from digit_detector.labels import LABELS
from ml_training.predict.tables import COLUMNS, PROBABILITIES, CsvTable, JsonLinesTable, Recording, escape, table_for

ODD = [
    "plain.wav",
    'a,"b"\n.wav',
    "\r\n",
    "\r",
    "a\\b\n\n",
    "\udc80.wav",
    "\\\udc80",
    "七.wav",
    "\ufeff",
    " x ",
    "=1+1",
]
MODEL = "models/mfcc, mine/model.onnx"


def rows_of(answered):
    return [
        answered(name) if n % 3 else Recording(name, error=f"cannot read {name}: gone") for n, name in enumerate(ODD)
    ]


def test_a_name_is_escaped_only_where_it_is_no_utf_8():
    assert escape("a\\b\\n\n七.wav") == "a\\b\\n\n七.wav"
    assert escape(os.fsdecode(b"\x80.wav")) == escape("\\udc80.wav") == "\\udc80.wav"


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_a_table_is_read_by_other_programs(name, answered, read_rows, tmp_path):
    if name == "x.parquet":
        pytest.importorskip("pyarrow")
    table, rows, out = table_for(Path(name), MODEL), rows_of(answered), tmp_path / name
    content = table.header + b"".join(map(table.encode, rows))
    out.write_bytes(content)
    if name == "x.parquet":
        table.convert(out, tmp_path / "converted")
        (tmp_path / "converted").replace(out)
    read = read_rows(out)
    for row, fields in zip(rows, read, strict=True):
        assert escape(fields["file"]) == escape(row.name)
        assert fields["model"] == MODEL
        if name == "x.jsonl":
            shares = fields.pop("probabilities")
            fields |= dict.fromkeys(PROBABILITIES) if shares is None else dict(zip(PROBABILITIES, shares, strict=True))
        assert sorted(fields) == sorted(COLUMNS)
        if row.probabilities is None:
            assert escape(fields["error"]) == escape(row.error or "")
            assert {fields[column] for column in COLUMNS[1:-2]} <= {"", None}
            continue
        shares = [float(fields[column]) for column in PROBABILITIES]
        assert shares == pytest.approx(row.probabilities, abs=1e-6)
        digit = int(fields["predicted_digit"])
        assert (digit, fields["word"]) == (int(np.argmax(shares)), LABELS[digit])
        assert fields["confidence"] == fields[f"probability_{digit}"]
        assert fields["digit_score"] == fields["probability_0"]
        assert str(fields["is_digit"]).lower() == str(shares[0] >= 0.5).lower()
        assert fields["error"] in ("", None)
    table.extract(out, tmp_path / "again")
    again = list(table.parse(io.BytesIO((tmp_path / "again").read_bytes()[len(table.header) :])))
    assert [(escape(file), failed) for file, failed, _ in again] == [(escape(r.name), bool(r.error)) for r in rows]


def test_the_suffix_chooses_and_others_are_refused(monkeypatch):
    assert type(table_for(Path("x.CSV"), "")) is CsvTable
    assert type(table_for(Path("x.jsonl"), "")) is JsonLinesTable
    for name, found in (("x.txt", "'.txt'"), ("x", "'no suffix'")):
        with pytest.raises(BatchError, match=f"{found}: expected one of .csv, .jsonl, .parquet"):
            table_for(Path(name), "")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"\[parquet\]"):
        table_for(Path("x.parquet"), "")
