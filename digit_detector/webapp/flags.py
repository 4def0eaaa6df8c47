"""A flag and a `DIGITS_*` variable for every field of Settings: flags win over variables, and these over defaults."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from digit_detector.errors import ConfigError, did_you_mean
from digit_detector.webapp.settings import Settings

PREFIX = "DIGITS_"
_ALIASES = {"model_dir": ("--models_dir",)}
_EXPECTED = {int: "a whole number", float: "a number"}
_FIELDS = dataclasses.fields(Settings)
_KINDS = typing.get_type_hints(Settings)


def add_settings_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per field; those that the user leaves out are absent from the namespace. Values stay text."""
    group = parser.add_argument_group(
        "settings of the server",
        f"Each can be given by an environment variable, too: {PREFIX}STREAMS=50 for --streams 50; "
        "several values are separated by commas. Flags win.",
    )
    for f in _FIELDS:
        options: dict[str, Any] = {
            "default": argparse.SUPPRESS, "help": f"{f.metadata['help']} (default: {shown_default(f)})",
        }  # fmt: skip
        if _is_list(f):
            options |= {"nargs": "+", "metavar": f.name.rpartition("_")[2].upper()}
        else:
            options |= {"metavar": {int: "N", float: "X", str: "TEXT"}[_KINDS[f.name]]}
        group.add_argument(f"--{f.name}", *_ALIASES.get(f.name, ()), **options)


def shown_default(f: dataclasses.Field[Any]) -> str:
    """The default of a field for people."""
    if f.default == ():
        return "none"
    return f"{f.default:,}" if isinstance(f.default, int) and f.default >= 1e4 else str(f.default)


def read_settings(flags: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """The settings of flags, environment variables and defaults. Raises ConfigError that lists every fault."""
    values: dict[str, Any] = {}
    faults: list[str] = []
    for f in _FIELDS:
        variable = PREFIX + f.name.upper()
        if f.name in flags:
            source, given = f"--{f.name}", getattr(flags, f.name)
        elif environment.get(variable):
            source, given = variable, environment[variable]
        else:
            continue
        if _is_list(f):
            values[f.name] = tuple(given if isinstance(given, list) else given.replace(",", " ").split())
            continue
        kind = _KINDS[f.name]
        try:
            values[f.name] = kind(given)
        except ValueError:
            faults.append(f"{source}: expected {_EXPECTED[kind]}, got {given!r}")
    try:
        settings = Settings(**values)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(faults, "the server's settings")
    return settings


def misspelt_variables(environment: Mapping[str, str]) -> list[str]:
    """What to tell of variables that are no setting's but almost. Others may belong to somebody else."""
    known = [PREFIX + f.name.upper() for f in _FIELDS]
    return [
        f"{name} is not a setting and is ignored{hint}"
        for name in environment
        if name.startswith(PREFIX) and name not in known and (hint := did_you_mean(name, known))
    ]


def settings_table() -> str:
    """All flags as a table of docs/web.md."""
    rows = [
        f"| `--{f.name}` | `{PREFIX}{f.name.upper()}` | {documented_default(f)} | {f.metadata['help']} |"
        for f in _FIELDS
    ]
    return "\n".join(["| flag | variable | default | |", "|---|---|---:|---|", *rows]) + "\n"


def documented_default(f: dataclasses.Field[Any]) -> str:
    """The same default on every machine."""
    return "2, or 1 on a single core" if f.name == "workers" else shown_default(f)


def _is_list(f: dataclasses.Field[Any]) -> bool:
    return isinstance(f.default, tuple)
