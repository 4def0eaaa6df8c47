"""Score models by named protocols: `python ml_training/evaluate.py` and `digits evaluate`."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide other modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, require
from digit_detector.errors import ConfigError, Interrupted
from digit_detector.labels import FILE_PRECISIONS, FP32
from ml_training.config import DATASETS, TrainConfig, load_config
from ml_training.utils.console import print_note

if TYPE_CHECKING:
    from digit_detector.evaluation.perturbations import Perturbation

PROTOCOLS = ("official", "cv", "loso", "unseen_speakers", "noise", "calibration", "rejection", "strings")
CONTEXTS = ("digits", "any")  # of the live detector: digits are spoken, or anything
# Settings of TrainConfig; those not given come from --config or the defaults.
SETTINGS = ("pipeline", "dataset", "data_dir", "log_dir", "epochs", "threads", "device")


def parser() -> OneLineParser:
    """The flags; except for settings of the training, `dest` is the field of Request."""
    flags = OneLineParser(description="Evaluate digit recognisers by named protocols: JSON, tables, plots, a report.")
    add = flags.add_argument
    add("--protocol", dest="protocols", nargs="+", choices=PROTOCOLS, type=_protocol, default=[], metavar="NAME",
        help=", ".join(PROTOCOLS))  # fmt: skip
    add("--pipeline", metavar="NAME", default=SUPPRESS, help="which models (default: all)")
    add("--models_dir", "--model_dir", dest="models_dirs", nargs="+", default=["models"], metavar="DIR",
        help="folders of trained models; of several, e.g. one a seed, the table shows each and their mean")  # fmt: skip
    add("--precision", choices=FILE_PRECISIONS, default=FP32, help="which of their files")
    add("--version", dest="model_version", type=int, default=None, metavar="N",
        help="a version of these models (default: the promoted one)")  # fmt: skip
    add("--dataset", choices=DATASETS, default=SUPPRESS, help="which recordings, as in training")
    add("--data_dir", default=SUPPRESS, metavar="DIR", help="folder or table of recordings, as in training")
    add("--folder", dest="folders", nargs="+", default=[], metavar="DIR",
        help="folders or tables of labelled clips for all but official, cv and loso (without: the official test part)",
        )  # fmt: skip
    add("--noise_dir", default=None, metavar="DIR", help="folder of background recordings for noise, and for snr=DB")
    add("--others", nargs="+", default=[], metavar="KIND=DIR", type=_pair("KIND=DIR", "words=recordings/words"),
        help="recordings without a digit for rejection, e.g. words=DIR sentences=DIR noise=DIR")  # fmt: skip
    column, speech = _pair("COLUMN=VALUE", "fold=4"), _pair("NAME=PLACE", "books=recordings/books")
    add("--strings", nargs="+", default=[], metavar="PLACE",
        help="recordings of digit strings: folders with clips.tsv, or tables with columns file and digits")  # fmt: skip
    add("--where", nargs="+", default=[], metavar="COLUMN=VALUE", type=column, help="rows of these, e.g. fold=4")
    add("--speech", nargs="+", default=[], metavar="NAME=PLACE", type=speech,
        help="speech without digit strings: folders, or tables with columns file and text")  # fmt: skip
    add("--speech_where", nargs="+", default=[], metavar="COLUMN=VALUE", type=column, help="rows of these tables")
    add("--perturb", nargs="+", default=[], metavar="KIND=VALUE", type=_perturbation,
        help="of strings and speech, one at a time: tempo=1.5, packet_loss=0.1, codec=gsm, snr=10 (with --noise_dir), "
        "level=-40, dc_offset=0.1, echo=-6, missing_start=0.1")  # fmt: skip
    add("--context", choices=CONTEXTS, default=CONTEXTS[0], help="of the live detector, for strings")
    add("--live_model", default=None, metavar="FILE", help="model of the live detector (default: the bundled one)")
    add("--noise_seed", type=int, default=0, help="seed of noises, rooms and lost packets")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="seeds of the trainings of cv and loso")
    add("--speakers", nargs="+", default=[], metavar="NAME", help="speakers that loso leaves out (default: each)")
    add("--folds", type=int, default=10, metavar="K", help="of cv")
    add("--jobs", type=int, default=None, metavar="N", help="processes that train folds (default: as many as fit)")
    add("--compare", default=None, metavar="FILE", help="an earlier JSON of cv or loso, to compare with fold by fold")
    add("--config", default=SUPPRESS, metavar="FILE", help="JSON file of settings that cv and loso train with")
    add("--epochs", type=int, default=SUPPRESS, help="passes over the training part in cv and loso")
    add("--device", default=SUPPRESS, help="where cv and loso train: auto, cpu or cuda")
    add("--threads", type=int, default=SUPPRESS, help="CPU threads of each process of cv and loso")
    add("--log_dir", default=SUPPRESS, metavar="DIR", help="cv and loso keep folds below it (default: train_logs)")
    add("--output", default="evaluation_results", metavar="DIR", help="where JSON, plots and the report go")
    add("--log_scoring", default=None, metavar="FILE",
        help="log of every scoring of evaluation-only recordings: adds a line for each --folder")  # fmt: skip
    add("--update_docs", default=None, metavar="FILE", help="write this Markdown page from the JSON files in --output")
    return flags


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate what the flags name; returns the exit code."""
    values = vars(parser().parse_args(argv))
    flags = {name: values.pop(name) for name in (*SETTINGS, "config") if name in values}
    if not {"cv", "loso"} & set(values["protocols"]):  # models there need no class of their pipeline
        values["pipeline"] = flags.pop("pipeline", None)
    config = load_settings(flags)
    training = ["torch", "rich"] if {"cv", "loso"} & set(values["protocols"]) else []
    require("evaluation", (*training, "matplotlib", "jinja2"))
    from ml_training.evaluation.command import Request, evaluate, summary

    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    try:
        outcome = evaluate(Request(config=config, **{**values, **lists}), report=print_note)
    except Interrupted:
        print_note("stopped; the same command continues where it was")
        raise
    print(summary(outcome))
    return 0


def load_settings(flags: Mapping[str, Any]) -> TrainConfig:
    """Flags over the file of --config over the defaults. Raises ConfigError."""
    values = {**(load_config(flags["config"]) if "config" in flags else {}), **flags}
    file = values.pop("config", None)
    if values.get("split") in ("speaker", "fold"):
        raise ConfigError(["split: the protocol decides it, leave it and held_out_speaker out"], file)
    return TrainConfig(**values)


def _protocol(name: str) -> str:
    if name != "strangers":
        return name
    print_note("--protocol strangers is now called unseen_speakers")
    return "unseen_speakers"


def _pair(form: str, example: str) -> Callable[[str], tuple[str, str]]:
    def parse(text: str) -> tuple[str, str]:
        name, _, value = text.partition("=")
        if not (name and value):
            raise ArgumentTypeError(f"expected {form}, e.g. {example}, got {text!r}")
        return name, value

    return parse


def _perturbation(text: str) -> Perturbation:
    from digit_detector.evaluation.perturbations import parse_perturbation

    try:
        return parse_perturbation(text)
    except ConfigError as error:
        raise ArgumentTypeError("; ".join(error.faults)) from error


if __name__ == "__main__":
    sys.exit(main())
