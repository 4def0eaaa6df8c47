"""Turn checkpoints into files that answer: the door behind `python ml_training/export.py` and `digits export`."""

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
from ml_training.deploy.checkpoints import checkpoints_in

if TYPE_CHECKING:
    from ml_training.training.export_job import ExportOutcome

NEEDED = ("torch", "onnx", "onnxscript")
# Flags that say where the recordings of the training lie now; what is left out is as the checkpoint says.
WHERE = ("dataset", "data_dir", "extra_dir", "words_dir")


def parser() -> OneLineParser:
    """What may be typed."""
    flags = OneLineParser(
        description="Turn checkpoints into ONNX files that answer, each compared with its network before it is written."
    )
    add = flags.add_argument
    add("checkpoints", nargs="*", metavar="CHECKPOINT", default=SUPPRESS,
        help="best_model.pt or checkpoint_epoch_*.pt (default: the best of each pipeline in --models_dir)")  # fmt: skip
    add("--models_dir", "--model_dir", default="models", metavar="DIR", help="folder of trained models")
    add("--pipeline", metavar="NAME", default="all", help="which of them")
    add("--precision", nargs="+", choices=FILE_PRECISIONS, default=list(FILE_PRECISIONS), metavar="NAME",
        help=", ".join(FILE_PRECISIONS))  # fmt: skip
    add("--executorch", action="store_true", help="write model.pte for ExecuTorch, too; needs the extra [executorch]")
    add("--output", default=None, metavar="DIR", help="folder of models to write into (default: beside the checkpoint)")
    add("--dataset", choices=DATASETS, default=SUPPRESS, help="which recordings it learnt from (default: as it says)")
    add("--data_dir", default=SUPPRESS, metavar="DIR", help="where they lie now")
    add("--extra_dir", default=SUPPRESS, metavar="DIR", help="where its further recordings lie now")
    add("--words_dir", default=SUPPRESS, metavar="DIR", help="where its words that are no digits lie now")
    return flags


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Export what the flags say; returns the exit code."""
    namespace = parser().parse_args(argv)
    require("export", NEEDED)
    named = tuple(getattr(namespace, "checkpoints", ())) or checkpoints_in(namespace.models_dir, namespace.pipeline)
    missing = [name for name in named if not Path(name).is_file()]
    if missing:
        raise CheckpointError(f"no checkpoint at {missing[0]}: train first, or look at --models_dir")
    from ml_training.training.export_job import ExportRequest, export

    where = {name: getattr(namespace, name) for name in WHERE if name in namespace}
    request = ExportRequest(named, tuple(namespace.precision), namespace.output, namespace.executorch, where)
    outcome = export(request, report=_say)
    if outcome.files:
        print(summary_table(outcome))
    for name, reason in outcome.failures.items():
        _say(f"error: {name}: {reason}")
    return outcome.exit_code


def summary_table(outcome: ExportOutcome) -> str:
    """What was written, a line each."""
    rows = [("pipeline", "", "kB", "test errors", "beside the network", "file")]
    rows += [
        (f.pipeline, f.precision, f"{f.size / 1000:.0f}", f"{f.errors} of {f.clips}", f.compared, str(f.file))
        for f in outcome.files
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
