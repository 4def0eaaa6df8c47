"""Train the spotter of the live detector: the door behind `digits train-spotter`."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, require
from ml_training.config import TrainConfig


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Train, export, say where the file is; returns the exit code."""
    parser = OneLineParser(
        description="Train the network that hears digits in live sound. A training that was stopped goes on from its "
        "last checkpoint when the same command is typed again."
    )
    parser.add_argument("--out", metavar="FILE", default="spotter.onnx", help="the file to write")
    parser.add_argument("--work", metavar="DIR", default="spotter_training", help="where checkpoints lie meanwhile")
    parser.add_argument("--data_dir", metavar="DIR", default=SUPPRESS, help="recordings of digits, as in digits train")
    parser.add_argument("--extra_dir", metavar="DIR", default=None, help="further recordings of digits")
    parser.add_argument("--words_dir", metavar="DIR", default=None, help="recordings of words that are no digits")
    parser.add_argument("--noise_dir", metavar="DIR", default=None, help="recordings in which nobody speaks")
    parser.add_argument("--dataset", choices=("auto", "fsdd", "synthetic"), default="auto", help="which digits")
    parser.add_argument("--steps", type=int, default=SUPPRESS, help="steps of training (default: 8000)")
    parser.add_argument("--batch_size", type=int, default=SUPPRESS, help="strings of a step (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--variants", type=int, default=16, help="variants of each recording, made before training")
    parser.add_argument("--voices", type=int, default=300, help="synthetic voices")
    parser.add_argument(
        "--join", metavar="FILE", nargs="+", default=[], help="train nothing: write the mean of these spotters"
    )
    args = parser.parse_args(argv)
    require("training", ("torch", "onnx", "onnxscript", "espeakng_loader"))
    if args.join:
        from ml_training.spotter.ensemble import join_spotters

        join_spotters([Path(file) for file in args.join], Path(args.out))
        return 0
    config = TrainConfig(
        dataset=args.dataset, data_dir=getattr(args, "data_dir", None), extra_dir=args.extra_dir,
        words_dir=args.words_dir, seed=args.seed,
    )  # fmt: skip
    from ml_training.data.dataset_loader import check_data
    from ml_training.data.layouts import noise_files

    check_data(config)
    if args.noise_dir is not None:
        noise_files(args.noise_dir)
    from ml_training.spotter.command import train_and_export

    chosen = {name: getattr(args, name) for name in ("steps", "batch_size") if name in args}
    train_and_export(
        config, chosen, Path(args.work), Path(args.out), args.noise_dir, args.threads, args.variants, args.voices
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
