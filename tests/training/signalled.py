"""A run of a tiny corpus that goes on until it gets a signal: python signalled.py FOLDER [terminal].

With `terminal` its standard input becomes the terminal that it is controlled by.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tiny

from digit_detector.cli.program import program
from ml_training.config import TrainConfig
from ml_training.training.experiment import run


@program
def main(argv: Sequence[str] | None = None) -> int:
    folder = Path(sys.argv[1])
    config = TrainConfig(
        models_dir=str(folder / "models"), log_dir=str(folder / "logs"), device="cpu", threads=1, epochs=100_000,
        batch_size=8, negative_ratio=0.0, patience=0, keep_checkpoints="1", cache=False,
    )  # fmt: skip
    endless = replace(tiny.TINY, name="mfcc")
    outcome = run(config, corpus=tiny.corpus(), pipelines=[endless], resume_command="the same again")
    print(outcome.failures)
    return outcome.exit_code


if __name__ == "__main__":
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup
    if "terminal" in sys.argv:
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    sys.exit(main())
