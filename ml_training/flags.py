"""Command-line flags: one for every setting of a training, and a parser whose faults are one line."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Sequence
from typing import Any, NoReturn

from ml_training.config import MLFLOW_HERE, AugmentationConfig, TrainConfig, alternatives, read_config
from ml_training.errors import ConfigError, did_you_mean


class _HelpFormatter(argparse.HelpFormatter):
    """Adds the default to the help of each flag that has one and does not name it itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if (
            "(default:" in text
            or default is argparse.SUPPRESS
            or isinstance(default, bool)
            or default in (None, "", [], ())
        ):
            return text
        return f"{text} (default: {as_typed(default).replace('%', '%%')})"


def as_typed(value: Any) -> str:
    """A value of a flag as one would type it."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose flags take - and _ alike."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args)
        flags = words.index("--") if "--" in words else len(words)  # what follows -- are no flags
        words[:flags] = map(underscored, words[:flags])
        # Files and numbers may stand between flags; argparse cannot do that and -- at once.
        parse = self.parse_known_args if "--" in words else self.parse_known_intermixed_args
        parsed, unknown = parse(words, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            self.error(f"unknown argument {unknown[0]}" + did_you_mean(unknown[0].split("=")[0], known))
        return parsed


def underscored(word: str) -> str:
    """--batch-size=32 as --batch_size=32; words that are no long flags stay as they are."""
    if not word.startswith("--"):
        return word
    name, sign, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{sign}{value}"


_FLAG_ALIASES = {"models_dir": ("--model_dir",)}
_ALONE = {"resume": ("latest", "EPOCH"), "mlflow": (MLFLOW_HERE, "ADDRESS")}  # flag -> what it means alone, or takes


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per setting of TrainConfig; what the user leaves out is absent from the namespace."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="JSON file of settings, or the name of one that comes along; flags win over it",
    )
    for cls, prefix in ((TrainConfig, ""), (AugmentationConfig, "augmentation.")):
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            kind = next(k for k in alternatives(hints[f.name]) if k is not type(None))
            if not dataclasses.is_dataclass(kind):
                _add_flag(parser, prefix, f, kind)


def _add_flag(parser: argparse.ArgumentParser, prefix: str, f: dataclasses.Field[Any], kind: Any) -> None:
    shown = "" if f.default is None else f" (default: {as_typed(f.default)})"
    if isinstance(f.default, bool):
        shown = f" (default: on; --no_{prefix}{f.name} turns it off)" if f.default else " (default: off)"
    help_text = f.metadata.get("help", "")
    options: dict[str, Any] = {
        "dest": prefix + f.name, "default": argparse.SUPPRESS, "help": help_text.replace("%", "%%") + shown,
    }  # fmt: skip
    names = [f"--{prefix}{f.name}", *_FLAG_ALIASES.get(f.name, ())]
    if kind is bool:
        parser.add_argument(*names, action="store_true", **options)
        parser.add_argument(f"--no_{prefix}{f.name}", action="store_false", **{**options, "help": argparse.SUPPRESS})
    elif f.name in _ALONE:
        alone, takes = _ALONE[f.name]
        parser.add_argument(*names, nargs="?", const=alone, metavar=takes, **options)
    elif f.metadata.get("choices"):
        parser.add_argument(*names, choices=f.metadata["choices"], **options)
    elif typing.get_origin(kind) is tuple:
        parser.add_argument(*names, nargs=2, type=float, metavar=("LOW", "HIGH"), **options)
    else:
        parser.add_argument(*names, type=kind, metavar=kind.__name__.upper(), **options)


def train_config_from(namespace: argparse.Namespace) -> TrainConfig:
    """The configuration that flags and, below them, the JSON file of --config describe.

    Raises ConfigError that lists all that is wrong: with the file, with the flags and with both together.
    """
    flags = vars(namespace).copy()
    path = flags.pop("config", None)
    values, faults = read_config(path) if path else ({}, [])
    prefix = "augmentation."
    inner = {k.removeprefix(prefix): v for k, v in flags.items() if k.startswith(prefix)}
    values |= {k: v for k, v in flags.items() if not k.startswith(prefix)}
    if inner:
        inner = {k: tuple(v) if isinstance(v, list) else v for k, v in inner.items()}
        values["augmentation"] = {**(values.get("augmentation") or {}), **inner}
    try:
        config = TrainConfig(**values)
    except ConfigError as error:
        if not faults:
            raise
        faults += [fault for fault in error.faults if fault not in faults]
    if faults:
        raise ConfigError(faults, str(path))
    return config
