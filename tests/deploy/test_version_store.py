"""Versions added, promoted, rolled back, pruned, checked and listed; interruptions are in test_version_crashes.py."""

import hashlib
import json

import pytest

from digit_detector.errors import ConfigError, ModelError
from digit_detector.versions import (
    find_versions,
    read_file,
    read_intact_version,
    read_promotions,
    read_status,
    read_version,
    version_folder,
    version_numbers,
)
from ml_training.deploy.version_store import add_file, promote, prune, record_metrics, recover, roll_back
from ml_training.deploy.version_tables import find_differences, format_comparison, format_list, list_values

NAMES = ["best_model.pt", "model.onnx", "scaler.pkl", "versions"]


def promoted(folder):
    """The promoted version and the content of the model in use."""
    return read_promotions(folder).promoted, (folder / "model.onnx").read_text(encoding="utf-8")


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}))


# --- adding and promoting ------------------------------------------------------------------------


def test_a_training_becomes_a_version_and_is_promoted(make, folder):
    version = make("one")
    assert (version.number, version.parent, version.provenance.data_hash) == (1, None, "ab" * 32)
    assert version == read_intact_version(folder, 1)
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    for name in version.files:
        assert (folder / name).read_bytes() == (version_folder(folder, 1) / name).read_bytes()
    values = json.loads((version_folder(folder, 1) / "version.json").read_text(encoding="utf-8"))
    assert {"number", "created", "parent", "data_hash", "settings", "git_commit", "metrics", "files"} <= values.keys()
    assert not read_status(folder).damaged
    assert find_versions(folder, "model.onnx", hashlib.sha256(b"one").hexdigest()) == [1]


def test_the_parent_is_the_version_promoted_at_that_time(make, folder):
    assert [make(word).parent for word in ("one", "two")] == [None, 1]
    assert promote(folder, 1) == 2
    assert make("three", promote=False).parent == 1
    assert promoted(folder) == (1, "one")
    assert make("four").parent == 1


def test_files_of_other_versions_are_removed_and_checkpoints_stay(make, folder):
    make("one")
    (folder / "checkpoint_epoch_001.pt").write_bytes(b"")
    make("bare", bare=True)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint_epoch_001.pt", "model.onnx", "versions"]
    promote(folder, 1)
    assert (folder / "scaler.pkl").read_text(encoding="utf-8") == "scaler.pkl of one"


def test_a_further_export_is_promoted_with_its_version(make, folder):
    make("one")
    make("two", promote=False)
    assert add_file(folder, 1, "model_int8.onnx", b"int8")
    assert not add_file(folder, 1, "model_int8.onnx", b"another")
    assert (folder / "model_int8.onnx").read_bytes() == b"int8"
    promote(folder, 2)
    assert not (folder / "model_int8.onnx").exists()
    assert add_file(folder, 1, "model.pte", b"program")
    assert not (folder / "model.pte").exists()
    roll_back(folder)
    assert ((folder / "model_int8.onnx").read_bytes(), (folder / "model.pte").read_bytes()) == (b"int8", b"program")
    assert not read_status(folder).damaged


def test_a_changed_copy_is_reported_and_no_version_changes(make, folder):
    make("one")
    with (folder / "model.onnx").open("r+b") as file:  # in place, as cp and rsync do
        file.write(b"###")
    read_intact_version(folder, 1)
    (fault,) = read_status(folder).faults
    assert "model.onnx is not of version 1: digits versions promote 1 fixes it" in fault
    promote(folder, 1)
    assert promoted(folder) == (1, "one")
    assert len(read_promotions(folder).history) == 1


def test_a_run_resumed_after_its_end_is_no_second_version(make, folder):
    make("one")
    make("two", promote=False)
    (folder / "model.onnx").unlink()
    assert make("one", again=True).number == 1
    assert (version_numbers(folder), promoted(folder)) == ([1, 2], (1, "one"))
    assert make("one").number == 3


def test_numbers_are_never_used_twice_and_other_folders_are_ignored(make, folder):
    for word in ("one", "two", "three"):
        make(word)
    version_folder(folder, 3).rename(folder / "moved")
    assert make("four").number == 4
    for name in ("7", "01", "0", "x", "2.bak", ".3", "1234567890"):
        (folder / "versions" / name).mkdir()
    assert version_numbers(folder) == [1, 2, 4, 7]
    assert make("five").number == 8


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "record", "no record", "renamed"])
def test_damaged_versions_are_refused_and_nothing_changes(make, folder, damage):
    make("one")
    make("two")
    place = version_folder(folder, 1)
    if damage == "flipped":
        (place / "best_model.pt").write_text("best_model.pt of onf", encoding="utf-8")
    elif damage == "cut":
        (place / "model.onnx").write_bytes(b"on")
    elif damage == "missing":
        (place / "scaler.pkl").unlink()
    elif damage == "record":
        (place / "version.json").write_text("{", encoding="utf-8")
    elif damage == "no record":
        (place / "version.json").unlink()
    else:
        place.rename(folder / "versions" / "5")
    number = 5 if damage == "renamed" else 1
    for change in (lambda: promote(folder, number), lambda: roll_back(folder)):
        with pytest.raises(ModelError, match=r"versions.(1|5)|none before it"):
            change()
    assert promoted(folder) == (2, "two")
    status = read_status(folder)
    assert [entry.number for entry in status.versions if entry.faults] == [number]
    head, _, *rows = format_list("mfcc", folder, status)
    assert head.endswith("version 2 is promoted")
    assert [row.split()[0] for row in rows] in (["*", "1", "!"], ["5", "*", "!"])
    assert sum("damaged" in row for row in rows[:2]) == 1
    values = list_values("mfcc", folder, status)
    assert json.loads(json.dumps(values)) == values
    assert [bool(version["faults"]) for version in values["versions"]].count(True) == 1


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"format": 2}, "format 2, expected 1"),
        ({"number": 4}, "it describes version 4: rename the folder"),
        ({"files": None}, "is damaged"),
        *[({"files": {name: {"bytes": 1, "sha256": ""}}}, "is not a valid file name")
          for name in ("../model.onnx", "/etc/passwd", ".hidden", "a/b", "", "version.json", "..")],
    ],
)  # fmt: skip
def test_an_invalid_version_json_is_refused(make, folder, changes, fault):
    make("one")
    rewrite(version_folder(folder, 1) / "version.json", **changes)
    with pytest.raises(ModelError, match=fault):
        read_version(folder, 1)


def test_a_missing_version_or_file_is_reported_with_existing_ones(make, folder):
    with pytest.raises(ModelError, match="has no version 1, only none"):
        read_version(folder, 1)
    make("one")
    make("two")
    with pytest.raises(ModelError, match="has no version 3, only 1, 2: see digits versions list"):
        read_intact_version(folder, 3)
    with pytest.raises(ModelError, match=r"has no model\.int8, only best_model\.pt, model\.onnx, scaler\.pkl"):
        read_file(folder, read_version(folder, 1), "model.int8")


def test_a_version_of_release_0_1_is_read(make, folder):
    make("one")
    rewrite(version_folder(folder, 1) / "version.json", sha256="0" * 64)  # its version.json had a checksum
    assert read_intact_version(folder, 1).files.keys() == {"best_model.pt", "model.onnx", "scaler.pkl"}
    assert make("two").parent == 1


# --- rolling back --------------------------------------------------------------------------------


def test_rollbacks_go_back_step_by_step(make, folder):
    for word in ("one", "two", "three"):
        make(word)
    promote(folder, 1)
    assert [(roll_back(folder), promoted(folder)) for _ in range(3)] == [
        ((3, 1), (3, "three")), ((2, 3), (2, "two")), ((1, 2), (1, "one"))
    ]  # fmt: skip
    with pytest.raises(ModelError, match=r"version 1 is promoted in .*, and none before it"):
        roll_back(folder)
    assert make("four").parent == 1
    assert roll_back(folder) == (1, 4)
    assert [p.how for p in read_promotions(folder).history][-3:] == ["rollback", "training", "rollback"]


def test_a_rollback_skips_deleted_versions(make, folder):
    for word in ("one", "two", "three"):
        make(word)
    version_folder(folder, 2).rename(folder / "moved")
    messages: list[str] = []
    assert roll_back(folder, messages.append) == (1, 3)
    assert messages == ["version 2 was promoted before, but is deleted"]
    version_folder(folder, 1).rename(folder / "moved, too")
    assert ["version 1 is promoted, but missing" in fault for fault in read_status(folder).faults] == [True]


# --- pruning, damage, metrics --------------------------------------------------------------------


def test_pruning_keeps_the_newest_intact_versions_and_the_promoted_one(make, folder):
    for word in ("one", "two", "three", "four", "five"):
        make(word)
    promote(folder, 2)
    assert prune(folder, 2, delete=False) == ([1, 3], [2, 4, 5])
    assert version_numbers(folder) == [1, 2, 3, 4, 5]
    (version_folder(folder, 5) / "model.onnx").write_bytes(b"")
    assert prune(folder, 2, delete=False) == ([1], [2, 3, 4, 5])
    assert prune(folder, 1, delete=True) == ([1, 3], [2, 4, 5])
    assert version_numbers(folder) == [2, 4, 5]
    assert prune(folder, 9, delete=True) == ([], [2, 4, 5])
    assert promoted(folder) == (2, "two")
    with pytest.raises(ConfigError, match="keep: expected 1 or more, got 0"):
        prune(folder, 0, delete=False)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1}',
     '{"format": 1, "promoted": 1, "finished": true, "history": []}',
     '{"format": 1, "promoted": 1, "finished": true, "history": [{"version": "x", "when": "", "how": ""}]}'],
)  # fmt: skip
def test_a_damaged_promoted_json_is_reported_and_replaced(make, folder, content):
    make("one")
    make("two")
    (folder / "versions" / "promoted.json").write_text(content, encoding="utf-8")
    assert any("promoted.json" in fault for fault in read_status(folder).faults)
    for refused in (lambda: roll_back(folder), lambda: prune(folder, 1, delete=True)):
        with pytest.raises(ModelError, match=r"promoted\.json"):
            refused()
    version = make("three", promote=False)  # a training is not lost
    assert (version.number, version.parent, version_numbers(folder)) == (3, None, [1, 2, 3])
    promote(folder, 1)
    assert (promoted(folder), read_status(folder).damaged) == ((1, "one"), False)


def test_metrics_are_recorded_and_compared(make, folder):
    make("one")
    make("two")
    record_metrics(folder, 1, "strangers", "people", {"accuracy": 0.7, "ece": float("nan")})
    record_metrics(folder, 1, "strangers", "others", {"accuracy": 0.6})
    record_metrics(folder, 1, "strangers", "people", {"accuracy": 0.8, "data_hash": "h"})
    one, two = (read_intact_version(folder, number) for number in (1, 2))
    assert one.metrics["strangers"] == {"people": {"accuracy": 0.8, "data_hash": "h"}, "others": {"accuracy": 0.6}}
    assert one.metrics["official"]["tiny"]["clips"] == 100
    differences = find_differences([one, two])
    assert differences["metrics.official.tiny.accuracy"] == [0.9, 0.9]
    assert differences["metrics.strangers.people.accuracy"] == [0.8, None]
    assert differences["weights_hash"] == ["one", "two"]
    assert not {"settings.epochs", "git_commit", "metrics.strangers.people.data_hash"} & differences.keys()
    (row,) = (line for line in format_comparison([one, two]) if "people.accuracy" in line)
    assert row.split()[1:] == ["80.00", "%", "-"]


def test_without_versions_nothing_is_created(folder):
    recover(folder)
    for change in (lambda: promote(folder, 1), lambda: roll_back(folder), lambda: prune(folder, 1, delete=False)):
        with pytest.raises(ModelError, match="has no versions: train one, or name another folder"):
            change()
    assert not folder.exists()
