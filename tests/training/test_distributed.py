"""Two ranks under torchrun: equal weights, a stop that all obey, resume, and what is said when one is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from digit_detector.errors import TrainingError
from ml_training.training.classification import train_model
from ml_training.training.distributed import SingleProcess

pytest.importorskip("torch.distributed.run")
pytestmark = pytest.mark.skipif(os.name == "nt" or not torch.distributed.is_available(), reason="torch without gloo")

HERE = Path(__file__).resolve().parent


def start(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    return subprocess.run(
        [sys.executable, *launcher, str(HERE / "ddp_run.py"), str(folder), *words],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip


def trained(folder: Path, *words: str) -> dict[str, Any]:
    done = start(folder, *words)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return told


def weights(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(folder / f"weights_{rank}.pt", weights_only=True)
    return loaded


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of this program's errors; the rest is torchrun's."""
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("both")
    return folder, trained(folder)


def test_ranks_learn_and_end_with_the_same_weights(both: tuple[Path, dict[str, Any]]) -> None:
    folder, told = both
    first, second = weights(folder, 0), weights(folder, 1)
    statistics = {name for name in first if "running" in name or "num_batches" in name}  # rank 0's at each forward pass
    assert all(torch.equal(first[name], second[name]) for name in first.keys() - statistics)
    losses = [record["train_loss"] for record in told["history"]]
    assert losses[-1] < losses[0]
    assert told["history"][-1]["validation_accuracy"] > 0.5


@pytest.mark.scale
def test_a_stop_signal_of_one_rank_stops_both_and_resume_gives_the_same_bits(
    tmp_path: Path, both: tuple[Path, dict[str, Any]]
) -> None:
    stopped = start(tmp_path, "2", "2", "1", "SIGTERM")
    assert stopped.returncode != 0
    assert sorted(line for line in stopped.stdout.splitlines() if "stopped" in line) == ["stopped 0", "stopped 1"]
    assert (tmp_path / "checkpoint_interrupted.pt").exists()
    told = trained(tmp_path, "resume")
    assert [note[:19] for note in told["notes"]] == ["resuming at epoch 2"]
    assert told["history"] == both[1]["history"]
    expected, found = weights(both[0], 0), weights(tmp_path, 0)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.scale
def test_a_killed_rank_ends_the_other_which_says_how_to_resume(tmp_path: Path) -> None:
    killed = start(tmp_path, "2", "2", "1", "SIGKILL")
    assert killed.returncode != 0
    (line,) = errors(killed)
    assert line.startswith("error: process 0 of 2 lost another one (")
    assert line.endswith("to resume from the last checkpoint: TYPE THIS")


@pytest.mark.scale
def test_ranks_with_other_settings_do_not_begin(tmp_path: Path) -> None:
    failed = start(tmp_path, "0", "0", "1", "differ")
    assert failed.returncode != 0
    assert any("process 1 of 2 has other settings than process 0" in line for line in errors(failed))


def test_a_batch_too_small_for_all_ranks_is_refused(tiny: ModuleType) -> None:
    group = SingleProcess()
    group.world_size = 9
    with pytest.raises(TrainingError, match="9 processes need 18 digits in a batch, got 16"):
        train_model(tiny.TinyModel(), tiny.bursts(81), tiny.bursts(20), tiny.config(), group=group)
