"""Batches that memory does not hold: the same step in micro-batches, under a real limit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of another kind")
HERE = Path(__file__).resolve().parent
# Megabytes, besides what the allocator keeps: a whole step takes 41, half of it 22; 25 clips in validation 32, 12 16.
SCARCE = 24


@pytest.fixture(scope="module")
def train() -> Callable[..., dict[str, Any]]:
    def run(folder: Path, megabytes: int, kind: str, *rest: str) -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
        done = subprocess.run(
            [sys.executable, str(HERE / "scarce.py"), str(folder), str(megabytes), kind, *rest],
            capture_output=True, text=True, timeout=120,
            env=os.environ | {
                "PYTHONPATH": paths, "OMP_NUM_THREADS": "1",
                "MALLOC_MMAP_THRESHOLD_": "1000000",  # what is freed is free: the same step fails every time
            },
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(folder / "weights.pt", weights_only=True)
    return loaded


@linux
def test_micro_batches_give_the_same_weights(tmp_path: Path, train: Callable[..., Any]) -> None:
    whole, scarce = train(tmp_path / "whole", 0, "plain"), train(tmp_path / "scarce", SCARCE, "plain")
    assert whole["notes"] == []
    first, *rest = scarce["notes"]  # how often validation is halved depends on what else the process holds
    assert re.match(r"epoch 1, step 1: not enough memory for 21 clips .* micro-batches of 10", first)
    assert [re.findall(r"\d+", line) for line in rest] == [["50", "25"], ["25", "12"], ["12", "6"]][: len(rest)] != []
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "scarce")
    assert not all(torch.equal(found[name], value) for name, value in expected.items()), "micro-batches round otherwise"
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    for record, other in zip(scarce["history"], whole["history"], strict=True):
        assert record == pytest.approx(other, rel=1e-4)


@linux
def test_an_interrupted_run_with_micro_batches_ends_with_the_same_bits(
    tmp_path: Path, train: Callable[..., Any]
) -> None:
    """With any memory when it resumes: the size of micro-batches is part of the checkpoint."""
    straight = train(tmp_path / "straight", SCARCE, "norm")
    stopped = train(tmp_path / "scarce", SCARCE, "norm", "2", "2")
    assert stopped["stopped"] == 143
    assert "not enough memory for 21 clips" in stopped["notes"][0]
    shutil.copytree(tmp_path / "scarce", tmp_path / "plenty")
    for name, megabytes in {"scarce": SCARCE, "plenty": 0}.items():
        resumed = train(tmp_path / name, megabytes, "norm", "resume")
        assert [line[:8] for line in resumed["notes"]] == ["resuming"]
        assert resumed["history"] == straight["history"]
        expected, found = weights(tmp_path / "straight"), weights(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in expected.items())


@linux
def test_one_line_says_that_no_batch_fits(tmp_path: Path, train: Callable[..., Any]) -> None:
    error = train(tmp_path, 4, "plain")["error"]
    assert error.startswith("not enough memory to train")
    assert "--batch_size" in error
