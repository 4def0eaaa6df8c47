"""Measure our models beside what else people use: the door behind `make bench` and `digits benchmark`."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

from collections.abc import Sequence
from pathlib import Path

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, require
from digit_detector.errors import ConfigError

NEEDED = ("torch", "matplotlib")


def parser() -> OneLineParser:
    """What may be typed."""
    flags = OneLineParser(description="Accuracy, speed, memory, size and start of our models beside others, in turn.")
    add = flags.add_argument
    add("--models_dir", "--model_dir", default="pretrained", metavar="DIR", help="whose models take part")
    add("--data_dir", default=None, metavar="DIR", help="FSDD, as in training: its official test part is heard")
    add("--folder", default=None, metavar="DIR", help="labelled clips of strangers to all, heard as well")
    add("--contenders", nargs="+", default=None, metavar="NAME", help="who takes part (default: everybody)")
    add("--rounds", type=int, default=10, help="how often everybody has a turn")
    add("--singles", type=int, default=50, help="clips of a turn")
    add("--seconds", type=float, default=20.0, help="no step that would take longer is begun")
    add("--output", default="benchmark_results", metavar="DIR", help="where JSON, plots and the table go")
    add("--log_scoring", default=None, metavar="FILE", help="log of every look at evaluation-only recordings")
    return flags


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the flags say; returns the exit code."""
    namespace = parser().parse_args(argv)
    require("the benchmark", NEEDED)
    from ml_training.config import TrainConfig
    from ml_training.evaluation.benchmark import Plan
    from ml_training.evaluation.benchmark_clips import benchmark
    from ml_training.evaluation.benchmark_page import table, write_benchmark
    from ml_training.evaluation.contenders import contenders

    names = namespace.contenders or list(contenders())
    unknown = [name for name in names if name not in contenders()]
    faults = [f"contenders: expected some of {', '.join(contenders())}, got {', '.join(unknown)}"] if unknown else []
    faults += [
        f"{name}: expected more than 0, got {getattr(namespace, name)}"
        for name in ("rounds", "singles", "seconds")
        if not getattr(namespace, name) > 0
    ]
    if faults:
        raise ConfigError(faults, "the benchmark")
    result = benchmark(
        TrainConfig(dataset="fsdd", data_dir=namespace.data_dir), names, namespace.models_dir,
        None if namespace.folder is None else Path(namespace.folder),
        Plan(rounds=namespace.rounds, singles=namespace.singles, seconds=namespace.seconds),
        None if namespace.log_scoring is None else Path(namespace.log_scoring),
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    page = write_benchmark(result, Path(namespace.output))
    print("\n".join(table(result)))
    print(f"\nplots and JSON: {page.parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
