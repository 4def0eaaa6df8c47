"""The console command: digits train, digits predict, digits export and so on.

Each sub-command is the door of the same job; only the door that is asked for is imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import ml_training
from digit_detector.errors import did_you_mean

# sub-command -> module with main(argv) -> exit code, what it does
DOORS = {
    "train": ("ml_training.train", "train one pipeline or all three on recordings of spoken digits"),
    "predict": ("ml_training.inference", "recognise digits in recordings; folders to tables"),
    "listen": ("digit_detector.listen", "detect digits live, from a microphone or in files"),
    "serve": ("digit_detector.serve", "serve the web page, HTTP and WebSocket"),
    "train-live": ("ml_training.train_live", "train the acoustic model of live detection"),
    "tune-threshold": (
        "digit_detector.tune_threshold",
        "choose the detection threshold for a false-alarm rate",
    ),
    "tune": ("ml_training.tune", "search hyperparameters: grid, random, TPE, with pruning"),
    "evaluate": ("ml_training.evaluate", "evaluate models: unseen speakers, noise, calibration, rejection"),
    "export": ("ml_training.export", "export checkpoints to ONNX, fp32 and int8"),
    "inspect": ("ml_training.inspect_model", "print metadata and graph of a model file"),
    "versions": ("ml_training.versions", "list, compare, promote, roll back and prune model versions"),
    "cache": ("ml_training.cache", "list, limit and clear the cache"),
    "benchmark": ("ml_training.benchmark", "measure speed, memory, size and accuracy of exported models"),
    "demo": ("ml_training.demo", "run every step of the system, small"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sub-command that `argv` (default: the command line) names; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"digits {ml_training.__version__}")
        return 0
    name, *rest = words
    if name == "train-spotter":
        print("digits: train-spotter is gone: live detection has one acoustic model, see digits train-live --help",
              file=sys.stderr)  # fmt: skip
        return 2
    if name not in DOORS:
        hint = did_you_mean(name, DOORS) or f", expected one of {', '.join(DOORS)}"
        print(f"digits: unknown sub-command {name!r}{hint} (see digits --help)", file=sys.stderr)
        return 2
    sys.argv[0] = f"digits {name}"  # argparse takes the name it shows from here
    code: int = importlib.import_module(DOORS[name][0]).main(rest)
    if argv is None:
        from digit_detector.cli.program import ignore_signals_after  # every door has loaded it

        ignore_signals_after(code)
    return code


def _help() -> str:
    rows = "\n".join(f"  {name:<14} {what}" for name, (_, what) in DOORS.items())
    return f"usage: digits SUB-COMMAND ...\n\n{rows}\n\nMore: digits SUB-COMMAND --help, digits --version"


if __name__ == "__main__":
    sys.exit(main())
