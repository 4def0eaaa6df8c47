"""Flags of the live detector, the same for every command that runs it."""

from __future__ import annotations

import argparse
from argparse import SUPPRESS

from digit_detector.streaming.config import SHIPPED, DetectorConfig, load_config
from digit_detector.streaming.engine import CONFIRMING


def add_detector_flags(parser: argparse.ArgumentParser) -> None:
    """Add --pipeline, --spotter and --thresholds; those that are not given are absent from the namespace."""
    parser.add_argument(
        "--pipeline", nargs="+", metavar="NAME", default=SUPPRESS,
        help=f"classifiers that confirm each word (default: those of {', '.join(CONFIRMING)} that are there)",
    )  # fmt: skip
    parser.add_argument(
        "--spotter", metavar="FILE", default=SUPPRESS, help="written by train-spotter (default: the one that ships)"
    )
    parser.add_argument(
        "--thresholds", metavar="FILE", default=SUPPRESS, help="written by tune-threshold (default: those that ship)"
    )


def read_config(namespace: argparse.Namespace) -> DetectorConfig:
    """The configuration that --thresholds names. Raises ConfigError for a file that cannot be used."""
    return load_config(getattr(namespace, "thresholds", SHIPPED))
