"""Flags of the live detector, the same for every command that runs it."""

from __future__ import annotations

import argparse
import sys
from argparse import SUPPRESS
from typing import Any

from digit_detector.streaming.config import CONTEXTS, DIGITS, SHIPPED, DetectorConfig, load_config


def add_detector_flags(parser: argparse.ArgumentParser) -> None:
    """Add --context, --live_model and --thresholds; those that are not given are absent from the namespace."""
    described = "; ".join(f"{name}: {what}" for name, what in CONTEXTS.items())
    parser.add_argument("--context", choices=tuple(CONTEXTS), default=SUPPRESS, help=f"{described} (default: {DIGITS})")
    parser.add_argument(
        "--live_model", metavar="FILE", default=SUPPRESS, help="written by train-live (default: the one that ships)"
    )
    parser.add_argument(
        "--thresholds", metavar="FILE", default=SUPPRESS, help="written by tune-threshold (default: those that ship)"
    )
    add_removed_flags(parser, "--pipeline", "--spotter")


def add_removed_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add hidden flags of earlier versions."""
    for name in names:
        parser.add_argument(name, nargs="+", action=_RemovedFlag)


class _RemovedFlag(argparse.Action):
    """A hidden flag of earlier versions: accepted, with a note on standard error."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, default=SUPPRESS, help=SUPPRESS, **kwargs)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        print(f"{option} is ignored: live detection has one model now, see --live_model", file=sys.stderr, flush=True)


def read_config(namespace: argparse.Namespace) -> DetectorConfig:
    """The configuration that --thresholds and --context name. Raises ConfigError for a file that cannot be used."""
    return load_config(getattr(namespace, "thresholds", SHIPPED), getattr(namespace, "context", DIGITS))
