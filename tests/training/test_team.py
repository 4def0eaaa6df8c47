"""Two processes as one: the same steps, stopped, killed and short of memory, started by torchrun itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ml_training.training.rounds import SharedMemory, can_share_memory

pytest.importorskip("torch.distributed.run")
pytestmark = pytest.mark.skipif(os.name == "nt" or not torch.distributed.is_available(), reason="torch without gloo")

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "teamed.py"
# One step differs by rounding alone. Later ones drift apart as they do after any other change in the last bit.
ROUNDING = {"rtol": 2e-5, "atol": 2e-5}


def start(processes: int, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), str(folder), *words],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip


def trained(processes: int, folder: Path, *words: str) -> dict[str, Any]:
    done = start(processes, folder, *words)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return told


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(folder / "weights.pt", weights_only=True)
    return loaded


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What our processes said; the rest is torchrun's."""
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, trained(1, folder, "tiny")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("both")
    return folder, trained(2, folder, "tiny")


def test_two_processes_train_as_one_does(alone: tuple[Path, dict[str, Any]], both: tuple[Path, dict[str, Any]]) -> None:
    """With augmentation, clips without a digit, dropout, batch norm, averaged weights and a last batch of few clips."""
    expected, found = weights(alone[0]), weights(both[0])
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **ROUNDING)
    for record, other in zip(both[1]["history"], alone[1]["history"], strict=True):
        assert record == pytest.approx(other, rel=1e-4)


@pytest.mark.scale
@pytest.mark.parametrize("pipeline", ["mfcc", "mel_cnn", "raw_cnn"])
def test_two_steps_of_a_real_network_are_those_of_one_process(tmp_path: Path, pipeline: str) -> None:
    trained(1, tmp_path / "alone", pipeline)
    trained(2, tmp_path / "both", pipeline)
    expected, found = weights(tmp_path / "alone"), weights(tmp_path / "both")
    assert not all(torch.equal(found[name], value) for name, value in expected.items()), "sums round otherwise"
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.scale
def test_one_is_asked_to_stop_all_do_and_go_on_to_the_same_bits(
    tmp_path: Path, both: tuple[Path, dict[str, Any]]
) -> None:
    stopped = start(2, tmp_path, "tiny", "2", "2", "1", "SIGTERM")
    assert stopped.returncode != 0
    assert stopped.stdout.count("stopped") == 1
    assert errors(stopped) == []
    assert (tmp_path / "checkpoint_interrupted.pt").exists()
    told = trained(2, tmp_path, "tiny", "resume")
    assert [note[:19] for note in told["notes"]] == ["resuming at epoch 2"]
    assert told["history"] == both[1]["history"]
    expected, found = weights(both[0]), weights(tmp_path)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.scale
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_and_one_says_so(
    tmp_path: Path, both: tuple[Path, dict[str, Any]], rank: int
) -> None:
    killed = start(2, tmp_path, "tiny", "2", "2", str(rank), "SIGKILL")
    assert killed.returncode != 0
    (line,) = errors(killed)
    assert line.startswith(f"error: process {1 - rank} of 2 lost another one (")
    assert line.endswith("to go on from the last checkpoint: TYPE THIS")
    # What several left, one goes on with: no checkpoint depends on how many there are.
    shutil.copytree(tmp_path, tmp_path / "one")
    told = trained(1, tmp_path / "one", "tiny", "resume")
    assert told["notes"] == ["resuming at epoch 2 of 2 epochs"]
    assert told["history"][-1] == pytest.approx(both[1]["history"][-1], rel=1e-4)


@pytest.mark.scale
def test_a_fault_of_one_is_told_once(tmp_path: Path) -> None:
    failed = start(2, tmp_path, "tiny", "2", "2", "1", "fault")
    assert failed.returncode != 0
    assert failed.stderr.count("ValueError: process 1 of 2: no such luck") == 1
    assert errors(failed) == []


@pytest.mark.scale
def test_where_one_is_short_of_memory_all_take_the_step_in_parts(tmp_path: Path) -> None:
    """It notices in the middle of the way back, when the other has sent its gradients already or waits for its sums."""
    told = trained(2, tmp_path, "tiny", "1", "3", "1", "short")
    assert [note[:59] for note in told["notes"]] == [
        "epoch 1, step 4: not enough memory for 10 clips at once, go",
        "epoch 1, step 4: not enough memory for 5 clips at once, goi",
    ]
    assert told["history"][-1]["train_loss"] < told["history"][0]["train_loss"]


@pytest.mark.skipif(not can_share_memory(), reason="sums go over sockets there")
def test_memory_that_cannot_be_shared_leaves_no_file_and_all_know() -> None:
    limited = (
        "import os, resource; from ml_training.training.rounds import SharedMemory\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); said = []\n"
        "try: SharedMemory(0, 2, 10**6, lambda name: said.append(name) or name)\n"
        "except OSError as error: print(error, said, os.getpid())"
    )
    before = set(Path("/dev/shm").glob("digits_*"))
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.stdout.startswith("no room for 4000256 bytes of shared memory ['']"), done.stderr
    assert set(Path("/dev/shm").glob("digits_*")) <= before
    with pytest.raises(OSError, match="no room"):  # what the others make of it
        SharedMemory(1, 2, 10**6, lambda name: "")
