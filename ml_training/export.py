"""Export checkpoints as model files: `python ml_training/export.py` and `digits export`."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, require
from digit_detector.errors import CheckpointError
from digit_detector.labels import FILE_PRECISIONS
from ml_training.config import DATASETS
from ml_training.deploy.checkpoints import find_checkpoints
from ml_training.deploy.version_tables import align
from ml_training.flags import add_flag
from ml_training.utils.console import print_note

if TYPE_CHECKING:
    from ml_training.training.export_job import ExportOutcome

NEEDED = ("torch", "onnx", "onnxscript")
# flags for recordings that have been moved since the training -> help; the defaults are those of the checkpoint
WHERE = {
    "data_dir": "where they are now", "extra_digits_dir": "where its further recordings are now",
    "non_digit_dir": "where its non-digit words are now",
}  # fmt: skip


def parser() -> OneLineParser:
    """The command's arguments."""
    flags = OneLineParser(
        description="Export checkpoints as ONNX files, each compared with its network before it is written."
    )
    add = flags.add_argument
    add("checkpoints", nargs="*", metavar="CHECKPOINT", default=SUPPRESS,
        help="best_model.pt or checkpoint_epoch_*.pt (default: the best of each pipeline in --models_dir)")  # fmt: skip
    add("--models_dir", "--model_dir", default="models", metavar="DIR", help="folder of trained models")
    add("--pipeline", metavar="NAME", default="all", help="which of them")
    add("--precision", nargs="+", choices=FILE_PRECISIONS, default=list(FILE_PRECISIONS), metavar="NAME",
        help=", ".join(FILE_PRECISIONS))  # fmt: skip
    add("--executorch", action="store_true", help="write model.pte for ExecuTorch, too; needs the extra [executorch]")
    add("--output", default=None, metavar="DIR", help="folder of models to write to (default: beside the checkpoint)")
    add("--dataset", choices=DATASETS, default=SUPPRESS, help="its training data (default: those of the checkpoint)")
    for name, text in WHERE.items():
        add_flag(flags, f"--{name}", default=SUPPRESS, metavar="DIR", help=text)
    return flags


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Export; returns the exit code."""
    args = parser().parse_args(argv)
    require("export", NEEDED)
    named = tuple(getattr(args, "checkpoints", ())) or find_checkpoints(args.models_dir, args.pipeline)
    missing = [name for name in named if not Path(name).is_file()]
    if missing:
        raise CheckpointError(f"no checkpoint at {missing[0]}: train first, or look at --models_dir")
    from ml_training.training.export_job import ExportRequest, export

    where = {name: getattr(args, name) for name in ("dataset", *WHERE) if name in args}
    request = ExportRequest(named, tuple(args.precision), args.output, args.executorch, where)
    outcome = export(request, report=print_note)
    if outcome.files:
        print("\n".join(format_outcome(outcome)))
    for name, reason in outcome.failures.items():
        print_note(f"error: {name}: {reason}")
    return outcome.exit_code


def format_outcome(outcome: ExportOutcome) -> list[str]:
    """A table of the files that were written."""
    rows = [("pipeline", "", "kB", "test errors", "compared with the network", "file")]
    rows += [
        (f.pipeline, f.precision, f"{f.size / 1000:.0f}", f"{f.errors} of {f.clips}", f.compared, str(f.file))
        for f in outcome.files
    ]
    return align(rows)


if __name__ == "__main__":
    sys.exit(main())
