"""Train on a folder of your own recordings and load the result.

    python examples/train_on_your_recordings.py FOLDER [--pipeline mfcc] [--epochs 60] [--output my_run]

FOLDER holds a folder for each digit, 0 ... 9 or zero ... nine, with recordings of any name (.wav, .flac, .m4a, ...),
and optionally a sub-folder for each speaker:

    my_digits/0/first try.wav
    my_digits/0/anna/kitchen.m4a
    my_digits/seven/x.flac

Or it is a CSV with the columns path and label. A random fifth of the clips is the test part. Needs the extra
[train].
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from digit_detector.classifier import load_classifier
from digit_detector.errors import DigitError, Interrupted
from digit_detector.labels import PIPELINES
from ml_training.config import TrainConfig
from ml_training.training.experiment import run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train on your own recordings")
    parser.add_argument("folder", help="recordings: folders 0 ... 9, or a CSV of path and label")
    parser.add_argument("--pipeline", choices=PIPELINES, default=PIPELINES[0])
    parser.add_argument("--epochs", type=int, help="default: the pipeline's own")
    parser.add_argument("--output", type=Path, default=Path("my_run"), help="folder for models, logs and the report")
    args = parser.parse_args(argv)
    try:
        config = TrainConfig(
            pipeline=args.pipeline, dataset="folder", data_dir=args.folder, epochs=args.epochs,
            models_dir=str(args.output / "models"), log_dir=str(args.output / "train_logs"),
        )  # fmt: skip
        outcome = run(config)
    except DigitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as stopped:  # Ctrl-C; the training so far is saved
        return stopped.exit_code
    for name, reason in outcome.failures.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    for result in outcome.results:
        low, high = result.test.interval
        print(
            f"\n{result.pipeline}: {result.test.errors} of {result.test.clips} test clips misclassified "
            f"({100 * result.test.accuracy:.1f} % right, 95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
        )
        model = load_classifier(config.models_dir, result.pipeline)
        print(f"{model.model_file} was trained on {model.metadata['data']}, {model.metadata['created']}")
    print(f"open {outcome.report} in a browser")
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
