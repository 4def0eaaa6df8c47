"""Search for better settings: `python ml_training/tune.py` and `digits tune`."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, require
from digit_detector.errors import Interrupted
from digit_detector.files import check_not_shipped
from ml_training.config import to_dict
from ml_training.flags import add_train_flags, train_config_from
from ml_training.utils.console import print_note

if TYPE_CHECKING:
    from ml_training.report.tuning import SearchResult

NEEDED = ("torch", "matplotlib", "jinja2", "scipy", "rich")
OWN = ("trials", "sampler", "pruner", "folds", "workers", "output", "storage")  # fields of SearchSpec


def parser() -> OneLineParser:
    """The flags of the search, and those of train.py, which all trials share."""
    flags = OneLineParser(
        description="Search for better settings with Optuna: the best become a file for --config, and a report."
    )
    add = flags.add_argument_group("search").add_argument
    add("--space", default="default", metavar="FILE",
        help="JSON file of the values that settings may take, or the name of one of the package")  # fmt: skip
    add("--trials", type=int, default=50, metavar="N", help="trials in all, those of earlier calls included")
    add("--sampler", default="tpe", metavar="NAME", help="tpe, random or grid: which settings are tried")
    add("--pruner", default="median", metavar="NAME", help="median, halving or none: which trials end early")
    add("--objective", nargs="+", default=["validation"], metavar="NAME",
        help="validation, cv or loso: clips right; after validation also latency or size: a Pareto front")  # fmt: skip
    add("--folds", type=int, default=5, metavar="K", help="folds of objective cv")
    add("--workers", type=int, default=1, metavar="N", help="trials at once, each in a process with --threads threads")
    add("--output", default="tuning", metavar="DIR", help="folder of the search; a search there goes on")
    add("--storage", default="", metavar="ADDRESS",
        help="database of the study, as sqlite:///study.db (default: a journal file in --output)")  # fmt: skip
    add("--engine", choices=("here", "ray"), default="here", help="ray: trials run on a Ray cluster (extra [scale])")
    add("--ray_address", default="", metavar="ADDRESS", help="of the cluster (default: $RAY_ADDRESS, or this machine)")
    add_train_flags(flags)
    return flags


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Search as the flags say; returns the exit code, 1 if no trial was completed."""
    flags = parser()
    namespace = flags.parse_args(argv)
    own = {name: vars(namespace).pop(name) for name in OWN}
    space, objectives, engine, address = (
        vars(namespace).pop(name) for name in ("space", "objective", "engine", "ray_address")
    )
    if address and engine != "ray":
        flags.error("--ray_address belongs to --engine ray")
    if "mlflow" in namespace:
        flags.error("a search does not log its trials to MLflow: leave --mlflow out")
    config = train_config_from(namespace)
    check_not_shipped(config.models_dir)
    require("a search", NEEDED)
    require("a search", ("optuna",), "tune")
    from ml_training.data.dataset_loader import check_data
    from ml_training.tuning.space import load_space
    from ml_training.tuning.spec import SearchSpec

    spec = SearchSpec(config=to_dict(config), space=load_space(space), objectives=tuple(objectives), **own)
    backend = None
    if engine == "ray":
        from ml_training.scale.tuning import search_on_cluster

        backend = partial(search_on_cluster, address)
    else:
        check_data(config)  # the machines of a cluster have their own folders
    from ml_training.tuning.search import tune

    try:
        result = tune(spec, print_note, backend=backend)
    except Interrupted:
        print_note("stopped; the same command goes on where it was")
        raise
    print(summary(result))
    return 0 if result.best else 1


def summary(result: SearchResult) -> str:
    """The result of a search, in a few lines."""
    from ml_training.tuning.search import BEST, REPORT, format_value

    folder, best = result.spec.folder, result.best
    completed, pruned, failed = (result.count(state) for state in ("COMPLETE", "PRUNED", "FAIL"))
    counts = f"{len(result.trials)} trials: {completed} completed, {pruned} pruned, {failed} failed"
    lines = ["", f"{counts}; epochs: {result.epochs}; {result.seconds:.0f} s"]
    if best is not None:
        lines.append(f"best: {', '.join(map(format_value, result.spec.objectives, best.values))}")
        lines += [
            f"  {name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in best.params.items()
        ]
        lines.append(f"train with it: digits train --config {folder / BEST}")
    lines += [f"on the Pareto front: {folder / f'pareto_{trial.number}.json'}" for trial in result.front]
    faults = dict.fromkeys(t.user_attrs["fault"] for t in result.trials if "fault" in t.user_attrs)
    lines += [f"failed: {fault}" for fault in list(faults)[:3]]
    return "\n".join([*lines, f"report: {folder / REPORT}"])


if __name__ == "__main__":
    sys.exit(main())
