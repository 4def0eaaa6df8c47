"""Finished trainings in MLflow, if --mlflow asks for it.

MLflow is an extra of its own, [mlflow], imported only when a run asks for it. It sends usage reports to its makers
unless the environment forbids it, as done here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from digit_detector.errors import ConfigError, DigitError, MissingExtraError, TrainingError
from digit_detector.labels import model_folder
from digit_detector.versions import Version, read_version, version_folder
from ml_training.config import MLFLOW_HERE, TrainConfig, flatten_settings
from ml_training.results import PipelineResult
from ml_training.utils.logging_utils import RunLogger

EXPERIMENT = "spoken digits"
NEEDED = ("mlflow", "sqlalchemy", "alembic")
DATABASE = "mlflow.db"  # in log_dir, and beside it
ARTEFACTS = "mlflow_artifacts"
_BATCH = 500  # metrics per request; MLflow accepts a thousand
_NO_REPORTS = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}  # by default a quarter hour


def track(tracker: Tracker, result: PipelineResult, config: TrainConfig, logger: RunLogger) -> dict[str, str]:
    """Log a training; returns the failure by name if the tracker refuses it. The models exist all the same."""
    folder = model_folder(config.models_dir, result.pipeline)
    try:
        assert result.version is not None
        version = read_version(folder, result.version)
        where = tracker.log(result, version, version_folder(folder, version.number), Path(config.log_dir) / "plots")
    except DigitError as error:
        logger.fail(f"{result.pipeline}: {error}", error, pipeline=result.pipeline)
        return {f"{result.pipeline} in MLflow": str(error)}
    logger.say(f"{result.pipeline}: MLflow {where}", "mlflow", pipeline=result.pipeline)
    return {}


def tracker_at(address: str, log_dir: Path) -> Tracker:
    """MLflow at an address, or in a file of `log_dir` for the word "here".

    Raises ConfigError if MLflow is not installed, TrainingError if it cannot be reached.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError([str(MissingExtraError(f"mlflow ({', '.join(missing)})", "mlflow"))])
    if address == MLFLOW_HERE:
        address = f"sqlite:///{(log_dir / DATABASE).absolute().as_posix()}"
    return Tracker(address, (log_dir / ARTEFACTS).absolute())


class Tracker:
    """MLflow's client of one database or server."""

    def __init__(self, address: str, artefacts: Path) -> None:
        self.address = address
        with self._quiet("reach"):
            from mlflow.tracking import MlflowClient

            self.client = MlflowClient(tracking_uri=address, registry_uri=address)
            experiment = self.client.get_experiment_by_name(EXPERIMENT)
            place = artefacts.as_uri() if address.startswith("sqlite") else None  # a server has its own
            created = None if experiment else self.client.create_experiment(EXPERIMENT, place)
            self.experiment = created or experiment.experiment_id

    def log(self, result: PipelineResult, version: Version, files: Path, plots: Path) -> str:
        """Store a training and register the version it became, with its `files`; returns their identifiers.

        Raises TrainingError.
        """
        client, origin, model = self.client, version.provenance, f"digits-{result.pipeline}"
        tags = {
            "version": str(version.number), "parent": str(version.parent), "git_commit": origin.git_commit,
            "data": origin.data, "data_hash": origin.data_hash, "split": origin.split, "folder": str(files.absolute()),
        }  # fmt: skip
        with self._quiet("log to"):
            from mlflow.entities import Metric, Param, RunTag

            info = client.create_run(self.experiment, run_name=f"{result.pipeline} {version.number}").info
            status = "FAILED"
            try:
                parameters = [Param(name, str(value)) for name, value in flatten_settings(origin.settings)]
                client.log_batch(info.run_id, params=parameters, tags=[RunTag(*tag) for tag in tags.items()])
                now = int(time.time() * 1000)
                metrics = [Metric(name, value, now, epoch) for name, value, epoch in list_metrics(result)]
                for start in range(0, len(metrics), _BATCH):
                    client.log_batch(info.run_id, metrics=metrics[start : start + _BATCH])
                for path in sorted(files.iterdir()):
                    client.log_artifact(info.run_id, str(path), "model")
                for kind in ("training_history", "confusion_matrix"):
                    if (path := plots / f"{kind}_{result.pipeline}.png").is_file():
                        client.log_artifact(info.run_id, str(path), "plots")
                registered = self._register(model, info, tags)
                status = "FINISHED"
            finally:
                client.set_terminated(info.run_id, status)
        return f"run {info.run_id}, {model} version {registered} at {self.address}"

    def _register(self, model: str, info: Any, tags: Mapping[str, str]) -> str:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{info.artifact_uri}/model"
        added = self.client.create_model_version(model, source, info.run_id, tags=dict(tags), await_creation_for=None)
        return str(added.version)

    @contextlib.contextmanager
    def _quiet(self, action: str) -> Iterator[None]:
        """Silence MLflow's log, and turn its errors into TrainingError."""
        os.environ.update(_NO_REPORTS)
        for name, value in _RETRIES.items():
            os.environ.setdefault(name, value)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except Exception as error:  # of MLflow, SQLAlchemy or requests, which share no narrower base
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise TrainingError(
                f"cannot {action} MLflow at {self.address} ({reason}): check --mlflow, or train without it"
            ) from error


def list_metrics(result: PipelineResult) -> list[tuple[str, float, int]]:
    """Name, value and epoch of the learning curves and of the test figures; no NaN."""
    curves = [(k, v, record.epoch) for record in result.history for k, v in vars(record).items() if k != "epoch"]
    names = ("best_epoch", "parameters", "model_bytes", "latency_ms", "train_seconds", "temperature")
    last = {f"test_{name}": getattr(result.test, name) for name in ("accuracy", "errors", "clips")}
    last |= {name: getattr(result, name) for name in names}
    metrics = [*curves, *((name, float(value), len(result.history)) for name, value in last.items())]
    return [metric for metric in metrics if math.isfinite(metric[1])]
