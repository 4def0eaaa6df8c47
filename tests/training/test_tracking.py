"""Trainings in MLflow: in a database, on a server, and without either."""

from __future__ import annotations

import importlib.util
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from digit_detector.errors import ConfigError, TrainingError
from ml_training import train
from ml_training.config import TrainConfig
from ml_training.training.experiment import RunOutcome, run
from ml_training.training.tracking import ARTEFACTS, DATABASE, EXPERIMENT, NEEDED, tracker_at

INSTALLED = all(importlib.util.find_spec(name) for name in NEEDED)
needs_mlflow = pytest.mark.skipif(not INSTALLED, reason='MLflow is not installed: pip install -e ".[mlflow]"')


def trained(tiny: ModuleType, folder: Path, mlflow: str, **changes: Any) -> RunOutcome:
    config = TrainConfig(
        models_dir=str(folder / "models"), log_dir=str(folder / "my logs"), mlflow=mlflow, device="cpu", threads=1,
        epochs=3, learning_rate=0.03, batch_size=8, negative_ratio=0.0, **changes,
    )  # fmt: skip
    return run(config, corpus=tiny.corpus(), pipelines=[tiny.TINY])


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.mark.skipif(INSTALLED, reason="MLflow is installed")
def test_without_the_package_nothing_is_trained_and_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"mlflow.* needs the \[mlflow\] extra.*pip install"):
        tracker_at("here", tmp_path)
    assert train.main(["--mlflow", "--dataset", "synthetic"]) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    assert 'pip install -e ".[mlflow]"' in printed
    assert not Path("models").exists()


@needs_mlflow
def test_a_training_is_kept_in_a_file_of_the_logs(tiny: ModuleType, tmp_path: Path) -> None:
    outcome = trained(tiny, tmp_path, "here", seed=5)
    assert outcome.exit_code == 0
    (result,) = outcome.results
    database = tmp_path / "my logs" / DATABASE
    assert rows(database, "select name from experiments where lifecycle_stage = 'active'")[-1] == (EXPERIMENT,)
    assert rows(database, "select name, status from runs") == [("mfcc 1", "FINISHED")]
    parameters = dict(rows(database, "select key, value from params"))
    assert parameters["seed"] == "5"
    assert parameters["augmentation.time_shift"] == "0.0"
    losses = rows(database, "select step, value from metrics where key = 'validation_loss' order by step")
    assert losses == [(record.epoch, pytest.approx(record.validation_loss)) for record in result.history]
    assert rows(database, "select value from metrics where key = 'test_accuracy'") == [(result.test.accuracy,)]
    tags = dict(rows(database, "select key, value from tags"))
    assert tags["version"] == "1"
    assert tags["data_hash"] == tiny.corpus().data_hash
    (kept,) = (tmp_path / "my logs" / ARTEFACTS).iterdir()
    own = tmp_path / "models" / "mfcc_classifier" / "versions" / "1"
    for name in ("best_model.pt", "model.onnx", "version.json"):
        assert (kept / "artifacts" / "model" / name).read_bytes() == (own / name).read_bytes()
    assert (kept / "artifacts" / "plots" / "training_history_mfcc.png").is_file()
    assert "MLflow run" in outcome.log_file.read_text(encoding="utf-8")


@needs_mlflow
def test_each_training_is_a_version_of_one_registered_model(tiny: ModuleType, tmp_path: Path) -> None:
    trained(tiny, tmp_path, "here")
    trained(tiny, tmp_path, "here", promote=False)
    database = tmp_path / "my logs" / DATABASE
    found = rows(database, "select name, version, source from model_versions order by version")
    assert [row[:2] for row in found] == [("digits-mfcc", 1), ("digits-mfcc", 2)]
    assert found[1][2].endswith("/artifacts/model")
    own = rows(database, "select version, key, value from model_version_tags where key in ('version', 'parent')")
    assert sorted(own) == [(1, "parent", "None"), (1, "version", "1"), (2, "parent", "1"), (2, "version", "2")]


@needs_mlflow
def test_a_server_that_is_not_there_is_told_before_anything_is_trained(tiny: ModuleType, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"  # where nobody listens
        with pytest.raises(TrainingError, match=rf"cannot reach MLflow at {address} .*: check --mlflow"):
            trained(tiny, tmp_path, address)
    assert not (tmp_path / "models").exists()


@needs_mlflow
def test_what_cannot_be_logged_costs_no_model(
    tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tiny, tmp_path, "here")
    artefacts = tmp_path / "my logs" / ARTEFACTS
    artefacts.rename(tmp_path / "moved")
    artefacts.write_bytes(b"a file where a folder was")
    outcome = trained(tiny, tmp_path, "here")
    assert outcome.exit_code == 1
    assert outcome.results[0].version == 2
    assert "cannot log to MLflow" in outcome.failures["mfcc in MLflow"]
    assert "mfcc in MLflow" in outcome.report.read_text(encoding="utf-8")
    assert rows(tmp_path / "my logs" / DATABASE, "select status from runs order by start_time")[-1] == ("FAILED",)


@needs_mlflow
@pytest.mark.slow
def test_a_server_keeps_a_training_too(tiny: ModuleType, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}",
        "--artifacts-destination", str(tmp_path / "kept"), "--workers", "1", "--port", str(port),
    ]  # fmt: skip
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None:
                    pytest.skip(f"no MLflow server starts here: {(tmp_path / 'server.log').read_text()[-300:]}")
                time.sleep(0.5)
        outcome = trained(tiny, tmp_path, f"http://127.0.0.1:{port}")
        assert outcome.failures == {}
        assert rows(tmp_path / "server.db", "select name, version from model_versions") == [("digits-mfcc", 1)]
        assert [path.name for path in (tmp_path / "kept").rglob("model.onnx")] == ["model.onnx"]
        assert not (tmp_path / "my logs" / DATABASE).exists()
    finally:
        server.terminate()
        server.wait(timeout=60)
