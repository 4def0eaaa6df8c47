"""Versions added, promoted, rolled back and pruned, damaged ones refused; killed: see test_version_crashes.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from digit_detector.errors import ConfigError, ModelError
from digit_detector.versions import (
    Promotion,
    Promotions,
    Version,
    numbers,
    read_promotions,
    state_of,
    version_folder,
    whole_version,
)
from ml_training.deploy.version_store import add, promote, prune, record, roll_back, settle

KILLED = Path(__file__).with_name("killed.py")
Make = Callable[..., Version]


def promoted(folder: Path) -> int | None:
    return read_promotions(folder).promoted


def own(folder: Path) -> str:
    """What answers."""
    return (folder / "model.onnx").read_text(encoding="utf-8")


# --- adding and promoting ------------------------------------------------------------------------


def test_a_training_becomes_a_version_and_answers(make: Make, folder: Path) -> None:
    version = make("one")
    assert (version.number, version.parent) == (1, None)
    assert version.origin.data_hash == "ab" * 32
    assert version.metrics["official"]["tiny"]["accuracy"] == 0.9
    assert version == whole_version(folder, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["best_model.pt", "model.onnx", "scaler.pkl", "versions"]
    for name in version.files:
        assert (folder / name).read_bytes() == (version_folder(folder, 1) / name).read_bytes()
    assert not state_of(folder).damaged


def test_a_version_follows_the_one_that_was_promoted_when_it_was_made(make: Make, folder: Path) -> None:
    assert [make(word).parent for word in ("one", "two")] == [None, 1]
    promote(folder, 1)
    assert make("three", promote=False).parent == 1
    assert (promoted(folder), own(folder)) == (1, "one")
    assert make("four").parent == 1


def test_what_only_other_versions_have_goes_and_what_is_nobodys_stays(
    make: Make, folder: Path, killed: ModuleType, tmp_path: Path
) -> None:
    make("one")
    (folder / "checkpoint_epoch_001.pt").write_bytes(b"")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "model.onnx").write_text("bare", encoding="utf-8")
    add(folder, bare, killed.origin(), {})
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint_epoch_001.pt", "model.onnx", "versions"]
    promote(folder, 1)
    assert (folder / "scaler.pkl").read_text(encoding="utf-8") == "scaler.pkl of one"


def test_writing_into_the_files_that_answer_reaches_no_version(make: Make, folder: Path) -> None:
    make("one")
    with (folder / "model.onnx").open("r+b") as file:  # in place, as cp and rsync do
        file.write(b"###")
    whole_version(folder, 1)
    (fault,) = state_of(folder).faults
    assert "model.onnx in " in fault
    assert "is not of version 1: digits versions promote 1 mends it" in fault
    promote(folder, 1)
    assert own(folder) == "one"
    assert len(read_promotions(folder).history) == 1


def test_a_run_resumed_after_its_end_is_no_second_version(make: Make, folder: Path) -> None:
    make("one")
    make("two", promote=False)
    (folder / "model.onnx").unlink()
    assert make("one", again=True).number == 1
    assert (numbers(folder), own(folder)) == ([1, 2], "one")
    assert make("one").number == 3  # trained anew it is one more, be it the same


def test_numbers_are_never_given_twice(make: Make, folder: Path) -> None:
    for word in ("one", "two", "three"):
        make(word)
    (version_folder(folder, 3)).rename(folder / "elsewhere")
    assert make("four").number == 4
    (folder / "versions" / "7").mkdir()  # whatever that is
    assert make("five").number == 8


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "description", "no description", "renamed"])
def test_damaged_versions_are_refused_and_nothing_changes(make: Make, folder: Path, damage: str) -> None:
    make("one")
    make("two")
    place = version_folder(folder, 1)
    if damage == "flipped":
        (place / "best_model.pt").write_text("best_model.pt of onf", encoding="utf-8")
    elif damage == "cut":
        (place / "model.onnx").write_bytes(b"on")
    elif damage == "gone":
        (place / "scaler.pkl").unlink()
    elif damage == "description":
        path = place / "version.json"
        path.write_text(path.read_text(encoding="utf-8").replace("0.9", "1.0"), encoding="utf-8")
    elif damage == "no description":
        (place / "version.json").unlink()
    else:
        place.rename(folder / "versions" / "5")
    number = 5 if damage == "renamed" else 1
    for change in (lambda: promote(folder, number), lambda: roll_back(folder)):
        with pytest.raises(ModelError, match=r"versions.(1|5)|none before it"):
            change()
    assert (promoted(folder), own(folder)) == (2, "two")
    assert [row.number for row in state_of(folder).rows if row.faults] == [number]


# --- rolling back --------------------------------------------------------------------------------


def test_rollbacks_go_back_step_by_step(make: Make, folder: Path) -> None:
    for word in ("one", "two", "three"):
        make(word)
    promote(folder, 1)
    assert [(roll_back(folder).promoted, own(folder)) for _ in range(3)] == [(3, "three"), (2, "two"), (1, "one")]
    with pytest.raises(ModelError, match=r"version 1 is promoted in .*, and none before it"):
        roll_back(folder)
    assert make("four").parent == 1
    assert roll_back(folder).promoted == 1
    assert [p.how for p in read_promotions(folder).history][-3:] == ["rollback", "training", "rollback"]


def test_a_rollback_passes_over_what_was_deleted(make: Make, folder: Path) -> None:
    for word in ("one", "two", "three"):
        make(word)
    (version_folder(folder, 2)).rename(folder / "elsewhere")
    said: list[str] = []
    assert roll_back(folder, said.append).promoted == 1
    assert said == ["version 2 was promoted before, but is gone"]


@pytest.mark.parametrize(
    ("history", "before"),
    [
        ("", []),
        ("1", []),
        ("1 2 3", [2, 1]),
        ("1 2 3 b2", [1]),
        ("1 2 1 3", [1, 2, 1]),
        ("1 2 b1 3 b1 4", [1]),
        ("b1 2", [1]),
    ],
)
def test_what_rollbacks_lead_to(history: str, before: list[int]) -> None:
    entries = [Promotion(int(w.strip("b")), "", "rollback" if "b" in w else "promote") for w in history.split()]
    assert Promotions(tuple(entries)).before() == before


# --- pruning -------------------------------------------------------------------------------------


def test_pruning_shows_first_and_never_takes_the_promoted_one(make: Make, folder: Path) -> None:
    for word in ("one", "two", "three", "four", "five"):
        make(word)
    promote(folder, 2)
    would = prune(folder, 2)
    assert (would.goes, would.stays) == ((1, 3), (2, 4, 5))
    assert numbers(folder) == [1, 2, 3, 4, 5]
    assert prune(folder, 2, really=True) == would
    assert numbers(folder) == [2, 4, 5]
    assert prune(folder, 2, really=True).goes == ()
    assert own(folder) == "two"


def test_pruning_counts_whole_versions_and_spares_what_answers(make: Make, folder: Path) -> None:
    for word in ("one", "two", "three", "four"):
        make(word)
    (version_folder(folder, 4) / "model.onnx").write_bytes(b"")
    assert prune(folder, 1).goes == (1, 2)  # 4 is damaged, so 3 is the newest
    (folder / "versions" / "promoted.json").unlink()
    promote(folder, 1)
    (folder / "versions" / "promoted.json").unlink()
    assert prune(folder, 1).goes == (2,)
    with pytest.raises(ConfigError, match="keep: expected 1 or more, got 0"):
        prune(folder, 0)


# --- a damaged promoted.json ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "{}", '{"format": 2}', '{"format": 1}',
        '{"format": 1, "promoted": 1, "finished": true, "history": []}',
        '{"format": 1, "promoted": 1, "finished": true, "history": [{"version": "x", "when": "", "how": ""}]}',
    ],
)  # fmt: skip
def test_a_damaged_promoted_json_is_told_and_written_anew(make: Make, folder: Path, content: str) -> None:
    make("one")
    make("two")
    (folder / "versions" / "promoted.json").write_text(content, encoding="utf-8")
    assert any("promoted.json" in fault for fault in state_of(folder).faults)
    for refused in (lambda: roll_back(folder), lambda: prune(folder, 1, really=True)):
        with pytest.raises(ModelError, match=r"promoted\.json"):
            refused()
    said: list[str] = []
    version = make("three", promote=False, report=said.append)  # a training is not lost
    assert (version.number, version.parent, numbers(folder)) == (3, None, [1, 2, 3])
    promote(folder, 1, said.append)
    assert "the history of promotions begins anew" in said[-1]
    assert (own(folder), state_of(folder).damaged) == ("one", False)


def test_a_promoted_version_that_is_gone_is_told(make: Make, folder: Path) -> None:
    make("one")
    make("two")
    (version_folder(folder, 2)).rename(folder / "elsewhere")
    assert state_of(folder).faults == ("version 2 is promoted, but gone: promote another, or roll back",)
    assert roll_back(folder).promoted == 1


# --- metrics -------------------------------------------------------------------------------------


def test_figures_are_added_by_protocol_and_recordings(make: Make, folder: Path) -> None:
    make("one")
    record(folder, 1, "strangers", "people", {"accuracy": 0.7, "ece": float("nan")})
    record(folder, 1, "strangers", "others", {"accuracy": 0.6})
    record(folder, 1, "strangers", "people", {"accuracy": 0.8})
    version = whole_version(folder, 1)
    assert version.metrics["strangers"] == {"people": {"accuracy": 0.8}, "others": {"accuracy": 0.6}}
    assert version.metrics["official"]["tiny"]["clips"] == 100
    path = version_folder(folder, 1) / "version.json"
    path.write_text(path.read_text(encoding="utf-8").replace("0.8", "0.9"), encoding="utf-8")
    with pytest.raises(ModelError, match="is not as it was written"):
        record(folder, 1, "strangers", "people", {"accuracy": 1.0})  # nobody seals what was tampered with


# --- nothing there -------------------------------------------------------------------------------


def test_where_there_are_no_versions_nothing_is_made(folder: Path) -> None:
    settle(folder)
    for change in (lambda: promote(folder, 1), lambda: roll_back(folder), lambda: prune(folder, 1)):
        with pytest.raises(ModelError, match="has no versions: train one, or name another folder"):
            change()
    assert not folder.exists()
