"""One model trained by several machines, each with its part of every step: Ray Train starts and restarts them."""

from __future__ import annotations

import dataclasses
import json
import secrets
from pathlib import Path
from typing import Any

from digit_detector.errors import ClusterError, ConfigError
from digit_detector.files import write_json
from digit_detector.labels import model_folder
from ml_training.config import TrainConfig, to_dict
from ml_training.scale.cluster import cluster, cores_of, quiet

MAX_FAILURES = 8  # machines that may be lost before the work is given up
_PLACES = ("models_dir", "log_dir", "data_dir", "extra_dir", "words_dir", "teacher_dir")


def train_on_cluster(config: TrainConfig, workers: int, address: str) -> tuple[str, int]:
    """Train as `digits train` does, in so many workers; the table of what came of it, and the exit code.

    Checkpoints lie in models_dir, which every machine has to see: where a worker is lost, all go on from the last one.
    Raises ConfigError for settings that cannot be, ClusterError where the cluster is not there, is too small, or gave
    up.
    """
    if workers < 1:
        raise ConfigError([f"workers: expected 1 or more, got {workers}"])
    if config.compile and workers > 1:
        raise ConfigError([f"compile is for one process, not {workers}: leave --compile out"])
    config = _with_whole_paths(config)
    threads, job = max(1, config.threads), secrets.token_hex(8)
    with cluster(address, workers * threads + 1) as ray:
        if cores_of(ray) < workers * threads and config.device != "cuda":
            raise ClusterError(
                f"the cluster has {cores_of(ray)} cores, {workers} workers of {threads} threads need "
                f"{workers * threads}: ask for fewer --workers or add machines"
            )
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        quiet("ray.train")
        gpu = config.device == "cuda"
        trainer = TorchTrainer(
            train_part,
            train_loop_config={"config": to_dict(config), "job": job},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": threads, **({"GPU": 1} if gpu else {})}
            ),
            run_config=RunConfig(
                name="digits_train", storage_path=str(Path(config.log_dir) / "ray"),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        )  # fmt: skip
        try:
            result = trainer.fit()
        except Exception as error:  # Ray's own errors carry the worker's traceback
            raise ClusterError(f"the cluster gave the training up: {_reason(error)}") from error
    if result.error is not None:
        raise ClusterError(f"the cluster gave the training up: {_reason(result.error)}")
    path = _ending(config, job)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClusterError(f"{path} is not there: expected a --log_dir that every machine sees") from error
    path.unlink(missing_ok=True)
    return found["table"], found["exit_code"]


def _ending(config: TrainConfig, job: str) -> Path:
    """Where the first worker says what came of it: Ray keeps the last words of no worker without a checkpoint."""
    return Path(config.log_dir) / "ray" / f"{job}.json"


def train_part(task: dict[str, Any]) -> None:
    """What each worker does, called by Ray: the first rank as `runner.run`, the others as `runner.run_worker`."""
    from ml_training.training.distributed import process_group
    from ml_training.training.experiment import run, run_worker, summary_table

    config = TrainConfig(**task["config"])
    if _begun_by(config, task["job"]):
        config = dataclasses.replace(config, resume="latest")
    with process_group(config, "the same command") as group:
        if group.rank:
            run_worker(config, group)
        else:
            _note(config, task["job"])
            outcome = run(config, resume_command="the same command with --resume", group=group)
            found = {"table": summary_table(outcome), "exit_code": outcome.exit_code}
            write_json(_ending(config, task["job"]), found)


def _marks(config: TrainConfig) -> list[Path]:
    return [model_folder(config.models_dir, name) / "ray_job.json" for name in config.pipelines]


def _begun_by(config: TrainConfig, job: str) -> bool:
    """Whether this job has been here before it was started again."""
    try:
        return any(json.loads(path.read_text(encoding="utf-8"))["job"] == job for path in _marks(config))
    except (OSError, ValueError, KeyError):
        return False


def _note(config: TrainConfig, job: str) -> None:
    for path in _marks(config):
        write_json(path, {"job": job})


def _with_whole_paths(config: TrainConfig) -> TrainConfig:
    """Workers run in other folders."""
    given = {name: getattr(config, name) for name in _PLACES}
    whole: dict[str, Any] = {
        name: str(Path(path).expanduser().absolute()) for name, path in given.items() if path is not None
    }
    return dataclasses.replace(config, **whole)


def _reason(error: BaseException) -> str:
    """The line of a long message that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("digit_detector.errors.")]
    return (ours or lines or [type(error).__name__])[-1].removeprefix("digit_detector.errors.")[:300]
