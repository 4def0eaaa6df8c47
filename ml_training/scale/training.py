"""One model trained by several machines: Ray Train starts the workers of a process group, and restarts them."""

from __future__ import annotations

import dataclasses
import json
import secrets
from pathlib import Path
from typing import Any

from digit_detector.errors import ClusterError, ConfigError
from digit_detector.files import write_json
from ml_training.config import TrainConfig, to_dict
from ml_training.scale.cluster import MAX_FAILURES, last_line, quiet, ray_cluster

_PATHS = ("models_dir", "log_dir", "data_dir", "extra_digits_dir", "non_digit_dir", "teacher_dir")


def train_on_cluster(config: TrainConfig, workers: int, address: str) -> tuple[str, int]:
    """Train as `digits train` does in `workers` processes; returns the table of figures and the exit code.

    Every machine has to see models_dir and log_dir: where one is lost, all workers resume from the last checkpoint.
    Raises ConfigError, or ClusterError where the cluster is missing, too small, or gave up.
    """
    if workers < 1:
        raise ConfigError([f"workers: expected 1 or more, got {workers}"])
    if config.compile and workers > 1:
        raise ConfigError([f"compile is for one process, not {workers}: leave --compile out"])
    given = {name: getattr(config, name) for name in _PATHS}  # workers run in other folders
    paths: dict[str, Any] = {name: str(Path(path).expanduser().absolute()) for name, path in given.items() if path}
    config = dataclasses.replace(config, **paths)
    threads, gpu = max(1, config.threads), config.device == "cuda"
    result = Path(config.log_dir) / "ray" / f"{secrets.token_hex(8)}.json"
    with ray_cluster(address, workers * threads + 1, 0 if gpu else workers * threads):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        quiet("ray.train")
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"config": to_dict(config), "result": str(result)},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": threads} | ({"GPU": 1} if gpu else {})
            ),
            run_config=RunConfig(
                name="digits_train", storage_path=str(result.parent),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        )  # fmt: skip
        try:
            fault = trainer.fit().error
        except Exception as error:  # Ray's own errors carry the worker's traceback
            fault = error
    if fault is not None:
        raise ClusterError(f"the cluster gave the training up: {last_line(fault)}") from fault
    try:
        found = json.loads(result.read_text(encoding="utf-8"))
        result.unlink()
        return found["table"], found["exit_code"]
    except (OSError, ValueError, KeyError) as error:
        raise ClusterError(f"{result} holds no figures: expected a --log_dir that every machine sees") from error


def train_worker(task: dict[str, Any]) -> None:
    """Train as one process of the group. Rank 0 writes the figures to task["result"], Ray keeps none."""
    from ml_training.training.distributed import process_group
    from ml_training.training.experiment import run, run_worker, summary_table

    config, result = TrainConfig(**task["config"]), Path(task["result"])
    if result.exists():  # started again after a machine was lost
        config = dataclasses.replace(config, resume="latest")
    with process_group(config, "the same command") as group:
        if group.rank:
            run_worker(config, group)
            return
        write_json(result, {})
        outcome = run(config, resume_command="the same command with --resume", group=group)
        write_json(result, {"table": summary_table(outcome), "exit_code": outcome.exit_code})
