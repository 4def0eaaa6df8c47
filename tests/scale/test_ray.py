"""Training, search and prediction on a real cluster of several nodes, one of which is killed in the middle."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from digit_detector.classifier import load_classifier
from ml_training.config import TrainConfig, load_config

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the loopback address, read when Ray is imported
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
pytest.importorskip("ray")
pytestmark = [pytest.mark.scale, pytest.mark.skipif(os.name == "nt", reason="signals of another kind")]

ROOT = Path(__file__).resolve().parents[2]
WORKERS = ("TrainWorker", "ImplicitFunc", "run_trial", "MapWorker", "Actor")  # in names of the processes that work
SETTINGS = ["--pipeline", "mfcc", "--dataset", "folder", "--negative_ratio", "0", "--device", "cpu"]


@pytest.fixture
def cluster():
    """Three nodes of one core, which can be killed, beside a head without any; bound to 127.0.0.1."""
    from ray.cluster_utils import Cluster

    memory = {"node_ip_address": "127.0.0.1", "object_store_memory": 150_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    cluster.workers = [cluster.add_node(num_cpus=1, **memory) for _ in range(3)]
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def run_and_kill_a_node(script, words, cluster, folder, is_ready):
    """Run with --engine ray; as soon as it `is_ready`, SIGKILL the node that works most."""
    command = [sys.executable, str(ROOT / "ml_training" / script), *words, "--engine", "ray", "--workers", "2"]
    with subprocess.Popen(
        [*command, "--ray_address", cluster.address], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 240
        while not is_ready():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        pids = [node.all_processes["raylet"][0].process.pid for node in cluster.workers]
        children = [subprocess.run(["pgrep", "-P", str(p), "-a"], capture_output=True, text=True).stdout for p in pids]
        counts = [sum(line.count(name) for name in WORKERS) for line in children]
        assert max(counts), "no node works"
        os.kill(pids[counts.index(max(counts))], signal.SIGKILL)
        out, err = process.communicate(timeout=400)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_a_training_resumes(cluster, tiny_folder, tmp_path):
    words = [*SETTINGS, "--data_dir", str(tiny_folder), "--epochs", "150", "--patience", "0"]
    made = tmp_path / "models" / "mfcc_classifier"
    done = run_and_kill_a_node(
        "train.py", words, cluster, tmp_path, lambda: len(list(made.glob("checkpoint_epoch_*.pt"))) >= 2
    )
    assert done.returncode == 0, done.stderr
    assert "mfcc" in done.stdout
    load_classifier(tmp_path / "models", "mfcc")
    log = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "train_logs").glob("experiment_*.log"))
    assert "resuming at epoch" in log
    assert "2 processes train together" in log


def test_a_search_completes(cluster, tiny_folder, tmp_path):
    space = tmp_path / "space.json"
    space.write_text('{"learning_rate": {"from": 0.0001, "to": 0.1, "scale": "log"}, "batch_size": [16, 32]}')
    words = [*SETTINGS, "--data_dir", str(tiny_folder), "--space", str(space), "--trials", "5", "--epochs", "6"]
    done = run_and_kill_a_node(
        "tune.py", [*words, "--pruner", "none"], cluster, tmp_path,
        lambda: bool(list((tmp_path / "tuning").rglob("checkpoint_epoch_*.pt"))),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5 trials: 5 completed, 0 pruned, 0 failed" in done.stdout
    assert TrainConfig(**load_config(tmp_path / "tuning" / "best.json")).epochs == 6
    assert (tmp_path / "tuning" / "tuning_report.html").is_file()


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_predictions_are_all_written(prefix, cluster, tiny_folder, tiny_models, tmp_path):
    recordings = tmp_path / "recordings"
    for copy in range(15):
        shutil.copytree(tiny_folder, recordings / f"{copy:02}")
    (recordings / "00" / "broken.wav").write_bytes(b"no sound")
    words = ["--model_dir", str(tiny_models), "--pipeline", "mfcc", "--out"]
    done = run_and_kill_a_node(
        "inference.py", [f"{prefix}{recordings}", *words, "cluster.csv"], cluster, tmp_path,
        lambda: any(path.stat().st_size > 2000 for path in tmp_path.glob("*cluster.csv*")),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # one has no answer
    assert "3,000 answers and 1 errors" in done.stdout
    command = [sys.executable, str(ROOT / "ml_training" / "inference.py"), str(recordings), *words, "here.csv"]
    subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
    expected, found = (
        [(row["file"].removeprefix("file://"), row["predicted_digit"]) for row in csv.DictReader(path.open(newline=""))]
        for path in (tmp_path / "here.csv", tmp_path / "cluster.csv")
    )
    assert found == expected


def test_without_a_cluster_one_of_this_machine_listens_on_loopback_alone(tiny_folder, tiny_models, tmp_path):
    words = [str(tiny_folder), "--model_dir", str(tiny_models), "--pipeline", "mfcc", "--out", "x.jsonl"]
    command = [sys.executable, str(ROOT / "ml_training" / "inference.py"), *words, "--engine", "ray", "--workers", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        addresses: set[str] = set()
        while process.poll() is None:
            listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True).stdout
            addresses |= {line.split()[3] for line in listening.splitlines() if "ray" in line or "gcs_server" in line}
            time.sleep(0.2)
    assert process.returncode == 0
    assert not [one for one in addresses if not one.startswith(("127.0.0.1:", "[::ffff:127.0.0.1]:"))]
    assert len((tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()) == 200


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("train.py", ["--workers", "2"], "--workers belong to --engine ray"),
        ("train.py", ["--engine", "ray", "--cv", "3"], "--cv trains on this machine"),
        ("train.py", ["--engine", "ray", "--workers", "0"], "workers: expected 1 or more"),
        ("train.py", ["--engine", "ray", "--ray_address", "127.0.0.1:9"], "no Ray cluster at 127.0.0.1:9"),
        ("inference.py", ["x.wav", "--engine", "ray"], "--engine: name a table with --out"),
        ("inference.py", ["s3://a", "b.wav", "--engine", "ray", "--out", "x.csv"], "not both"),
        ("tune.py", ["--engine", "ray", "--pipeline", "mfcc", "--storage", "sqlite:///x"], "Ray keeps its own"),
    ],
)
def test_what_is_impossible_is_one_line(script, words, expected, run_door, tiny_folder):
    data = [] if script == "inference.py" else ["--dataset", "folder", "--data_dir", tiny_folder]
    ended = run_door(script, *words, *data)
    assert ended.returncode in (1, 2)
    assert expected in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
