"""Digits and their times in a recording with pauses between them, such as a spoken phone number.

    python examples/cut_a_long_recording.py [RECORDING] [--model_dir models] [--pipeline mfcc] [--pause 0.2]

By default a bundled phone number. The recording is cut where its level stays near the background, and each piece is
classified; one that is no digit, such as a cough, is left out. Digits without a pause between them are one piece: use
`digits listen` for those.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats, decode
from digit_detector.classifier import load_classifier
from digit_detector.errors import DigitError
from digit_detector.examples import example_recording
from digit_detector.labels import LABELS, PIPELINES, PRETRAINED

FRAME = SAMPLE_RATE // 100  # 10 ms
LEAST_FRAMES = 8  # shorter sounds are clicks
MARGIN = 4  # frames kept on both sides of a piece: soft consonants lie there


def pieces(samples: Floats, pause: float) -> list[tuple[int, int]]:
    """(start, end) in samples of the louder segments of (T,), merged across pauses shorter than `pause` seconds."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    if not len(frames):
        return []
    level = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-10)
    # Half-way, in dB, between the background and the loudest sounds.
    loud = np.flatnonzero(level > (np.percentile(level, 10) + level.max()) / 2)
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > pause * 100) + 1)
    spans = [(group[0], group[-1] + 1) for group in groups if len(group) >= LEAST_FRAMES]
    return [(max(0, (a - MARGIN) * FRAME), min(len(samples), (b + MARGIN) * FRAME)) for a, b in spans]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The digits of a longer recording")
    parser.add_argument("recording", nargs="?", default=example_recording("phone_number"))
    parser.add_argument("--model_dir", default=PRETRAINED, help="default: the bundled models")
    parser.add_argument("--pipeline", choices=PIPELINES, default=PIPELINES[0])
    parser.add_argument("--pause", type=float, default=0.2, help="seconds of silence between two digits")
    args = parser.parse_args(argv)
    try:
        classifier = load_classifier(args.model_dir, args.pipeline)
        samples = decode(args.recording)
    except DigitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    digits = []
    for start, end in pieces(samples, args.pause):
        answer = classifier.predict(samples[start:end])
        digit = answer["predicted_digit"]
        text = f"{digit} {LABELS[digit]:<6} {100 * answer['confidence']:5.1f} %" if answer["is_digit"] else "- no digit"
        if answer["is_digit"]:
            digits.append(str(digit))
        print(f"{start / SAMPLE_RATE:7.2f} to {end / SAMPLE_RATE:6.2f} s   {text}")
    print(f"digits: {' '.join(digits) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
