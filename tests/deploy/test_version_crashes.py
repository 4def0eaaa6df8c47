"""Versions on a full disk, written by several processes at once, and killed at every file operation."""

import json
import os
import subprocess
import sys

import pytest

from digit_detector.errors import TrainingError
from digit_detector.versions import promoted_file, read_promotions, read_status, version_folder, version_numbers
from ml_training.deploy import version_store

COMMON = """
import itertools, json, os, resource, shutil, signal, sys
from pathlib import Path
from digit_detector.errors import TrainingError
from digit_detector.versions import promoted_file, read_promotions, read_status, read_version, version_folder
from ml_training.deploy import version_store
folder, made = Path(sys.argv[1]), Path(sys.argv[2])
provenance = read_version(folder, 1).provenance
"""

# Runs an action on copies of the folder, each run killed one file operation later, until one is not killed.
KILLED = """
STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir")
ACTIONS = {
    "add": lambda f: version_store.add(f, made, provenance, {}),
    "add_only": lambda f: version_store.add(f, made, provenance, {}, promote=False),
    "add_file": lambda f: version_store.add_file(f, 2, "model_int8.onnx", b"int8"),
    "promote": lambda f: version_store.promote(f, 1),
    "rollback": version_store.roll_back,
    "prune": lambda f: version_store.prune(f, 1, delete=True),
    "record": lambda f: version_store.record_metrics(f, 1, "noise", "tiny", {"accuracy": 0.5}),
}

def is_killed(step, copy):
    child = os.fork()
    if not child:
        left = itertools.count(step, -1)
        def watch(event, arguments):
            if event in STEPS and str(copy) in str(arguments[0]) and next(left) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        ACTIONS[sys.argv[3]](copy)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)

for step in itertools.count(1):
    copy = folder.parent / f"run_{step}" / folder.name
    shutil.copytree(folder, copy)
    killed = is_killed(step, copy)
    promoted = read_promotions(copy).promoted
    used = promoted_file(copy, "model.onnx").read_bytes()
    consistent = used == (version_folder(copy, promoted) / "model.onnx").read_bytes()
    version_store.recover(copy)
    status = read_status(copy)
    print(json.dumps({
        "killed": killed, "consistent": consistent, "damaged": status.damaged, "promoted": status.promotions.promoted,
        "numbers": [entry.number for entry in status.versions], "model": (copy / "model.onnx").read_text(),
        "metrics": sorted(status.versions[0].version.metrics),
        "files": sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()),
    }))
    shutil.rmtree(copy.parent)
    if not killed:
        break
"""

FULL_DISK = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    version_store.promote(folder, 3) if sys.argv[3] == "promote" else version_store.add(folder, made, provenance, {})
except TrainingError as error:
    print(error)
"""

MANY = """
made = made / sys.argv[3]
made.mkdir()
for turn in range(10):
    for name in ("best_model.pt", "model.onnx"):
        (made / name).write_text(f"{sys.argv[3]} {turn}")
    version_store.add(folder, made, provenance, {})
"""


def start(code, folder, made, word):
    command = [sys.executable, "-c", COMMON + code, str(folder), str(made), word]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read(path):
    return path.read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="no limits on files")
@pytest.mark.parametrize("action", ["add", "promote"])
def test_a_full_disk_is_reported_and_changes_nothing(make, folder, tmp_path, action):
    first = make("one")
    make("two")
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "best_model.pt").write_bytes(b"x" * 50_000)
    version_store.add(folder, tmp_path / "large", first.provenance, {}, promote=False)
    output, errors = start(FULL_DISK, folder, tmp_path / "large", action).communicate(timeout=60)
    assert "File too large; make room" in output, errors
    assert (read_promotions(folder).promoted, read(folder / "model.onnx")) == (2, "two")
    assert (version_numbers(folder), read_status(folder).damaged) == ([1, 2, 3], False)
    assert [path.name for path in folder.rglob(".*")] == [".lock"]


def test_several_processes_take_different_numbers(make, folder, tmp_path):
    make("one")
    running = [start(MANY, folder, tmp_path, word) for word in "abc"]
    assert [process.communicate(timeout=120) for process in running] == [("", "")] * 3
    status = read_status(folder)
    assert [entry.number for entry in status.versions] == list(range(1, 32))
    assert not status.damaged
    words = [read(version_folder(folder, number) / "model.onnx") for number in range(2, 32)]
    assert sorted(words) == sorted(f"{word} {turn}" for word in "abc" for turn in range(10))
    assert read(folder / "model.onnx") == words[-1]
    assert [entry.version.parent for entry in status.versions if entry.version] == [None, *range(1, 31)]


@pytest.mark.skipif(os.name == "nt", reason="no fork, no SIGKILL")
@pytest.mark.parametrize(
    ("action", "ends"),
    [
        ("add", {(2, (1, 2)), (2, (1, 2, 3)), (3, (1, 2, 3))}),
        ("add_only", {(2, (1, 2)), (2, (1, 2, 3))}),
        ("add_file", {(2, (1, 2))}),
        ("promote", {(2, (1, 2)), (1, (1, 2))}),
        ("rollback", {(2, (1, 2)), (1, (1, 2))}),
        ("prune", {(2, (1, 2)), (2, (2,))}),
        ("record", {(2, (1, 2))}),
    ],
)
def test_killed_at_any_operation_nothing_is_half_done(make, folder, tmp_path, action, ends):
    make("one")
    make("two")
    made = tmp_path / "made_three"
    made.mkdir()
    for name in ("best_model.pt", "model.onnx", "scaler.pkl"):
        (made / name).write_text("three", encoding="utf-8")
    output, errors = start(KILLED, folder, made, action).communicate(timeout=300)
    runs = [json.loads(line) for line in output.splitlines()]
    assert len(runs) > 12, errors
    assert [run["killed"] for run in runs] == [True] * (len(runs) - 1) + [False]
    for run in runs:
        assert (run["damaged"], run["consistent"]) == (False, True), run
        assert run["model"] == {1: "one", 2: "two", 3: "three"}[run["promoted"]], run
        names = {"best_model.pt", "model.onnx", "scaler.pkl"}
        expected = names | {f"versions/{n}/{name}" for n in run["numbers"] for name in (*names, "version.json")}
        expected |= {"versions/promoted.json", "versions/.lock"}
        extra = {"versions/2/model_int8.onnx", "model_int8.onnx"} if action == "add_file" else set()
        assert expected <= set(run["files"]) <= expected | extra, run
        assert "model_int8.onnx" not in run["files"] or extra <= set(run["files"]), run
    assert {(run["promoted"], tuple(run["numbers"])) for run in runs} == ends
    added = {("noise", "official")} if action == "record" else set()
    assert {tuple(run["metrics"]) for run in runs} == {("official",)} | added


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_an_unfinished_promotion_is_read_from_the_version_and_finished_later(make, folder):
    make("one")
    make("two")
    version_store._write_promotions(folder, read_promotions(folder), finished=False)
    (folder / "model.onnx").unlink()
    assert promoted_file(folder, "model.onnx") == version_folder(folder, 2) / "model.onnx"
    assert "have not all been copied" in read_status(folder).faults[0]
    messages: list[str] = []
    version_store.recover(folder, messages.append)
    assert ["finished the promotion of version 2" in message for message in messages] == [True]
    assert promoted_file(folder, "model.onnx") == folder / "model.onnx"
    assert read(folder / "model.onnx") == "two"
    version_store._write_promotions(folder, read_promotions(folder), finished=False)
    (version_folder(folder, 2) / "model.onnx").write_bytes(b"")
    version_store.promote(folder, 1, messages.append)  # where the version has been damaged since, another can be taken
    assert "cannot be finished" in messages[-1]
    assert read(folder / "model.onnx") == "one"


def test_a_lock_of_another_process_is_waited_for(make, folder, monkeypatch):
    make("one")
    monkeypatch.setattr(version_store, "TIMEOUT", 0.1)
    held = "from filelock import FileLock\nwith FileLock(folder / 'versions' / '.lock'): print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", COMMON + held, str(folder), ""], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(TrainingError, match=r"could not change the versions in .* locked by another process"):
            make("two")
        process.kill()
    assert make("two").number == 2
