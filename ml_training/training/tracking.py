"""What a finished training tells MLflow where that was asked for. Nothing else here knows of it.

MLflow is an extra of its own, [mlflow], and is imported only when a run asks for it. It sends reports of its use to its
makers unless it is told not to: here it is told.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from digit_detector.errors import ConfigError, DigitError, MissingExtraError, TrainingError
from digit_detector.labels import model_folder
from digit_detector.versions import Version, read_version, version_folder
from ml_training.config import MLFLOW_HERE, TrainConfig, flat
from ml_training.results import PipelineResult
from ml_training.utils.logging_utils import RunLogger

EXPERIMENT = "spoken digits"
NEEDED = ("mlflow", "sqlalchemy", "alembic")
DATABASE = "mlflow.db"  # in log_dir, and beside it
ARTEFACTS = "mlflow_artifacts"
_BATCH = 500  # figures at once; MLflow takes a thousand of all kinds
_NO_REPORTS = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}  # its own is a quarter hour


@dataclass(frozen=True)
class TrackedRun:
    """What is told of one training."""

    name: str
    model: str  # that it is a version of
    parameters: Mapping[str, str]
    tags: Mapping[str, str]
    figures: Sequence[tuple[str, float, int]]  # name, value, epoch
    files: Sequence[tuple[Path, str]]  # file, folder among the run's files


class Tracker(Protocol):
    """Who keeps such runs."""

    def log(self, run: TrackedRun) -> str:
        """Keep a run and register its model; returns what people may look for. Raises TrainingError."""


def track(tracker: Tracker, result: PipelineResult, config: TrainConfig, logger: RunLogger) -> dict[str, str]:
    """Tell a tracker of a run; a failure, named, where it did not take it. The models are there all the same."""
    folder = model_folder(config.models_dir, result.pipeline)
    try:
        assert result.version is not None
        version = read_version(folder, result.version)
        where = tracker.log(tracked(result, version, folder, Path(config.log_dir) / "plots"))
    except DigitError as error:
        logger.fail(f"{result.pipeline}: {error}", error, pipeline=result.pipeline)
        return {f"{result.pipeline} in MLflow": str(error)}
    logger.say(f"{result.pipeline}: MLflow {where}", "mlflow", pipeline=result.pipeline)
    return {}


def tracked(result: PipelineResult, version: Version, folder: Path, plots: Path) -> TrackedRun:
    """What a training and the version it became come to; `folder` is the pipeline's, in `plots` lie pictures."""
    origin = version.provenance
    figures = [
        (name, value, record.epoch)
        for record in result.history
        for name, value in vars(record).items()
        if name != "epoch" and math.isfinite(value)
    ]
    last = {
        "test_accuracy": result.test.accuracy, "test_errors": result.test.errors, "test_clips": result.test.clips,
        "best_epoch": result.best_epoch, "parameters": result.parameters, "model_bytes": result.model_bytes,
        "latency_ms": result.latency_ms, "train_seconds": result.train_seconds, "temperature": result.temperature,
    }  # fmt: skip
    figures += [(name, float(value), len(result.history)) for name, value in last.items() if math.isfinite(value)]
    place = version_folder(folder, version.number)
    pictures = (plots / f"{kind}_{result.pipeline}.png" for kind in ("training_history", "confusion_matrix"))
    return TrackedRun(
        name=f"{result.pipeline} {version.number}", model=f"digits-{result.pipeline}",
        parameters={name: str(value) for name, value in flat(origin.settings)},
        tags={
            "version": str(version.number), "parent": str(version.parent), "git_commit": origin.git_commit,
            "data": origin.data, "data_hash": origin.data_hash, "split": origin.split, "folder": str(place.absolute()),
        },
        figures=figures,
        files=[
            *((path, "model") for path in sorted(place.iterdir())),
            *((path, "plots") for path in pictures if path.is_file()),
        ],
    )  # fmt: skip


def tracker_at(address: str, log_dir: Path) -> Tracker:
    """MLflow at an address, or in a file of `log_dir` for the word of the setting.

    Raises ConfigError where MLflow is not installed, TrainingError where nothing answers at the address.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError([str(MissingExtraError(f"mlflow ({', '.join(missing)})", "mlflow"))])
    if address == MLFLOW_HERE:
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"cannot make {log_dir}: {error.strerror or error}; choose another --log_dir"
            ) from error
        address = f"sqlite:///{(log_dir / DATABASE).absolute().as_posix()}"
    return _Mlflow(address, (log_dir / ARTEFACTS).absolute())


class _Mlflow:
    def __init__(self, address: str, artefacts: Path) -> None:
        self.address = address
        with self._talking("reach"):
            from mlflow.tracking import MlflowClient

            self.client = MlflowClient(tracking_uri=address, registry_uri=address)
            found = self.client.get_experiment_by_name(EXPERIMENT)
            place = artefacts.as_uri() if address.startswith("sqlite") else None  # a server has a place of its own
            self.experiment = found.experiment_id if found else self.client.create_experiment(EXPERIMENT, place)

    def log(self, run: TrackedRun) -> str:
        with self._talking("log to"):
            from mlflow.entities import Metric, Param, RunTag

            info = self.client.create_run(self.experiment, run_name=run.name).info
            ended = "FAILED"
            try:
                now = int(time.time() * 1000)
                self.client.log_batch(
                    info.run_id,
                    params=[Param(name, value) for name, value in run.parameters.items()],
                    tags=[RunTag(name, value) for name, value in run.tags.items()],
                )
                metrics = [Metric(name, value, now, step) for name, value, step in run.figures]
                for start in range(0, len(metrics), _BATCH):
                    self.client.log_batch(info.run_id, metrics=metrics[start : start + _BATCH])
                for path, folder in run.files:
                    self.client.log_artifact(info.run_id, str(path), folder)
                registered = self._register(run, info)
                ended = "FINISHED"
            finally:
                self.client.set_terminated(info.run_id, ended)
        return f"run {info.run_id}, {run.model} {registered} at {self.address}"

    def _register(self, run: TrackedRun, info: Any) -> str:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(run.model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{info.artifact_uri}/model"
        made = self.client.create_model_version(
            run.model, source, info.run_id, tags=dict(run.tags), await_creation_for=None
        )
        return f"version {made.version}"

    @contextlib.contextmanager
    def _talking(self, what: str) -> Iterator[None]:
        """Without MLflow's chatter, and with errors of ours."""
        os.environ.update(_NO_REPORTS)
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except Exception as error:  # of MLflow, SQLAlchemy or requests, which share no narrower base
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise TrainingError(
                f"cannot {what} MLflow at {self.address} ({reason}): look at --mlflow, or train without it"
            ) from error
