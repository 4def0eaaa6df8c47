"""Versions on a full disk, written by several processes at once, and killed at every step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from digit_detector.errors import TrainingError
from digit_detector.versions import (
    Promotions,
    Version,
    numbers,
    read_promotions,
    read_version,
    state_of,
    version_folder,
)
from ml_training.deploy import version_store
from ml_training.deploy.version_store import add, settle

KILLED = Path(__file__).with_name("killed.py")
Make = Callable[..., Version]


def promoted(folder: Path) -> int | None:
    return read_promotions(folder).promoted


def own(folder: Path) -> str:
    """What answers."""
    return (folder / "model.onnx").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="no limits on files")
@pytest.mark.parametrize("action", ["add", "promote"])
def test_a_full_disk_is_told_and_changes_nothing(
    make: Make, folder: Path, killed: ModuleType, tmp_path: Path, action: str
) -> None:
    make("one")
    make("two")
    large = tmp_path / "large"
    large.mkdir()
    (large / "best_model.pt").write_bytes(b"x" * 50_000)
    number = add(folder, large, killed.origin(), {}, promote=False).version.number
    code = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(KILLED.parent)!r})
import killed
from ml_training.deploy import version_store
from digit_detector.errors import TrainingError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    if {action!r} == "add":
        version_store.add(Path({str(folder)!r}), Path({str(large)!r}), killed.origin(), {{}})
    else:
        version_store.promote(Path({str(folder)!r}), {number})
except TrainingError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "could not " in done.stdout
    assert "File too large; make room" in done.stdout
    assert (promoted(folder), own(folder), numbers(folder)) == (2, "two", [1, 2, 3])
    assert not state_of(folder).damaged
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]


def test_many_at_once_take_numbers_of_their_own(make: Make, folder: Path, killed: ModuleType, tmp_path: Path) -> None:
    make("one")
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(KILLED.parent)!r})
import killed
from ml_training.deploy import version_store
who = sys.argv[1]
made = Path({str(tmp_path)!r}) / f"made_by_{{who}}"
made.mkdir()
for turn in range(10):
    for name in ("best_model.pt", "model.onnx"):
        (made / name).write_text(f"{{who}} {{turn}}")
    version_store.add(Path({str(folder)!r}), made, killed.origin(weights_hash=f"{{who}} {{turn}}"), {{}})
"""
    running = [subprocess.Popen([sys.executable, "-c", code, who]) for who in "abc"]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    assert numbers(folder) == list(range(1, 32))
    state = state_of(folder)
    assert not state.damaged
    words = [row.version.origin.weights_hash for row in state.rows if row.version]
    assert sorted(words[1:]) == sorted(f"{who} {turn}" for who in "abc" for turn in range(10))
    assert own(folder) == words[-1]
    assert [row.version.parent for row in state.rows if row.version] == [None, *range(1, 31)]


@pytest.mark.skipif(os.name == "nt", reason="no fork, no SIGKILL")
@pytest.mark.parametrize(
    ("action", "ends"),
    [
        ("add", {(2, (1, 2)), (2, (1, 2, 3)), (3, (1, 2, 3))}),
        ("add_only", {(2, (1, 2)), (2, (1, 2, 3))}),
        ("promote", {(2, (1, 2)), (1, (1, 2))}),
        ("rollback", {(2, (1, 2)), (1, (1, 2))}),
        ("prune", {(2, (1, 2)), (2, (2,))}),
        ("record", {(2, (1, 2))}),
    ],
)
def test_killed_anywhere_nothing_is_left_half_done(
    make: Make, tmp_path: Path, action: str, ends: set[tuple[int, tuple[int, ...]]]
) -> None:
    place = tmp_path / "killing"
    base = place / "base"
    make("one", base)
    make("two", base)
    make("three", tmp_path / "unused")
    (tmp_path / "made_three").rename(place / "made")
    done = subprocess.run(
        [sys.executable, str(KILLED), str(place), action], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 15
    assert [f["killed"] for f in found] == [True] * (len(found) - 1) + [False]
    words = {1: "one", 2: "two", 3: "three"}
    for f in found:
        assert not f["damaged"], f
        assert f["answers_as_promoted"], f
        assert f["model"] == words[f["promoted"]], f
        names = {"best_model.pt", "model.onnx", "scaler.pkl"}
        versions = {f"versions/{n}/{name}" for n in f["numbers"] for name in (*names, "version.json")}
        assert set(f["files"]) == names | versions | {"versions/promoted.json", "versions/.lock"}, f
    assert {(f["promoted"], tuple(f["numbers"])) for f in found} == ends
    if action == "record":
        assert {tuple(f["metrics"][0]) for f in found} == {("official",), ("noise", "official")}


def test_a_promotion_that_cannot_be_finished_is_taken_back(make: Make, folder: Path) -> None:
    make("one")
    make("two")
    version_store._write_promotions(folder, Promotions(read_promotions(folder).history, finished=False))
    (version_folder(folder, 2) / "model.onnx").write_bytes(b"")
    said: list[str] = []
    settle(folder, said.append)
    assert said[0].startswith("version 2 is not promoted after all: ")
    assert (promoted(folder), own(folder)) == (1, "one")
    assert read_version(folder, 2).number == 2


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_who_was_killed_with_the_lock_in_hand_holds_nobody_up(make: Make, folder: Path, tmp_path: Path) -> None:
    make("one")
    code = (
        "import sys, time; from pathlib import Path; from ml_training.utils.locks import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    lock = folder / "versions" / version_store.LOCK
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(TrainingError, match=r"was held by another process for 0\.2 seconds: wait until"),
            version_store.locked(lock, patience=0.2),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
    assert make("two").number == 2
