"""Atomic writing: all or nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ml_training.errors import TrainingError
from ml_training.utils.files import write_atomically, write_json


def test_writes_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_refusal_is_our_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"here before")
    with pytest.raises(TrainingError, match=r"could not write .*--log_dir"):
        write_atomically(tmp_path / "taken" / "file.bin", b"new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(TrainingError, match="could not write"):
        write_atomically(tmp_path / "folder", b"new")
    assert (tmp_path / "taken").read_bytes() == b"here before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "taken"]


def test_a_full_disk_keeps_the_last_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.bin"
    write_atomically(path, b"good")

    def half_written(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(TrainingError, match="No space left on device; make room"):
        write_atomically(path, b"better")
    assert path.read_bytes() == b"good"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_null_for_numbers_that_are_none(tmp_path: Path) -> None:
    values = {"a": math.nan, "b": [1.5, -math.inf], "c": {"d": (math.inf, "x")}, "e": "\udcff"}
    write_json(tmp_path / "deep" / "v.json", values)
    text = (tmp_path / "deep" / "v.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": {"d": [None, "x"]}, "e": "\udcff"}
