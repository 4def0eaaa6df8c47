"""Four kinds of input: a path, bytes, a file object, an array of samples.

    python examples/answer.py [RECORDING] [--model_dir models] [--pipeline mfcc]

A web server has bytes, a sound card returns arrays; all give the same prediction. By default a bundled recording.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import soundfile

from digit_detector.classifier import load_classifier
from digit_detector.errors import DigitError
from digit_detector.examples import example_recording
from digit_detector.labels import LABELS, PIPELINES, PRETRAINED


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Answer from a path, bytes, a file object and an array")
    parser.add_argument("recording", type=Path, nargs="?", default=example_recording("seven"))
    parser.add_argument("--model_dir", default=PRETRAINED, help="default: the bundled models")
    parser.add_argument("--pipeline", choices=PIPELINES, default=PIPELINES[0])
    args = parser.parse_args(argv)
    try:
        classifier = load_classifier(args.model_dir, args.pipeline)
        answers = {"path": classifier.predict(args.recording)}
        answers["bytes"] = classifier.predict(args.recording.read_bytes())
        with args.recording.open("rb") as file:
            answers["file object"] = classifier.predict(file)
        samples, rate = soundfile.read(args.recording, dtype="float32")
        answers["array"] = classifier.predict(samples, sample_rate=rate)  # an array has no rate of its own
    except DigitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for way, answer in answers.items():
        guesses = ", ".join(f"{LABELS[g['digit']]} {g['probability']:.3f}" for g in answer["top3"])
        sure = "a digit" if answer["is_digit"] else "no digit"
        print(f"{way:<12} {answer['predicted_digit']}   {guesses}   {sure}   {answer['inference_ms']:.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
