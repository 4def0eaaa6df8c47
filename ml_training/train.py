"""Entry point `python ml_training/train.py` and `digits train`: train the pipelines."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

import dataclasses
import shlex
import shutil
from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from digit_detector.cli.parser import OneLineParser, underscored
from digit_detector.cli.program import program, require
from digit_detector.cli.torchrun_env import print_on_local_rank_zero, torchrun_rank
from digit_detector.errors import ConfigError, Interrupted
from digit_detector.files import check_models_dir, unusable
from ml_training.config import MAX_FOLDS, TrainConfig
from ml_training.flags import add_train_flags, train_config_from

CLUSTER_FLAGS = ("engine", "workers", "ray_address")
CV_FLAGS = ("cv", "seeds", "jobs", "keep_models", "compare")
NEEDED = ("torch", "onnx", "onnxscript", "rich", "matplotlib", "jinja2", "tensorboard")


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Train what the flags say; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = OneLineParser(description="Train spoken-digit recognisers: models, logs, plots and a report.")
    add_train_flags(parser)
    _add_cv_flags(parser)
    _add_cluster_flags(parser)
    with print_on_local_rank_zero():
        namespace = parser.parse_args(words)
        cv = {name: vars(namespace).pop(name) for name in CV_FLAGS if name in namespace}
        cluster = {name: vars(namespace).pop(name) for name in CLUSTER_FLAGS if name in namespace}
        config = train_config_from(namespace)
        if cv and "cv" not in cv:
            parser.error(f"{', '.join(f'--{name}' for name in cv)} belong to --cv")
        if cluster and cluster.get("engine") != "ray":
            parser.error(f"{', '.join(f'--{name}' for name in cluster)} belong to --engine ray")
        if cv and "mlflow" in namespace:
            parser.error("--cv does not log its folds to MLflow: leave --mlflow out, or --cv")
        if cluster and cv:
            parser.error("--cv trains on this machine: leave --engine ray out, or --cv")
        check_models_dir(config.models_dir, () if cv else config.pipelines)
        require("training", NEEDED)
        if not cluster:  # its machines have other folders
            check_before_training(config)
    if cluster:
        return _train_on_cluster(config, cluster)
    rank = torchrun_rank()
    if cv:
        if rank is not None:
            parser.error("--cv trains folds in processes of its own: leave torchrun out")
        return _cross_validate(config, cv)
    if rank is not None and rank.restarts and config.resume is None:  # torchrun --max_restarts
        config = dataclasses.replace(config, resume="latest")
    from ml_training.training.distributed import process_group
    from ml_training.training.experiment import run, run_worker, summary_table

    command = resume_command(words)
    with process_group(config, command) as group:
        if group.rank:
            run_worker(config, group)
            return 0
        outcome = run(config, resume_command=command, group=group)
    print(summary_table(outcome))
    return outcome.exit_code


def check_before_training(config: TrainConfig) -> None:
    """Raise ConfigError for folders that cannot be written to, DataError for unusable recordings."""
    if faults := unusable({"models_dir": config.models_dir, "log_dir": config.log_dir}):
        raise ConfigError(faults)
    from ml_training.data.dataset_loader import check_data  # --help and missing extras need no numpy

    check_data(config)


def _add_cv_flags(parser: OneLineParser) -> None:
    add = parser.add_argument_group("cross-validation").add_argument
    add("--cv", metavar="K", type=_folds, default=SUPPRESS,
        help="train K folds, each with its part of every speaker and digit, and test each on the one it leaves out; "
        "'speaker' leaves out one speaker at a time")  # fmt: skip
    add("--seeds", type=int, nargs="+", metavar="N", default=SUPPRESS, help="a round of folds for each (default: 0)")
    add("--jobs", type=int, metavar="N", default=SUPPRESS, help="processes that train folds (default: as many as fit)")
    add("--keep_models", action="store_true", default=SUPPRESS, help="keep the model of every fold beside its result")
    add("--compare", metavar="FILE", default=SUPPRESS, help="JSON of an earlier --cv, to compare with fold by fold")


def _add_cluster_flags(parser: OneLineParser) -> None:
    add = parser.add_argument_group("several machines").add_argument
    add("--engine", choices=("ray",), default=SUPPRESS, help="train on a Ray cluster (extra [scale])")
    add("--workers", type=int, metavar="N", default=SUPPRESS, help="processes that share every step (default: 2)")
    add("--ray_address", metavar="ADDRESS", default=SUPPRESS,
        help="of the cluster (default: $RAY_ADDRESS, or one of this machine)")  # fmt: skip


def _train_on_cluster(config: TrainConfig, flags: dict[str, Any]) -> int:
    from ml_training.scale.training import train_on_cluster

    table, code = train_on_cluster(config, flags.get("workers", 2), flags.get("ray_address", ""))
    print(table)
    return code


def _folds(typed: str) -> int | None:
    if typed == "speaker":
        return None
    if not typed.isdecimal() or not 2 <= int(typed) <= MAX_FOLDS:
        raise ArgumentTypeError(f"expected a number of folds from 2 to {MAX_FOLDS}, or 'speaker', got {typed!r}")
    return int(typed)


def _cross_validate(config: TrainConfig, flags: dict[str, Any]) -> int:
    from ml_training.evaluation.command import Request, evaluate, summary
    from ml_training.evaluation.protocols import CV, LOSO

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    folds, keep = flags["cv"], "keep_models" in flags
    request = Request(
        protocols=(CV if folds else LOSO,), config=config, seeds=tuple(flags.get("seeds", (config.seed,))),
        folds=folds or 2, jobs=flags.get("jobs"), compare=flags.get("compare"),
        keep_models=keep, retrain_thrown=keep,
        output=str(Path(config.log_dir) / "cross_validation"),
    )  # fmt: skip
    try:
        outcome = evaluate(request, report=report)
    except Interrupted:
        report("stopped; the same command continues where it was")
        raise
    print(summary(outcome))
    return 0


def resume_command(words: Sequence[str]) -> str:
    """The command line that resumes a run started with these words."""
    kept: list[str] = []
    after_resume = False
    for word in words:
        is_resume = underscored(word).partition("=")[0] == "--resume"
        if not is_resume and not (after_resume and (word.isdigit() or word == "latest")):
            kept.append(word)
        after_resume = is_resume
    is_digits = sys.argv[0].startswith("digits ")  # as the console command names its entry points
    script = [sys.argv[0]] if Path(sys.argv[0]).name == "train.py" else ["-m", "ml_training.train"]
    if (rank := torchrun_rank()) is None:
        start = ["digits", "train"] if is_digits else [_python(), *script]
    else:
        start = ["torchrun"] if shutil.which("torchrun") else [_python(), "-m", "torch.distributed.run"]
        # How several machines find each other only their user knows.
        where = ["--standalone"] if rank.machines == 1 else ["...", "--nnodes", str(rank.machines)]
        start += [*where, "--nproc_per_node", str(rank.local_world_size)]
        start += ["--no-python", "digits", "train"] if is_digits else script
    return shlex.join([*start, *kept, "--resume"])


def _python() -> str:
    """This interpreter as one would type it here."""
    found = shutil.which("python")
    # Not samefile: a virtual environment's python is often a link to the system's.
    if found is not None and os.path.abspath(found) == os.path.abspath(sys.executable):
        return "python"
    return sys.executable.removeprefix(os.getcwd() + os.sep)


if __name__ == "__main__":
    sys.exit(main())
