"""An argument parser whose errors are one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from digit_detector.errors import did_you_mean


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
