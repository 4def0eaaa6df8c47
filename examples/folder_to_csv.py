"""Every recording of a folder into one CSV: file, digit, confidence, whether it is a digit, and errors.

    python examples/folder_to_csv.py [FOLDER] [answers.csv] [--model_dir models] [--pipeline mfcc] [--batch_size 32]

By default the bundled recordings. Sub-folders are searched too. The exit code is 1 if a file could not be read; the
others are still classified.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from digit_detector.audio import AUDIO_SUFFIXES
from digit_detector.classifier import load_classifier
from digit_detector.errors import DigitError
from digit_detector.examples import example_recording
from digit_detector.labels import LABELS, PIPELINES, PRETRAINED


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Answers for a whole folder, as CSV")
    parser.add_argument("folder", type=Path, nargs="?", default=example_recording("seven").parent)
    parser.add_argument("csv", type=Path, nargs="?", default=Path("answers.csv"))
    parser.add_argument("--model_dir", default=PRETRAINED, help="default: the bundled models")
    parser.add_argument("--pipeline", choices=PIPELINES, default=PIPELINES[0])
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args(argv)
    for folder in (args.folder, args.csv.parent):  # before an hour of computing
        if not folder.is_dir():
            print(f"error: no folder {folder}", file=sys.stderr)
            return 1
    files = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    try:
        entries = load_classifier(args.model_dir, args.pipeline).batch_predict(files, args.batch_size)
    except DigitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    bad = 0
    with args.csv.open("w", newline="", encoding="utf-8") as output:
        table = csv.writer(output)
        table.writerow(["file", "digit", "confidence", *LABELS, "is_digit", "digit_score", "error"])
        for entry in entries:
            if "error" in entry:
                bad += 1
                table.writerow([entry["file"], *[""] * (4 + len(LABELS)), entry["error"]])
            else:
                shares = [f"{p:.6f}" for p in (entry["confidence"], *entry["probabilities"], entry["digit_score"])]
                row = [entry["file"], entry["predicted_digit"], *shares[:-1], int(entry["is_digit"]), shares[-1], ""]
                table.writerow(row)
    print(f"{count(len(entries) - bad, 'answer')} and {count(bad, 'error')} in {args.csv}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
