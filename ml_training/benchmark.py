"""Measure the speed, size and accuracy of exported models: `digits benchmark`."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide other modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

import json
from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ml_training
from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program
from digit_detector.files import write_atomically
from digit_detector.labels import PRETRAINED, trained_pipelines
from digit_detector.model_file import git_commit
from ml_training.evaluation.speed import ModelSpeed, list_models, machine, measure_model, score_models

FILE = "benchmark.json"
FLAGS_OF_PEERS = ("contenders", "rounds", "singles", "seconds")  # until 0.1


def parser() -> OneLineParser:
    flags = OneLineParser(description="Latency, throughput, start, memory, size and accuracy of exported models.")
    add = flags.add_argument
    add("--models_dir", "--model_dir", default=PRETRAINED, metavar="DIR",
        help=f"folder of models, or {PRETRAINED}: those that ship")  # fmt: skip
    add("--pipeline", metavar="NAME", default="all", help="which of them")
    add("--data_dir", default=None, metavar="DIR", help="FSDD, for the accuracy on its official test part")
    add("--folder", default=None, metavar="DIR", help="labelled clips, for the accuracy on them")
    add("--samples", type=_positive, default=1000, metavar="N", help="clips that are timed")
    add("--starts", type=_positive, default=5, metavar="N", help="processes whose start is timed")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--output", default="benchmark_results", metavar="DIR", help=f"where {FILE} goes")
    add("--log_scoring", default=None, metavar="FILE", help="log of every scoring of evaluation-only recordings")
    for name in FLAGS_OF_PEERS:
        add(f"--{name}", nargs="*", default=SUPPRESS, help=SUPPRESS)
    return flags


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Measure the models that the flags name; returns the exit code."""
    flags = parser()
    args = flags.parse_args(argv)
    if removed := [f"--{name}" for name in FLAGS_OF_PEERS if name in args]:
        flags.error(
            f"{', '.join(removed)}: benchmarks/peers.py of the repository (make bench) measures other recognisers"
        )
    models = list_models(
        args.models_dir, trained_pipelines(args.models_dir) if args.pipeline == "all" else (args.pipeline,)
    )
    log = None if args.log_scoring is None else Path(args.log_scoring)
    scored = args.data_dir is not None or args.folder is not None
    accuracy = score_models(args.models_dir, models, args.data_dir, args.folder, log) if scored else {}
    threads = sorted({1, os.cpu_count() or 1})
    speeds = []
    for number, (pipeline, precision) in enumerate(models):
        print(f"measuring {pipeline}, {precision}", file=sys.stderr, flush=True)
        speed = measure_model(args.models_dir, pipeline, precision, args.samples, args.starts, threads)
        speeds.append(replace(speed, accuracy={name: counts[number] for name, counts in accuracy.items()}))
    result: dict[str, Any] = {
        "models": [{"name": speed.name, **asdict(speed)} for speed in speeds], "machine": machine(),
        "version": ml_training.__version__, "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    file, content = Path(args.output, FILE), json.dumps(result, indent=1)
    write_atomically(file, content.encode())
    print(content if args.json else f"{format_table(speeds)}\n\n{file}")
    return 0


def format_table(speeds: Sequence[ModelSpeed]) -> str:
    """The figures in aligned columns, a line for each model."""
    threads = list(speeds[0].clips_per_second)
    rows = [[
        "", *(f"{protocol}, %" for protocol in speeds[0].accuracy), "p50 ms", "p95 ms", "p99 ms",
        *(f"clips/s, {n} thread{'s' * (n != '1')}" for n in threads), "start, ms", "memory, MB", "model, MB",
    ]]  # fmt: skip
    for speed in speeds:
        rows.append([
            speed.name, *(f"{100 * count.accuracy:.1f}" for count in speed.accuracy.values()),
            *(f"{speed.latency_ms[name]:.2f}" for name in ("p50", "p95", "p99")),
            *(f"{max(speed.clips_per_second[n].values()):,.0f}" for n in threads),
            f"{speed.start_ms:,.0f}", "" if speed.memory_mb is None else f"{speed.memory_mb:,.0f}",
            f"{speed.model_mb:.2f}",
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) for r in rows)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
