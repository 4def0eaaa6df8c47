"""Evaluate by named protocols: the door behind `python ml_training/evaluate.py` and `digits evaluate`."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

from argparse import SUPPRESS, ArgumentTypeError, Namespace
from collections.abc import Sequence
from typing import Any

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, require
from digit_detector.errors import ConfigError, Interrupted
from digit_detector.labels import FILE_PRECISIONS, FP32
from ml_training.config import DATASETS, TrainConfig, load_config

NEEDED = ("matplotlib", "jinja2")
TRAINING = ("cv", "loso")  # protocols that train, and need torch too
PROTOCOLS = ("official", "cv", "loso", "strangers", "noise", "calibration", "rejection")
# Flags that are settings of TrainConfig; what is left out comes from --config or the defaults.
SETTINGS = ("pipeline", "dataset", "data_dir", "log_dir", "epochs", "threads", "device")


def parser() -> OneLineParser:
    """What may be typed."""
    flags = OneLineParser(description="Evaluate digit recognisers by named protocols: JSON, tables, plots, a report.")
    add = flags.add_argument
    add("--protocol", nargs="+", choices=PROTOCOLS, default=[], metavar="NAME", help=", ".join(PROTOCOLS))
    add("--pipeline", metavar="NAME", default=SUPPRESS, help="who is evaluated (default: all)")
    add("--models_dir", "--model_dir", nargs="+", default=["models"], metavar="DIR",
        help="folders of trained models; several, e.g. one a seed, are told side by side with their mean")  # fmt: skip
    add("--precision", choices=FILE_PRECISIONS, default=FP32, help="which of their files answers")
    add("--version", type=int, default=None, metavar="N", help="a version of these models (default: the promoted one)")
    add("--dataset", choices=DATASETS, default=SUPPRESS, help="which recordings, as in training")
    add("--data_dir", default=SUPPRESS, metavar="DIR", help="folder or table of recordings, as in training")
    add(
        "--folder",
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders or tables of labelled clips for all but official, cv and loso (without: the official test part)",
    )
    add("--noise_dir", default=None, metavar="DIR", help="folder of background recordings for noise")
    add("--others", nargs="+", default=[], metavar="KIND=DIR", type=_kind,
        help="recordings without a digit for rejection, e.g. words=DIR sentences=DIR noise=DIR")  # fmt: skip
    add("--noise_seed", type=int, default=0, help="seed of noises and rooms")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="seeds of the trainings of cv and loso")
    add("--speakers", nargs="+", default=[], metavar="NAME", help="speakers that loso leaves out (default: each)")
    add("--folds", type=int, default=10, metavar="K", help="of cv")
    add("--jobs", type=int, default=None, metavar="N", help="processes that train folds (default: as many as fit)")
    add("--compare", default=None, metavar="FILE", help="an earlier JSON of cv or loso, to compare with fold by fold")
    add("--config", default=SUPPRESS, metavar="FILE", help="JSON file of settings that cv and loso train with")
    add("--epochs", type=int, default=SUPPRESS, help="passes over the training part in cv and loso")
    add("--device", default=SUPPRESS, help="where cv and loso train: auto, cpu or cuda")
    add("--threads", type=int, default=SUPPRESS, help="CPU threads of each process of cv and loso")
    add(
        "--log_dir",
        default=SUPPRESS,
        metavar="DIR",
        help="cv and loso keep folds below it (default: train_logs)",
    )
    add("--output", default="evaluation_results", metavar="DIR", help="where JSON, plots and the report go")
    add("--log_scoring", default=None, metavar="FILE",
        help="log of every look at evaluation-only recordings: adds a line for each --folder scored")  # fmt: skip
    add("--update_docs", default=None, metavar="FILE", help="write this Markdown page from the JSON files in --output")
    return flags


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate what the flags say; returns the exit code."""
    namespace = parser().parse_args(argv)
    config = config_from(namespace)
    require("evaluation", (*(["torch", "rich"] if set(TRAINING) & set(namespace.protocol) else []), *NEEDED))
    from ml_training.evaluation.command import Request, evaluate, summary

    try:
        outcome = evaluate(
            Request(
                protocols=tuple(namespace.protocol), config=config,
                pipeline=getattr(namespace, "pipeline", config.pipeline), models_dirs=tuple(namespace.models_dir),
                precision=namespace.precision, model_version=namespace.version,
                folders=tuple(namespace.folder), noise_dir=namespace.noise_dir,
                others=tuple(namespace.others), noise_seed=namespace.noise_seed,
                seeds=tuple(namespace.seeds), speakers=tuple(namespace.speakers), output=namespace.output,
                log_scoring=namespace.log_scoring, update_docs=namespace.update_docs,
                folds=namespace.folds, jobs=namespace.jobs, compare=namespace.compare,
            ),
            report=_say,
        )  # fmt: skip
    except Interrupted:
        _say("stopped; the same command goes on where it was")
        raise
    print(summary(outcome))
    return 0


def config_from(namespace: Namespace) -> TrainConfig:
    """Flags over the file of --config over the defaults. Raises ConfigError."""
    values: dict[str, Any] = load_config(namespace.config) if "config" in namespace else {}
    values |= {name: getattr(namespace, name) for name in SETTINGS if name in namespace}
    if "pipeline" in namespace and not set(TRAINING) & set(namespace.protocol):
        del values["pipeline"]  # of models that are there: their class need not be
    if values.get("split") in ("speaker", "fold"):  # the settings of one fold are welcome, what it leaves out is not
        raise ConfigError(["split: the protocol decides it, leave it and held_out_speaker out"], namespace.config)
    return TrainConfig(**values)


def _kind(text: str) -> tuple[str, str]:
    kind, sign, folder = text.partition("=")
    if not (kind and sign and folder):
        raise ArgumentTypeError(f"expected KIND=DIR, e.g. words=recordings/words, got {text!r}")
    return kind, folder


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
