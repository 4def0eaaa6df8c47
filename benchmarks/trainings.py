"""Trainings of train.py in folders of their own, which go on where they were stopped; for the scripts beside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def train(folder: Path, settings: Mapping[str, Any]) -> None:
    """One run of train.py; from its last checkpoint where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    command = [sys.executable, str(ROOT / "ml_training/train.py"), "--config", "config.json"]
    if list((folder / "models").rglob("checkpoint_epoch_*.pt")):
        command += ["--resume"]
    environment = dict(os.environ)
    if data := environment.get("DIGIT_DATA_DIR"):
        environment["DIGIT_DATA_DIR"] = os.path.abspath(os.path.expanduser(data))  # it runs in another folder
    with (folder / "output.txt").open("a") as output:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    code = done.returncode
    if code:
        sys.exit(f"{folder.name}: train.py left with {code}; see {folder / 'output.txt'}")


def train_once(folder: Path, settings: Mapping[str, Any]) -> None:
    """The same, unless it is finished. Leaves the program when what is finished had other settings."""
    done = folder / "done.json"
    if not done.exists():
        train(folder, settings)
        done.write_text(json.dumps({"settings": settings, "commit": head()}, indent=2))
        print(f"trained {folder.parent.name}/{folder.name}", flush=True)
    elif json.loads(done.read_text())["settings"] != settings:
        sys.exit(f"{done} is of other settings: name another --work")


def head() -> str:
    """The short name of the commit at hand."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
