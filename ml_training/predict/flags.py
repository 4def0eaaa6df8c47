"""The flags of a table, apart from what it takes to write one: a single answer does not wait for that."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser

AUTO = "auto"  # for a batch size: as many as suits memory
ONLY_WITH_OUT = {"resume", "overwrite", "batch_size", "decoders", "engine", "workers", "ray_address"}
FLAGS = {"out", *ONLY_WITH_OUT}


def add_flags(parser: ArgumentParser) -> None:
    """The flags of a table; those not given stay out of the answer."""
    parser.add_argument(
        "--out", default=SUPPRESS, metavar="TABLE",
        help="write a row for every recording in these files and folders into TABLE: .csv, .jsonl or .parquet",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", default=SUPPRESS,
        help="go on with a TABLE: answer what has no answer in it yet, rows with an error included",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", default=SUPPRESS, help="replace a TABLE that is there")
    parser.add_argument(
        "--batch_size",
        default=SUPPRESS,
        metavar="N",
        help="recordings at once for a TABLE (default: auto)",
    )
    parser.add_argument(
        "--decoders", type=int, default=SUPPRESS, metavar="N",
        help="threads that decode for a TABLE (default: one for each CPU, up to 8)",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=("ray",), default=SUPPRESS,
        help="answer on a Ray cluster (extra [scale]); recordings may then be addresses such as s3://bucket/folder",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=SUPPRESS, metavar="N", help="models that answer on the cluster (default: 2)"
    )
    parser.add_argument(
        "--ray_address", default=SUPPRESS, metavar="ADDRESS",
        help="of the cluster (default: $RAY_ADDRESS, or one of this machine)",
    )  # fmt: skip
