"""`digits tune-threshold`: choose the detection threshold for a rate of false alarms."""

from __future__ import annotations

import math
from argparse import SUPPRESS, Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from digit_detector.cli.live_line import LiveLine
from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, require
from digit_detector.cli.signals import StopSignals
from digit_detector.errors import ConfigError, DataError
from digit_detector.evaluation.det import choose_threshold, format_table, plot_det, run
from digit_detector.evaluation.streams import (
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
from digit_detector.files import unwritable, write_json
from digit_detector.labels import PRETRAINED
from digit_detector.streaming.config import SHIPPED, load_config
from digit_detector.streaming.engine import CONFIRMING, Engine

SPEECH, NOISE = "speech", "noise"
TITLES = {SPEECH: "sentences without digits", NOISE: "noise, -45 to -10 dBFS"}
_SNRS = (10.0, 20.0, 30.0)  # dB, of the streams of digits
_MOST_WORDS = 300  # of a stream
_STRING = (3, 7)  # digits of a connected string


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Write the lowest threshold within the limits of false alarms; returns the exit code."""
    parser = OneLineParser(
        description="Choose the threshold of the live detector at a number of false alarms an hour, and draw what it "
        "costs. The recordings should not be among those the models were trained on."
    )
    parser.add_argument("--digits", metavar="DIR", nargs="+", required=True, help="recordings of digits, 7_anna_0.wav")
    parser.add_argument("--noise", metavar="DIR", required=True, help="recordings without speech")
    parser.add_argument("--speech", metavar="DIR", required=True, help="recordings of sentences without digits")
    parser.add_argument("--false_alarms", type=float, default=60.0, help="most per hour of speech")
    parser.add_argument("--noise_alarms", type=float, default=0.5, help="most per hour of noise")
    parser.add_argument("--noise_hours", type=float, default=2.0, help="hours of noise to mix from the recordings")
    parser.add_argument("--model_dir", "--models_dir", metavar="DIR", default=PRETRAINED, help="models that confirm")
    parser.add_argument(
        "--pipeline", nargs="+", metavar="NAME", default=CONFIRMING, help="which of them confirm each word"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the test streams made of the recordings")
    parser.add_argument("--spotter", metavar="FILE", default=SUPPRESS, help="a spotter of your own")
    parser.add_argument("--out", metavar="FILE", default="thresholds.json", help="file to write, with a plot beside it")
    args = parser.parse_args(argv)
    _check(args)
    require("drawing the curve", ("matplotlib",))
    spotter = Path(args.spotter) if "spotter" in args else None
    engine = Engine(args.model_dir, args.pipeline, load_config(), spotter)
    with StopSignals(unit=None):
        rng = np.random.default_rng(args.seed)
        noises = load_sounds(Path(args.noise))
        streams = [stream for digits in args.digits for stream in streams_of(load_words(Path(digits)), noises, rng)]
        negatives = {
            SPEECH: sentences(load_sounds(Path(args.speech)), rng),
            NOISE: mix_noise(noises, 3600 * args.noise_hours, rng),
        }
        line = LiveLine()
        try:
            scored = run(engine, streams, negatives, lambda fraction: line.show(f"{fraction:.0%} processed"))
        finally:
            line.clear()
        chosen = choose_threshold(scored, {SPEECH: args.false_alarms, NOISE: args.noise_alarms})
    out = Path(args.out)
    picture = out.with_suffix(".png")
    plot_det(scored, chosen, TITLES, picture)
    counts = scored.score(chosen)
    alarms = {kind: scored.false_alarms_per_hour(kind, chosen) for kind in negatives}
    folders = [_short(digits) for digits in args.digits]
    write_json(out, {
        "thresholds": {"spotter_threshold": engine.config.spotter_threshold, "detection_threshold": chosen},
        "chosen_on": {"digits": folders, SPEECH: _short(args.speech), NOISE: _short(args.noise)},
        "target": {"false_alarms": args.false_alarms, "noise_alarms": args.noise_alarms},
        "measured": {"accuracy": counts.accuracy, "digits": counts.reference, **alarms},
        "hours": {kind: hours for kind, (_, hours) in scored.negatives.items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    })  # fmt: skip
    print(format_table(scored, sorted({0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, chosen})))
    print(f"chosen: {chosen:.2f}, in {out}; the curve: {picture}")
    print(f"to use it: digits listen --thresholds {out}" + ("" if out != SHIPPED else " (it is the one that ships)"))
    return 0


def _check(args: Namespace) -> None:
    """Raise ConfigError for invalid flags before an hour is spent."""
    faults = unwritable({"out": args.out})
    if Path(args.out).suffix.lower() == ".png":
        faults.append(f"out: {args.out} is the file of the plot, expected a name like thresholds.json")
    if not 0.0 < args.noise_hours < math.inf:
        faults.append(f"noise_hours: expected a number above 0, got {args.noise_hours}")
    for name in ("false_alarms", "noise_alarms"):
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
