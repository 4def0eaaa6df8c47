"""Versions read and checked: what is refused, which file answers, what is told."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from digit_detector.errors import ModelError
from digit_detector.versions import (
    Promotions,
    Version,
    answering_file,
    any_there,
    find,
    in_place,
    numbers,
    read_file,
    read_promotions,
    read_version,
    sealed,
    state_of,
    version_folder,
    whole_version,
)
from ml_training.deploy import version_store
from ml_training.deploy.version_tables import compared, differences, list_values, listed, row_values, shown

Make = Callable[..., Version]


def rewrite(folder: Path, which: int, **changes: Any) -> None:
    """Edit a description and seal it, as somebody would who knows how."""
    path = version_folder(folder, which) / "version.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(sealed({**values, **changes})), encoding="utf-8")


def test_a_description_says_everything_and_comes_back_the_same(make: Make, folder: Path) -> None:
    version = make("one")
    values = json.loads((version_folder(folder, 1) / "version.json").read_text(encoding="utf-8"))
    assert {"number", "created", "parent", "data_hash", "settings", "git_commit", "metrics", "files"} <= values.keys()
    assert values["files"]["model.onnx"]["bytes"] == 3
    assert values["settings"]["augmentation"] == {"shift": 1.0}
    assert Version.from_dict(values) == version


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", ".hidden", "a/b", "", "version.json", ".."])
def test_a_file_that_would_lie_elsewhere_is_refused(make: Make, folder: Path, name: str) -> None:
    make("one")
    rewrite(folder, 1, files={name: {"bytes": 1, "sha256": ""}})
    with pytest.raises(ModelError, match=r"describes no version .*is no name of a file"):
        read_version(folder, 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": 2}, "has format 2, this program reads 1: use the one that wrote it"),
        ({"number": 4}, "is of version 4, not 1: put the folder back where it was"),
        ({"files": None}, "describes no version"),
        ({"metrics": {"official": 3}}, "describes no version"),
        ({"parent": "x"}, "describes no version"),
    ],
)
def test_what_a_description_cannot_be(make: Make, folder: Path, changes: dict[str, Any], expected: str) -> None:
    make("one")
    rewrite(folder, 1, **changes)
    with pytest.raises(ModelError, match=expected):
        read_version(folder, 1)


def test_a_missing_version_is_told_with_those_there(make: Make, folder: Path) -> None:
    with pytest.raises(ModelError, match="has no version 1, none at all: see digits versions list"):
        read_version(folder, 1)
    for word in ("one", "two"):
        make(word)
    with pytest.raises(ModelError, match="has no version 3, only 1, 2"):
        whole_version(folder, 3)
    with pytest.raises(ModelError, match=r"has no model\.int8, only best_model\.pt, model\.onnx, scaler\.pkl"):
        read_file(folder, read_version(folder, 1), "model.int8")


def test_what_lies_around_is_no_version(make: Make, folder: Path) -> None:
    assert not any_there(folder)
    make("one")
    for name in ("01", "0", "x", "2.bak", ".3", "1234567890"):
        (folder / "versions" / name).mkdir()
    assert numbers(folder) == [1]
    assert any_there(folder)


def test_while_a_promotion_is_not_finished_the_version_itself_answers(make: Make, folder: Path) -> None:
    assert answering_file(folder, "model.onnx") == folder / "model.onnx"
    make("one")
    make("two")
    assert answering_file(folder, "model.onnx") == folder / "model.onnx"
    pending = Promotions(read_promotions(folder).history, finished=False)
    version_store._write_promotions(folder, pending)
    (folder / "model.onnx").write_text("one", encoding="utf-8")
    assert answering_file(folder, "model.onnx") == version_folder(folder, 2) / "model.onnx"
    assert state_of(folder).faults == (f"the files of version 2 have not all been copied to {folder}",)
    (folder / "versions" / "promoted.json").write_text("{", encoding="utf-8")
    assert answering_file(folder, "model.onnx") == folder / "model.onnx"


def test_files_are_known_by_their_hashes(make: Make, folder: Path) -> None:
    first = make("one")
    make("two", promote=False)
    assert find(folder, "model.onnx", first.files["model.onnx"].sha256) == [1]
    assert find(folder, "model.onnx", "0" * 64) == []
    assert in_place(folder) == 1
    (folder / "versions" / "promoted.json").unlink()
    assert state_of(folder).faults == (f"the files in {folder} are of version 1, which is not promoted",)
    (folder / "model.onnx").write_bytes(b"mine")
    assert in_place(folder) is None


# --- what is told --------------------------------------------------------------------------------


def test_a_list_has_a_row_for_each_and_says_what_is_damaged(make: Make, folder: Path) -> None:
    for word in ("one", "two", "three"):
        make(word)
    version_store.promote(folder, 2)
    (version_folder(folder, 3) / "model.onnx").write_bytes(b"x")
    (version_folder(folder, 1) / "version.json").unlink()
    state = state_of(folder)
    head, titles, three, two, one, *faults = listed("mfcc", folder, state)
    assert head == f"mfcc, {folder}: version 2 is promoted"
    assert titles.split()[:2] == ["version", "made"]
    assert three.endswith("cccccccccccc, damaged")
    assert two.startswith("*  2 ")
    assert "official 90.00 % of 100" in two
    assert one.split() == ["1", "damaged"]
    assert [fault.partition(":")[0].rsplit("/", 2)[-2:] for fault in faults] == [
        ["1", "version.json is missing"],
        ["3", "model.onnx is damaged"],
    ]
    values = list_values("mfcc", folder, state)
    assert json.loads(json.dumps(values)) == values
    assert [v["number"] for v in values["versions"]] == [1, 2, 3]
    assert [bool(v["faults"]) for v in values["versions"]] == [True, False, True]


def test_one_version_is_shown_whole(make: Make, folder: Path) -> None:
    version = make("one")
    (row,) = state_of(folder).rows
    said = "\n".join(shown(folder, version, row))
    for part in ("1 of mfcc, promoted", "parent none", "ab" * 32, "epochs 3", "augmentation.shift", "accuracy 90.00 %",
                 version.files["model.onnx"].sha256):  # fmt: skip
        assert (part in said) == (part != "augmentation.shift"), part  # that one is at its default
    assert row_values(folder, row)["settings"] == version.origin.settings


def test_a_comparison_tells_what_differs_and_every_figure(make: Make, folder: Path) -> None:
    one, two = make("one"), make("two")
    two = dataclasses.replace(
        two, metrics={**two.metrics, "noise": {"tiny": {"accuracy_white_5 dB": 0.5}}},
        origin=dataclasses.replace(two.origin, settings={"epochs": 4, "augmentation": {"shift": 1.0}}),
    )  # fmt: skip
    found = differences([one, two])
    assert found["official, tiny, accuracy"] == [0.9, 0.9]
    assert found["noise, tiny, accuracy_white_5 dB"] == [None, 0.5]
    assert found["setting epochs"] == [3, 4]
    assert found["weights"] == ["one", "two"]
    assert "setting augmentation.shift" not in found
    assert "commit" not in found
    assert "noise, tiny, accuracy_white_5 dB  -" in "\n".join(compared([one, two]))
