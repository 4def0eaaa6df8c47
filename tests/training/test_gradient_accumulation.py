"""Batches that memory does not hold: the same step in parts, found out by running into a real limit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from ml_training.training.gradient_accumulation import RunningStatistics, parts_of
from ml_training.training.objective import Batch, Objective
from ml_training.training.setup import predict, predict_by

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
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(folder / "weights.pt", weights_only=True)
    return loaded


# --- under a limit -------------------------------------------------------------------------------


@linux
def test_a_batch_too_large_for_memory_gives_the_same_weights_in_parts(
    tmp_path: Path, train: Callable[..., Any]
) -> None:
    whole, scarce = train(tmp_path / "whole", 0, "plain"), train(tmp_path / "scarce", SCARCE, "plain")
    assert whole["notes"] == []
    first, *rest = scarce["notes"]  # how often validation is halved hangs on what the process holds besides
    assert re.match(r"epoch 1, step 1: not enough memory for 21 clips at once, going on with 10 whose gradients", first)
    halved = "not enough memory to validate {} clips at once: going on with {}"
    assert rest
    assert rest == [halved.format(50, 25), halved.format(25, 12), halved.format(12, 6)][: len(rest)]
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "scarce")
    assert not all(torch.equal(found[name], value) for name, value in expected.items()), "parts round otherwise"
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    for record, other in zip(scarce["history"], whole["history"], strict=True):
        assert record == pytest.approx(other, rel=1e-4)


@linux
def test_in_parts_too_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, train: Callable[..., Any]) -> None:
    """Whatever memory there is when it goes on: how much is taken at once is part of the checkpoint."""
    straight = train(tmp_path / "straight", SCARCE, "norm")
    stopped = train(tmp_path / "scarce", SCARCE, "norm", "2", "2")
    assert stopped["stopped"] == 143
    assert stopped["notes"][0] == straight["notes"][0]
    assert "not enough memory for 21 clips" in stopped["notes"][0]
    shutil.copytree(tmp_path / "scarce", tmp_path / "plenty")
    for name, megabytes in {"scarce": SCARCE, "plenty": 0}.items():
        resumed = train(tmp_path / name, megabytes, "norm", "resume")
        assert [line[:8] for line in resumed["notes"]] == ["resuming"]
        assert resumed["history"] == straight["history"]
        expected, found = weights(tmp_path / "straight"), weights(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in expected.items())


@linux
def test_where_no_batch_fits_one_line_says_so(tmp_path: Path, train: Callable[..., Any]) -> None:
    told = train(tmp_path, 4, "plain")
    assert told["error"].startswith("not enough memory to train, however few clips at once (")
    assert "try --batch_size 8, fewer recordings or another --device" in told["error"]


# --- parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("digits", "others"), [(16, 0), (15, 5), (3, 9), (2, 1), (7, 6)])
def test_parts_hold_every_clip_once_and_a_fair_share_of_digits(digits: int, others: int) -> None:
    clips = digits + others
    batch = Batch(torch.arange(clips)[:, None] * torch.ones(3), torch.arange(digits), torch.arange(digits))
    for at_once in range(2, clips + 1):
        count = parts_of(clips, at_once)
        parts = batch.parts(count)
        assert len(parts) == count
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
        assert torch.equal(torch.cat([part.waveforms[len(part.labels) :] for part in parts]), batch.waveforms[digits:])
        for part in parts:
            assert len(part.waveforms) >= 2, "one clip has no batch statistics"
            assert len(part.waveforms) <= at_once + (clips // 2 < -(-clips // at_once))
            assert torch.equal(part.waveforms[: len(part.labels), 0], part.labels.float())
            assert abs(len(part.labels) - digits * len(part.waveforms) / clips) < 1


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75])
def test_costs_of_parts_add_up(tiny: ModuleType, share: float) -> None:
    torch.manual_seed(0)
    model = tiny.TinyModel().double().eval()
    objective = Objective(tiny.both(40, 20), tiny.config(negative_share=share), torch.device("cpu"))
    batch = objective.batch(torch.arange(16))
    assert len(batch.waveforms) == objective.clips(16)
    batch = batch._replace(waveforms=batch.waveforms.double())
    whole = objective.loss(model(batch.waveforms), batch)
    for count in (1, 2, 3, len(batch.waveforms) // 2):
        losses = [objective.loss(model(part.waveforms), part) for part in batch.parts(count)]
        torch.testing.assert_close(torch.stack(losses).sum(), whole)


# --- batch norm ----------------------------------------------------------------------------------


def test_what_was_seen_in_vain_is_forgotten() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model(torch.randn(8, 4))
    statistics, before = RunningStatistics(model), {name: value.clone() for name, value in model.state_dict().items()}
    statistics.keep()
    model(torch.randn(8, 4))
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    statistics.put_back()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_all_parts_together_move_the_statistics_as_far_as_one_batch() -> None:
    norm, part = nn.BatchNorm1d(1, momentum=0.2), torch.tensor([[1.0], [3.0]])
    with RunningStatistics(norm).moved_by(4):
        for _ in range(4):
            norm(part)
    assert norm.momentum == 0.2
    assert norm.running_mean is not None
    assert float(norm.running_mean) == pytest.approx(0.2 * 2.0)


def test_fewer_at_once_answer_the_same(tiny: ModuleType) -> None:
    model, clips = tiny.TinyModel(), tiny.bursts(21).waveforms
    for outputs, others in zip(predict(model, clips), predict_by(4, model, clips), strict=True):
        torch.testing.assert_close(outputs, others)
