"""Work that is killed at random moments and goes on: whether it ends with the bits of work that nobody killed.

    python benchmarks/kills.py [--what train cv tune] [--kills 20] [--seed 0] [--work FOLDER]

Small trainings of mfcc on FSDD ($DIGIT_DATA_DIR; synthetic speech without). Each kind of work is done once from start
to end. Then it is started, killed with SIGKILL after a random while (its helper processes end by themselves), started
again and so on, until it comes to its end; then from nothing, until --kills processes were killed. Leaves with 1 where
any end differs from the first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from trainings import ROOT

from ml_training.training.checkpoint import weights_hash

EPOCHS = 4
WORDS: dict[str, list[str]] = {
    "train": ["train.py", "--resume"],
    "cv": ["train.py", "--cv", "4", "--seeds", "0"],
    "tune": ["tune.py", "--trials", "6", "--space", "space.json"],
}
SPACE = {"learning_rate": {"from": 0.0003, "to": 0.03, "scale": "log"}, "batch_size": [64, 128], "width": [0.5, 1.0]}


def command(what: str) -> list[str]:
    script, *words = WORDS[what]
    shared = ["--pipeline", "mfcc", "--epochs", str(EPOCHS), "--batch_size", "128", "--patience", "0"]
    if what == "tune":
        shared.remove("--batch_size")
        shared.remove("128")
    data = ["--dataset", "fsdd"] if os.environ.get("DIGIT_DATA_DIR") else ["--dataset", "synthetic"]
    return [sys.executable, str(ROOT / "ml_training" / script), *words, *shared, *data]


def start(what: str, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "space.json").write_text(json.dumps(SPACE), encoding="utf-8")
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(command(what), cwd=folder, stdout=output, stderr=output)


def ending_of_train(folder: Path) -> Any:
    """The best weights, and the last ones with their average."""
    made = folder / "models" / "mfcc_classifier"
    best = torch.load(made / "best_model.pt", weights_only=True)
    last = torch.load(made / f"checkpoint_epoch_{EPOCHS:03d}.pt", weights_only=True)
    return [weights_hash(found) for found in (best["weights"], last["state"]["model"], last["state"]["averaged"])]


def ending_of_cv(folder: Path) -> Any:
    """All that the folds found but for what a clock said."""
    found = {p.parent.name: json.loads(p.read_text()) for p in (folder / "train_logs" / "cv").glob("*/fold.json")}
    return {name: {k: v for k, v in fold.items() if k != "seconds"} for name, fold in found.items()}


def ending_of_tune(folder: Path) -> Any:
    """What every trial tried and found, and the best."""
    import optuna

    from ml_training.tuning.study import STUDY, open_journal

    study = optuna.load_study(study_name=STUDY, storage=open_journal(folder / "tuning"))
    trials = [(t.number, t.state.name, t.params, t.values, t.intermediate_values, t.user_attrs) for t in study.trials]
    return trials, (folder / "tuning" / "best.json").read_text()


ENDINGS: dict[str, Callable[[Path], Any]] = {"train": ending_of_train, "cv": ending_of_cv, "tune": ending_of_tune}


def finish(what: str, folder: Path) -> Any:
    """Let it come to its end; what it ended with."""
    if start(what, folder).wait():
        sys.exit(f"{what} failed: {(folder / 'output.txt').read_text().splitlines()[-1]}")
    return ENDINGS[what](folder)


def measured(what: str, kills: int, moments: random.Random, work: Path) -> bool:
    """Whether every end was that of undisturbed work."""
    finish(what, work / what / "warm")  # fills the cache
    began = time.perf_counter()
    expected = finish(what, work / what / "whole")
    whole = time.perf_counter() - began
    done = same = runs = 0
    while done < kills:
        folder = work / what / f"run{runs}"
        shutil.rmtree(folder, ignore_errors=True)
        process = start(what, folder)
        while done < kills:
            try:
                process.wait(moments.uniform(0.15, 0.8) * whole)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                done += 1
            process = start(what, folder)
        process.wait()
        found = finish(what, folder)
        runs, same = runs + 1, same + (found == expected)
    print(
        f"{what}: {done} kills in {runs} runs of {whole:.0f} s, {same} of {runs} ended with the same bits", flush=True
    )
    return same == runs


def main() -> int:
    parser = argparse.ArgumentParser(description="Work that is killed at random moments and goes on")
    parser.add_argument("--what", nargs="+", choices=list(WORDS), default=list(WORDS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fine = [measured(what, args.kills, random.Random(args.seed), args.work or Path(folder)) for what in args.what]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
