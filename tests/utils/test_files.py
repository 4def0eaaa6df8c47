"""Atomic writing: all or nothing."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

import digit_detector
from digit_detector.errors import ConfigError, TrainingError
from digit_detector.files import check_models_dir, write_atomically, write_json
from digit_detector.labels import PIPELINES


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


# --- folders of models ---------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["pretrained", None, "below", "link"])
def test_the_models_that_ship_take_no_others(
    named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = Path(digit_detector.__file__).parent / "pretrained"
    (tmp_path / "link").symlink_to(shipped)
    places = {"pretrained": "pretrained", None: shipped, "below": shipped / "more", "link": "link"}
    with pytest.raises(ConfigError, match="are the models that ship"):
        check_models_dir(places[named], PIPELINES)


def test_a_folder_of_ones_own_by_that_name_is_given_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_models_dir("./models", PIPELINES)
    check_models_dir(tmp_path / "pretrained", PIPELINES)
    assert not list(tmp_path.iterdir())


def test_a_file_and_a_locked_folder_take_no_models(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"models_dir: .*file is a file, expected a folder"):
        check_models_dir(tmp_path / "file" / "models", PIPELINES)
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(ConfigError, match=r"locked cannot be written to"):
        check_models_dir(tmp_path / "locked", PIPELINES)
