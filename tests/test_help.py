"""What --help says: each flag's default stands there once, and nothing that is none."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
from typing import Any

import pytest

from digit_detector.cli.parser import OneLineParser
from ml_training.cli import DOORS
from ml_training.config import TrainConfig


def parser_of(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that a command makes."""
    made: list[argparse.ArgumentParser] = []

    def keep(parser: OneLineParser, *_: Any) -> None:
        made.append(parser)
        raise SystemExit(0)

    monkeypatch.setattr(OneLineParser, "parse_args", keep)
    with pytest.raises(SystemExit):
        importlib.import_module(DOORS[command][0]).main([])
    return made[0]


def described(parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What stands beside each flag or argument, by its name."""
    monkeypatch.setenv("COLUMNS", "10000")
    entries = re.split(r"\n  (?=\S)", parser.format_help().split("\n\n", 1)[1])
    found = {}
    for action in parser._actions:
        if action.help is not argparse.SUPPRESS:
            name = action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
            (entry,) = [entry for entry in entries if re.match(rf"{re.escape(name)}(?![\w.])", entry)]
            found[action.dest] = entry
    return found


@pytest.mark.parametrize("command", DOORS)
def test_each_default_stands_there_once(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_of(command, monkeypatch)
    entries = described(parser, monkeypatch)
    for name, entry in entries.items():
        assert entry.count("(default:") <= 1, entry
        assert not re.search(r"default: (None|\[|\(|True|False|\))", entry), f"{name}: {entry}"
    for action in parser._actions:
        default = action.default
        has_one = default not in (None, argparse.SUPPRESS, "", False) and not isinstance(default, bool)
        if action.dest in entries and has_one and default not in ([], ()):
            assert "(default:" in entries[action.dest], action.dest


@pytest.mark.parametrize("command", ["train", "tune"])
def test_settings_name_their_defaults(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = described(parser_of(command, monkeypatch), monkeypatch)
    for field in dataclasses.fields(TrainConfig):
        if field.default is not None:
            shown = ("on" if field.default else "off") if isinstance(field.default, bool) else field.default
            assert f"(default: {shown}" in entries[field.name]
