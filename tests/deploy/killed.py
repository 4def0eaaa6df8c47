"""Does one thing to versions over and over, each time killed a step later, and says what was found afterwards.

    python killed.py FOLDER ACTION

FOLDER holds `base`, a pipeline's folder, and `made`, the files of a training. ACTION is add, add_only, promote,
rollback, prune or record. A step is a file opened, renamed or removed, a folder made, removed or listed. Prints a JSON
object for each run: how the process ended, what a reader finds before anything is settled, and what there is after.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from digit_detector.versions import Origin, answering_file, numbers, read_promotions, state_of, version_folder
from ml_training.deploy import version_store

STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir")


def act(action: str, folder: Path, made: Path) -> None:
    """What is done, and killed."""
    if action in ("add", "add_only"):
        version_store.add(folder, made, origin(), {"official": {"tiny": {"accuracy": 0.9}}}, promote=action == "add")
    elif action == "promote":
        version_store.promote(folder, 1)
    elif action == "rollback":
        version_store.roll_back(folder)
    elif action == "prune":
        version_store.prune(folder, 1, really=True)
    elif action == "record":
        version_store.record(folder, 1, "noise", "tiny", {"accuracy": 0.5})
    else:
        raise SystemExit(f"no action {action}")


def origin(**changes: Any) -> Origin:
    """Something a version may come from."""
    usual: dict[str, Any] = {
        "pipeline": "mfcc", "data": "tiny", "data_hash": "ab" * 32, "synthetic": False, "split": "official",
        "git_commit": "c" * 40, "package_version": "0.1.0", "settings": {"epochs": 3, "augmentation": {"shift": 1.0}},
        "training": {"best_epoch": 2}, "weights_hash": "w",
    }  # fmt: skip
    return Origin(**{**usual, **changes})


def killed_at(step: int, folder: Path, work: Any) -> bool:
    """Do `work` in a child that is killed before that step; whether it got so far."""
    child = os.fork()
    if not child:
        left = itertools.count(step, -1)

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if event in STEPS and str(folder) in str(arguments[0]) and next(left) == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def main() -> None:
    place, action = Path(sys.argv[1]), sys.argv[2]
    for step in itertools.count(1):
        folder = place / f"{action}_{step}" / "mfcc_classifier"
        shutil.copytree(place / "base", folder)
        was_killed = killed_at(step, folder, lambda folder=folder: act(action, folder, place / "made"))
        promoted = read_promotions(folder).promoted
        answers = answering_file(folder, "model.onnx").read_bytes()
        expected = (version_folder(folder, promoted) / "model.onnx").read_bytes() if promoted else b""
        version_store.settle(folder)
        state = state_of(folder)
        print(json.dumps({
            "step": step, "killed": was_killed, "answers_as_promoted": answers == expected,
            "promoted": state.promotions.promoted, "numbers": numbers(folder), "damaged": state.damaged,
            "metrics": [sorted(row.version.metrics) if row.version else None for row in state.rows],
            "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()),
            "model": (folder / "model.onnx").read_text(encoding="utf-8"),
        }))  # fmt: skip
        shutil.rmtree(folder.parent)
        if not was_killed:
            return


if __name__ == "__main__":
    main()
