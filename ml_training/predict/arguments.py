"""The flags of tables, apart from what writes one: a single prediction does not import it."""

from __future__ import annotations

import os
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from functools import partial

ONLY_WITH_OUT = {"resume", "overwrite", "batch_size", "decoders", "engine", "workers", "ray_address"}


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of tables; those not given stay out of the namespace."""
    add = partial(parser.add_argument, default=SUPPRESS)
    add(
        "--out",
        metavar="TABLE",
        help="write a row for each recording in these files and folders: .csv, .jsonl, .parquet",
    )
    mode = parser.add_mutually_exclusive_group()
    resume = "go on with a TABLE: answer what has no answer in it yet, rows with an error included"
    mode.add_argument("--resume", action="store_true", default=SUPPRESS, help=resume)
    mode.add_argument("--overwrite", action="store_true", default=SUPPRESS, help="replace a TABLE that exists")
    add("--batch_size", type=_size, metavar="N", help="recordings at once for a TABLE (default: auto)")
    add("--decoders", type=_number(64), metavar="N", help="threads that decode for a TABLE (default: CPUs, at most 8)")
    add(
        "--engine", choices=("ray",), help="predict a TABLE on a Ray cluster, also from addresses as s3://bucket/folder"
    )
    add("--workers", type=_number(10_000), metavar="N", help="models on the cluster (default: 2)")
    add("--ray_address", metavar="ADDRESS", help="of the cluster (default: $RAY_ADDRESS, or one of this machine)")


def default_decoders() -> int:
    """One for each CPU that this process may use, up to eight: more wait for each other."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _number(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isdecimal() and 1 <= int(text) <= most):
            raise ArgumentTypeError(f"expected 1 to {most:,}, got {text!r}")
        return int(text)

    return parse


def _size(text: str) -> int | None:
    return None if text == "auto" else _number(1 << 20)(text)
