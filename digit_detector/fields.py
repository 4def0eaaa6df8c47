"""Dataclass fields that say how a setting is typed, described and bounded."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any


def choice(*values: str, **kwargs: Any) -> Any:
    """A dataclass field that takes one of a few words."""
    return field(metadata={"choices": values, "help": kwargs.pop("help", "")}, **kwargs)


def setting(default: Any, help: str, low: float = -math.inf, high: float = math.inf) -> Any:
    """A dataclass field with a help text and an inclusive range."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


def number_or(word: str, default: str | None, help: str) -> Any:
    """A dataclass field that takes a whole number above 0, as text, or one word."""
    return field(default=default, metadata={"help": help, "word": word})
