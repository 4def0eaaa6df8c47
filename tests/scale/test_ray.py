"""Trainings, searches and answers on a real cluster of several nodes, one of which is killed in the middle."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from digit_detector.classifier import load_classifier
from ml_training.config import TrainConfig, load_config

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.scale, pytest.mark.skipif(os.name == "nt", reason="signals of another kind")]
ROOT = Path(__file__).resolve().parents[2]
OURS = ("TrainWorker", "ImplicitFunc", "try_one", "MapWorker", "Hearer")  # in names of processes that do our work
SETTINGS = ["--pipeline", "mfcc", "--dataset", "folder", "--negative_share", "0", "--device", "cpu"]


def start(door: str, words: list[str], cluster: Any, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "ml_training" / door), *words, "--engine", "ray"]
    return subprocess.Popen(
        [*command, "--ray_address", cluster.address], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def kill_when(process: subprocess.Popen[str], cluster: Any, ready: Callable[[], bool]) -> None:
    """SIGKILL for the raylet of a node that works, as soon as something is `ready`."""
    deadline = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing ever came of it"
        time.sleep(0.05)
    node = busiest(cluster)
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)


def busiest(cluster: Any) -> Any:
    """A worker node with a process of ours, by the processes below its raylet."""

    def children(node: Any) -> int:
        pid = node.all_processes["raylet"][0].process.pid
        found = subprocess.run(["pgrep", "-P", str(pid), "-a"], capture_output=True, text=True).stdout
        return sum(any(word in line for word in OURS) for line in found.splitlines())

    counts = [children(node) for node in cluster.workers]
    assert max(counts), "nobody works"
    return cluster.workers[counts.index(max(counts))]


def done(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return out, err


def test_a_training_of_two_workers_ends_right_though_a_node_is_killed(
    nodes: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    words = [*SETTINGS, "--data_dir", str(tiny_folder), "--workers", "2", "--epochs", "150", "--patience", "0"]
    process = start("train.py", words, nodes, tmp_path)
    made = tmp_path / "models" / "mfcc_classifier"
    kill_when(process, nodes, lambda: len(list(made.glob("checkpoint_epoch_*.pt"))) >= 2)
    out, _ = done(process)
    assert "mfcc" in out
    assert sum(node["Alive"] for node in ray_nodes(nodes)) == 3
    load_classifier(tmp_path / "models", "mfcc")
    log = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "train_logs").glob("experiment_*.log"))
    assert "resuming at epoch" in log
    assert "2 processes train together" in log


def ray_nodes(cluster: Any) -> list[dict[str, Any]]:
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        found: list[dict[str, Any]] = ray.nodes()
        return found
    finally:
        ray.shutdown()


def test_a_search_ends_right_though_a_node_is_killed(nodes: Any, tiny_folder: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.json"
    space.write_text('{"learning_rate": {"from": 0.0001, "to": 0.1, "scale": "log"}, "batch_size": [16, 32]}')
    words = [*SETTINGS, "--data_dir", str(tiny_folder), "--space", str(space), "--trials", "5", "--epochs", "6"]
    process = start("tune.py", [*words, "--workers", "2", "--pruner", "none"], nodes, tmp_path)
    kill_when(process, nodes, lambda: bool(list((tmp_path / "tuning").rglob("checkpoint_epoch_*.pt"))))
    out, _ = done(process)
    assert "5 trials: 5 completed, 0 pruned, 0 failed" in out
    best = TrainConfig(**load_config(tmp_path / "tuning" / "best.json"))
    assert best.epochs == 6
    assert (tmp_path / "tuning" / "tuning_report.html").is_file()


@pytest.mark.parametrize("kind", ["folder", "address"])
def test_answers_are_all_there_and_right_though_a_node_is_killed(
    kind: str, nodes: Any, tiny_folder: Path, tiny_models: Path, tmp_path: Path
) -> None:
    recordings = tmp_path / "recordings"
    for copy in range(15):
        shutil.copytree(tiny_folder, recordings / f"{copy:02}")
    (recordings / "00" / "broken.wav").write_bytes(b"no sound")
    named = str(recordings) if kind == "folder" else f"file://{recordings}"
    words = [named, "--model_dir", str(tiny_models), "--pipeline", "mfcc"]
    process = start("inference.py", [*words, "--out", "cluster.csv", "--workers", "2"], nodes, tmp_path)
    kill_when(process, nodes, lambda: any(path.stat().st_size > 2000 for path in tmp_path.glob("*cluster.csv*")))
    out, err = process.communicate(timeout=400)
    assert process.returncode == 1, err  # one has no answer
    assert "3,000 answers and 1 errors" in out
    script = str(ROOT / "ml_training" / "inference.py")
    here = [sys.executable, script, str(recordings), *words[1:], "--out", "here.csv"]
    subprocess.run(here, cwd=tmp_path, check=False, capture_output=True)
    prefix = "file://" if kind == "address" else ""
    expected = [(prefix + row["file"], row["predicted_digit"]) for row in rows(tmp_path / "here.csv")]
    assert [(row["file"], row["predicted_digit"]) for row in rows(tmp_path / "cluster.csv")] == expected


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_without_a_cluster_one_of_this_machine_is_used_and_listens_to_nobody_else(
    tiny_folder: Path, tiny_models: Path, tmp_path: Path
) -> None:
    words = [str(tiny_folder), "--model_dir", str(tiny_models), "--pipeline", "mfcc", "--out", "x.jsonl"]
    command = [sys.executable, str(ROOT / "ml_training" / "inference.py"), *words, "--engine", "ray"]
    process = subprocess.Popen([*command, "--workers", "1"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    elsewhere: set[str] = set()
    while process.poll() is None:
        listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True).stdout
        ours = [line.split()[3] for line in listening.splitlines() if "ray" in line or "gcs_server" in line]
        elsewhere |= {place for place in ours if not place.startswith(("127.0.0.1:", "[::ffff:127.0.0.1]:"))}
        time.sleep(0.2)
    process.communicate()
    assert process.returncode == 0
    assert not elsewhere
    assert len((tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()) == 200


@pytest.mark.parametrize(
    ("door", "words", "expected"),
    [
        ("train.py", ["--workers", "2"], "--workers belong to --engine ray"),
        ("train.py", ["--engine", "ray", "--cv", "3"], "--cv trains on this machine"),
        ("train.py", ["--engine", "ray", "--workers", "0"], "workers: expected 1 or more"),
        ("train.py", ["--engine", "ray", "--ray_address", "127.0.0.1:9"], "no Ray cluster at 127.0.0.1:9"),
        ("inference.py", ["x.wav", "--engine", "ray"], "engine belongs to a table"),
        ("inference.py", ["s3://a", "b.wav", "--engine", "ray", "--out", "x.csv"], "not both"),
        ("tune.py", ["--engine", "ray", "--pipeline", "mfcc", "--storage", "sqlite:///x"], "Ray keeps its own"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    door: str, words: list[str], expected: str, run_door: Any, tiny_folder: Path
) -> None:
    data = [] if door == "inference.py" else ["--dataset", "folder", "--data_dir", tiny_folder]
    ended = run_door(door, *words, *data)
    assert ended.returncode in (1, 2)
    assert expected in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, json.dumps(ended.stderr)
