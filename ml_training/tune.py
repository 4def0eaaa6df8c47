"""Search for better settings: the door behind `python ml_training/tune.py` and `digits tune`."""

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
from ml_training.flags import add_train_flags, train_config_from

if TYPE_CHECKING:
    from ml_training.tuning.search import TuneOutcome

NEEDED = ("torch", "matplotlib", "jinja2", "scipy", "rich")
OWN = (
    "space",
    "trials",
    "sampler",
    "pruner",
    "objective",
    "folds",
    "workers",
    "output",
    "storage",
    "engine",
    "ray_address",
)


def parser() -> OneLineParser:
    """What may be typed: what all trials share, as for train.py, and how to search."""
    flags = OneLineParser(
        description="Search for better settings with Optuna: the best become a file for --config, and a report."
    )
    add = flags.add_argument_group("search").add_argument
    add("--space", default="default", metavar="FILE",
        help="JSON file that says which settings may be which, or the name of one that comes along")  # fmt: skip
    add("--trials", type=int, default=50, metavar="N", help="how many in all, those that are there included")
    add("--sampler", default="tpe", metavar="NAME", help="tpe, random or grid: what is tried next")
    add("--pruner", default="median", metavar="NAME", help="median, halving or none: what is given up early")
    add("--objective", nargs="+", default=["validation"], metavar="NAME",
        help="validation, cv or loso: clips right; after validation also latency or size: a Pareto front")  # fmt: skip
    add("--folds", type=int, default=5, metavar="K", help="of objective cv")
    add("--workers", type=int, default=1, metavar="N", help="trials at once, each in a process with --threads threads")
    add("--output", default="tuning", metavar="DIR", help="folder of the search; the same one goes on with it")
    add("--storage", default="", metavar="ADDRESS",
        help="database of the study, as sqlite:///study.db (default: a journal file in --output)")  # fmt: skip
    add("--engine", choices=("here", "ray"), default="here", help="ray: trials run on a Ray cluster (extra [scale])")
    add(
        "--ray_address",
        default="",
        metavar="ADDRESS",
        help="of the cluster (default: $RAY_ADDRESS, or this machine)",
    )
    add_train_flags(flags)
    return flags


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Search as the flags say; returns the exit code, 1 where no trial was completed."""
    flags = parser()
    namespace = flags.parse_args(argv)
    own = {name: vars(namespace).pop(name) for name in OWN}
    if own["ray_address"] and own["engine"] != "ray":
        flags.error("--ray_address belongs to --engine ray")
    if "mlflow" in namespace:
        flags.error("a search tells its trials to no MLflow: leave --mlflow out")
    config = train_config_from(namespace)
    check_not_shipped(config.models_dir)
    require("a search", NEEDED)
    require("a search", ("optuna",), "tune")
    from ml_training.tuning.space import find_space, load_space
    from ml_training.tuning.spec import TuneRequest

    load_space(own["space"])
    with find_space(own["space"]).open(encoding="utf-8-sig") as file:
        space = json.load(file)
    request = TuneRequest(
        config=config, space=space, trials=own["trials"], sampler=own["sampler"], pruner=own["pruner"],
        objectives=tuple(own["objective"]), folds=own["folds"], workers=own["workers"], output=own["output"],
        storage=own["storage"],
    )  # fmt: skip
    from ml_training.data.dataset_loader import check_data

    if own["engine"] != "ray":  # others see other folders
        check_data(config)
    from ml_training.tuning.search import tune

    backend = None
    if own["engine"] == "ray":
        from ml_training.scale.tuning import search_on_cluster

        backend = partial(search_on_cluster, own["ray_address"])
    try:
        outcome = tune(request, _say, backend=backend)
    except Interrupted:
        _say("stopped; the same command goes on where it was")
        raise
    print(summary(outcome, request.objectives))
    return 0 if outcome.best else 1


def summary(outcome: TuneOutcome, objectives: Sequence[str]) -> str:
    """What came of it, in a few lines."""
    from ml_training.tuning.search import format_value

    saved = 1 - outcome.epochs / outcome.most_epochs if outcome.most_epochs else 0.0
    lines = [
        "",
        f"{outcome.trials} trials: {outcome.completed} to the end, {outcome.pruned} given up, {outcome.failed} failed; "
        f"{outcome.epochs} epochs of {outcome.most_epochs}, {100 * saved:.0f} % saved; {outcome.seconds:.0f} s",
    ]
    if outcome.best:
        lines.append(f"best: {', '.join(map(format_value, objectives, outcome.values))}")
        lines += [f"  {name} {json.dumps(value)}" for name, value in outcome.settings.items()]
        lines.append(f"train with it: digits train --config {outcome.best}")
    lines += [f"on the Pareto front: {path}" for path in outcome.front]
    lines += [f"failed: {fault}" for fault in outcome.faults[:3]]
    return "\n".join([*lines, f"report: {outcome.report}"])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
