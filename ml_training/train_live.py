"""Entry point of `digits train-live`: train the acoustic model of live detection."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path

from digit_detector.acoustic_file import FILE
from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, require

CONFIG = Path(__file__).with_name("acoustic") / "live.json"


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Train and export; returns the exit code."""
    parser = OneLineParser(
        description="Train the acoustic model that hears digits in live audio, with CTC. The same command resumes a "
        "training that was stopped from its last checkpoint."
    )
    parser.add_argument(
        "--corpora_dir", metavar="DIR", default=os.environ.get("DIGIT_CORPORA_DIR"),
        help="folder of all sources of the configuration (default: $DIGIT_CORPORA_DIR)",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", default=str(CONFIG), help="sources and settings, JSON")
    parser.add_argument("--out", metavar="FILE", default=FILE, help="output file")
    parser.add_argument("--work", metavar="DIR", default="live_training", help="folder of the checkpoints")
    parser.add_argument(
        "--initial", metavar="DIR", default=SUPPRESS, help="start from the weights of an earlier training's --work"
    )
    parser.add_argument("--steps", type=int, default=SUPPRESS, help="training steps")
    parser.add_argument("--seed", type=int, default=SUPPRESS, help="random seed")
    parser.add_argument("--threads", type=int, default=SUPPRESS, help="CPU threads")
    parser.add_argument(
        "--hold_out", metavar="FOLD", nargs="+", default=[],
        help="folds whose speakers are left out of the tables that have a column fold, to be scored",
    )  # fmt: skip
    parser.add_argument(
        "--write_texts", metavar="FILE", default=SUPPRESS,
        help="write a table of texts for synthetic speech (name, voice, speed, text) instead of training",
    )  # fmt: skip
    parser.add_argument(
        "--average", metavar="FILE", nargs="+", default=[], help="write the mean of these models; train nothing"
    )
    args = parser.parse_args(argv)
    if "write_texts" in args:
        from ml_training.acoustic.texts import write_texts

        write_texts(Path(args.write_texts), seed=getattr(args, "seed", 0))
        return 0
    if args.average:
        require("training", ("torch", "onnx", "onnxscript"))
        from ml_training.acoustic.export import average_models

        average_models([Path(file) for file in args.average], Path(args.out))
        return 0
    if args.corpora_dir is None:
        parser.error("--corpora_dir: name the folder of the recordings, or set DIGIT_CORPORA_DIR")
    require("training", ("torch", "onnx", "onnxscript"))
    from ml_training.acoustic.train import read_config, train_and_export

    settings = {name: getattr(args, name) for name in ("steps", "seed", "threads", "initial") if name in args}
    config = read_config(Path(args.config), tuple(args.hold_out), **settings)
    train_and_export(config, Path(args.corpora_dir), Path(args.work), Path(args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
