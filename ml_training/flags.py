"""Command-line flags: one for every setting of a training."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from typing import Any

from digit_detector.cli.parser import as_typed
from digit_detector.errors import ConfigError
from ml_training.config import (
    MLFLOW_HERE,
    RENAMED_SETTINGS,
    AugmentationConfig,
    TrainConfig,
    field_types,
    note_renamed,
    read_config,
)

_FLAG_ALIASES = {"models_dir": ("--model_dir",)}
_EARLIER_NAMES = {new: old for old, new in RENAMED_SETTINGS.items()}
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
        kinds = field_types(cls)
        for f in dataclasses.fields(cls):
            kind, _ = kinds[f.name]
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
        add_flag(parser, *names, choices=f.metadata["choices"], **options)
    elif typing.get_origin(kind) is tuple:
        add_flag(parser, *names, nargs=2, type=float, metavar=("LOW", "HIGH"), **options)
    else:
        add_flag(parser, *names, type=kind, metavar=kind.__name__.upper(), **options)


def add_flag(parser: argparse.ArgumentParser, *names: str, **options: Any) -> None:
    """Add the flag of a setting and, hidden, the flag of its earlier name."""
    parser.add_argument(*names, **options)
    name = names[0].removeprefix("--")
    if name in _EARLIER_NAMES:
        options |= {"dest": name, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS, "action": _EarlierName}
        parser.add_argument(f"--{_EARLIER_NAMES[name]}", **options)


class _EarlierName(argparse.Action):
    """Stores the value of a renamed flag, with a note."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        note_renamed(str(option_string), f"--{self.dest}")
        setattr(namespace, self.dest, values)


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
