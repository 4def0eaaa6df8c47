"""Entry point of `digits train-spotter`: train the keyword spotter of the live detector."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

from collections.abc import Sequence
from pathlib import Path

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, require
from ml_training.config import TrainConfig
from ml_training.flags import add_flag


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Train and export; returns the exit code."""
    parser = OneLineParser(
        description="Train the network that spots digits in live audio. The same command resumes a training that was "
        "stopped from its last checkpoint."
    )
    parser.add_argument("--out", metavar="FILE", default="spotter.onnx", help="output file")
    parser.add_argument("--work", metavar="DIR", default="spotter_training", help="folder of the checkpoints")
    parser.add_argument("--data_dir", metavar="DIR", default=None, help="recordings of digits, as in digits train")
    add_flag(parser, "--extra_digits_dir", metavar="DIR", default=None, help="further recordings of digits")
    add_flag(parser, "--non_digit_dir", metavar="DIR", default=None, help="recordings of words that are not digits")
    parser.add_argument("--noise_dir", metavar="DIR", default=None, help="recordings without speech")
    parser.add_argument("--dataset", choices=("auto", "fsdd", "synthetic"), default="auto", help="dataset of digits")
    parser.add_argument("--steps", type=int, default=8000, help="training steps")
    parser.add_argument("--batch_size", type=int, default=32, help="utterances per step")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--variants", type=int, default=16, help="augmented variants of each recording")
    parser.add_argument("--voices", type=int, default=300, help="synthetic voices")
    parser.add_argument(
        "--join", metavar="FILE", nargs="+", default=[], help="write an ensemble of these spotters; train nothing"
    )
    args = parser.parse_args(argv)
    require("training", ("torch", "onnx", "onnxscript", "espeakng_loader"))
    if args.join:
        from ml_training.spotter.export import join_spotters

        join_spotters([Path(file) for file in args.join], Path(args.out))
        return 0
    config = TrainConfig(
        dataset=args.dataset, data_dir=args.data_dir, extra_digits_dir=args.extra_digits_dir,
        non_digit_dir=args.non_digit_dir, seed=args.seed,
    )  # fmt: skip
    from ml_training.data.dataset_loader import check_data
    from ml_training.data.layouts import noise_files

    check_data(config)
    if args.noise_dir is not None:
        noise_files(args.noise_dir)
    from ml_training.spotter.train import SpotterConfig, train_and_export

    settings = {name: getattr(args, name) for name in ("steps", "batch_size", "variants", "voices", "threads", "seed")}
    train_and_export(config, SpotterConfig(**settings), Path(args.work), Path(args.out), args.noise_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
