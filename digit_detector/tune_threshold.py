"""`digits tune-threshold`: choose the thresholds of live detection for rates of false alarms."""

from __future__ import annotations

import contextlib
import math
from argparse import SUPPRESS, Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats, decode_sound
from digit_detector.cli.live_line import LiveLine
from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, require
from digit_detector.cli.signals import StopSignals
from digit_detector.errors import ConfigError, DataError
from digit_detector.evaluation.det import OperatingPoint, choose_any, choose_digits, format_table, plot_det, run
from digit_detector.evaluation.streams import (
    LabelledDigit,
    TestStream,
    Word,
    join_connected,
    join_with_pauses,
    load_sounds,
    load_words,
    make_noise_track,
    mix_noise,
    sentences,
)  # fmt: skip
from digit_detector.evaluation.strings import load_strings
from digit_detector.files import unwritable, write_json
from digit_detector.streaming.config import ANY, DIGITS, SHIPPED, load_config
from digit_detector.streaming.engine import Engine
from digit_detector.streaming.flags import add_removed_flags

SPEECH, NOISE = "speech", "noise"
TITLES = {SPEECH: "sentences without digits", NOISE: "noise, -45 to -10 dBFS"}
_SNRS = (10.0, 20.0, 30.0)  # dB, of the streams of digits
_MOST_WORDS = 300  # of a stream
_PART_SECONDS = 600.0  # of noise
_STRING = (3, 7)  # digits of a connected string


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Write the thresholds of both contexts within the limits of false alarms; returns the exit code."""
    parser = OneLineParser(
        description="Choose the thresholds of live detection in both contexts for numbers of false alarms an hour, and "
        "draw what they cost. The recordings should not be among those the model was trained on."
    )
    parser.add_argument("--digits", metavar="DIR", nargs="+", required=True, help="recordings of digits, 7_anna_0.wav")
    parser.add_argument(
        "--strings", metavar="DIR", nargs="+", default=[], help="recordings of digit strings, with a clips.tsv"
    )
    parser.add_argument("--noise", metavar="DIR", required=True, help="recordings without speech")
    parser.add_argument("--speech", metavar="DIR", required=True, help="recordings of sentences without digits")
    parser.add_argument("--false_alarms", type=float, default=60.0, help="most per hour of speech in context any")
    parser.add_argument("--digits_alarms", type=float, default=6.0, help="most per hour of speech in context digits")
    parser.add_argument("--noise_alarms", type=float, default=0.5, help="most per hour of noise in either context")
    parser.add_argument("--noise_hours", type=float, default=2.0, help="hours of noise to mix from the recordings")
    parser.add_argument(
        "--live_model", metavar="FILE", default=SUPPRESS, help="written by train-live (default: the one that ships)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the test streams made of the recordings")
    parser.add_argument("--out", metavar="FILE", default="thresholds.json", help="file to write, with a plot beside it")
    add_removed_flags(parser, "--model_dir", "--models_dir", "--pipeline", "--spotter")
    args = parser.parse_args(argv)
    _check(args)
    require("drawing the curve", ("matplotlib",))
    engine = Engine(load_config(), getattr(args, "live_model", None))
    with StopSignals(unit=None), contextlib.closing(LiveLine()) as line:
        rng = np.random.default_rng(args.seed)
        noises = load_sounds(Path(args.noise))
        streams = [stream for digits in args.digits for stream in streams_of(load_words(Path(digits)), noises, rng)]
        streams += [stream for strings in args.strings for stream in string_streams(Path(strings))]
        negatives = {
            SPEECH: [sentences(load_sounds(Path(args.speech)), rng)],
            NOISE: split_noise(mix_noise(noises, 3600 * args.noise_hours, rng)),
        }
        outputs = run(engine, streams, negatives, lambda fraction: line.show(f"{fraction:.0%} processed"))
        limits = {
            ANY: {SPEECH: args.false_alarms, NOISE: args.noise_alarms},
            DIGITS: {SPEECH: args.digits_alarms, NOISE: args.noise_alarms},
        }
        digits = choose_digits(
            outputs, engine.config, limits[DIGITS], lambda fraction: line.show(f"{fraction:.0%} decoded")
        )
        points = {DIGITS: digits, ANY: choose_any(outputs, engine.config, limits[ANY])}
    out = Path(args.out)
    picture = out.with_suffix(".png")
    plot_det(list(points.values()), TITLES, picture)
    write_json(out, {
        "thresholds": {
            "digits_threshold": points[DIGITS].threshold, "any_threshold": points[ANY].threshold,
            "other_ratio": points[DIGITS].detections.config.other_ratio,
        },
        "chosen_on": {
            "digits": [_short(folder) for folder in args.digits], "strings": [_short(each) for each in args.strings],
            SPEECH: _short(args.speech), NOISE: _short(args.noise),
        },
        "target": limits,
        "measured": {context: _measure(point) for context, point in points.items()},
        "hours": {kind: hours for kind, (_, hours) in points[ANY].detections.negatives.items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    })  # fmt: skip
    for context, point in points.items():
        ratio = f", other_ratio {point.detections.config.other_ratio:g}" if context == DIGITS else ""
        print(f"context {context}, chosen: {context}_threshold {point.threshold:.2f}{ratio}")
        print(format_table(point.detections, sorted({0.1, 0.3, 0.5, 0.7, 0.9, point.threshold})))
    print(f"written to {out}; the curves: {picture}")
    print(f"to use it: digits listen --thresholds {out}" + ("" if out != SHIPPED else " (it is the one that ships)"))
    return 0


def split_noise(samples: Floats) -> list[Floats]:
    """Parts that the acoustic model can process in one batch."""
    size = int(_PART_SECONDS * SAMPLE_RATE)
    return [samples[first : first + size] for first in range(0, len(samples), size)]


def _measure(point: OperatingPoint) -> dict[str, float]:
    counts = point.score()
    alarms = {kind: point.false_alarms_per_hour(kind) for kind in point.detections.negatives}
    return {"accuracy": counts.accuracy, "digits": counts.reference, **alarms}


def _check(args: Namespace) -> None:
    """Raise ConfigError for invalid flags before an hour is spent."""
    faults = unwritable({"out": args.out})
    if Path(args.out).suffix.lower() == ".png":
        faults.append(f"out: {args.out} is the file of the plot, expected a name like thresholds.json")
    if not 0.0 < args.noise_hours < math.inf:
        faults.append(f"noise_hours: expected a number above 0, got {args.noise_hours}")
    for name in ("false_alarms", "digits_alarms", "noise_alarms"):
        if not getattr(args, name) >= 0.0:
            faults.append(f"{name}: expected a number from 0 on, got {getattr(args, name)}")
    if args.seed < 0:
        faults.append(f"seed: expected a whole number from 0 on, got {args.seed}")
    if faults:
        raise ConfigError(faults, "tune-threshold")


def _short(folder: str) -> str:
    """A folder by its last two names."""
    return "/".join(Path(folder).absolute().parts[-2:])


def streams_of(words: Sequence[Word], noises: Sequence[np.ndarray], rng: np.random.Generator) -> list[TestStream]:
    """Digits with pauses at three signal-to-noise ratios, and strings without pauses. Raises DataError."""
    if len(words) < 10:
        raise DataError(f"{len(words)} recordings of digits are too few: expected ten at least")
    streams = []
    for snr_db in _SNRS:
        chosen = [words[i] for i in rng.permutation(len(words))[:_MOST_WORDS]]
        streams.append(join_with_pauses(chosen, make_noise_track(noises, 60.0, rng), snr_db, rng))
    streams.append(
        join_connected(strings_of(words, _MOST_WORDS // 5, rng), make_noise_track(noises, 60.0, rng), 20.0, rng)
    )
    return streams


def strings_of(words: Sequence[Word], count: int, rng: np.random.Generator) -> list[list[Word]]:
    """`count` strings of 3 to 7 digits, each of one speaker."""
    by_speaker: dict[str, list[Word]] = {}
    for word in words:
        by_speaker.setdefault(word.speaker, []).append(word)
    speakers = [spoken for spoken in by_speaker.values() if len(spoken) >= _STRING[0]] or list(by_speaker.values())
    strings = []
    for _ in range(count):
        spoken = speakers[int(rng.integers(len(speakers)))]
        size = int(rng.integers(_STRING[0], _STRING[1] + 1))
        strings.append([spoken[int(i)] for i in rng.integers(len(spoken), size=size)])
    return strings


def string_streams(folder: Path) -> list[TestStream]:
    """A stream for each recording of a folder's clips.tsv. The times of its digits are not known."""
    streams = []
    for clip in load_strings(folder).clips:
        samples = decode_sound(clip.path)
        end = len(samples) / SAMPLE_RATE
        streams.append(TestStream(samples, tuple(LabelledDigit(int(digit), 0.0, end) for digit in clip.digits)))
    return streams
