"""The live detector on joined words of known content, in both contexts.

    python benchmarks/live.py [--words FOLDER] [--noise FOLDER] [--speech FOLDER] [--hours 5] [--live_model FILE]
        [--update-docs]

Streams are made of --words, clips trimmed at 30 dB below their peak: strung together with pauses of 0.15 to 2 s over
noise 20 and 10 dB below them, and strings of 3 to 7 digits of one speaker without a pause. Each word is also detected
by itself, over noise 20 dB below it, and classified by mel_cnn. False alarms are counted on --hours of noise, remixed
at -45 to -10 dBFS, and on sentences. Default folders are those of $DIGIT_CORPORA_DIR for evaluation; --update-docs
writes docs/live.md and logs the scoring. benchmarks/connected.py has other recognisers and real strings.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from digit_detector import load_classifier
from digit_detector.acoustic_file import FILE
from digit_detector.audio import SAMPLE_RATE, Floats, pad_or_trim
from digit_detector.evaluation.det import OperatingPoint, Outputs, plot_det, run
from digit_detector.evaluation.scoring import NEAR, Score, score
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
)
from digit_detector.files import write_atomically
from digit_detector.labels import MEL_CNN, PRETRAINED
from digit_detector.model_file import git_commit
from digit_detector.streaming.config import ANY, CONTEXTS, DIGITS, DetectorConfig
from digit_detector.streaming.engine import Engine
from digit_detector.tune_threshold import NOISE, SPEECH, TITLES, split_noise, strings_of
from ml_training.evaluation.records import append_scoring

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGE, BEGIN, END = DOCS / "live.md", "<!-- live:begin -->", "<!-- live:end -->"
SEED = 0
TURNS = 3  # how often every word comes up in the streams with pauses
STRINGS = 120
CONNECTED_SNR = 25.0  # dB
ISOLATED_SNR = 20.0
JOINED = 3  # streams of joined words; isolated ones follow


@dataclass(frozen=True)
class Row:
    """Results in a context."""

    pauses: tuple[Score, Score]  # at 20 and 10 dB
    strings: Score
    isolated: Score
    noise_per_hour: float
    speech_per_hour: float


def make_streams(words: Sequence[Word], noises: Sequence[Floats]) -> list[TestStream]:
    """Streams with pauses at 20 and at 10 dB, a connected one, and one for each word by itself."""
    rng = np.random.default_rng(SEED)
    streams = []
    for snr_db in (20.0, 10.0):
        order = [words[i] for _ in range(TURNS) for i in rng.permutation(len(words))]
        streams.append(join_with_pauses(order, make_noise_track(noises, 600.0, rng), snr_db, rng))
    streams.append(
        join_connected(strings_of(words, STRINGS, rng), make_noise_track(noises, 600.0, rng), CONNECTED_SNR, rng)
    )
    track = make_noise_track(noises, 600.0, rng)
    for word in words:
        noise = np.roll(track, -int(rng.integers(len(track))))
        streams.append(join_with_pauses([word], noise, ISOLATED_SNR, rng, (0.8, 0.8)))
    return streams


def classify(streams: Sequence[TestStream]) -> float:
    """The share of isolated words that mel_cnn recognises, cut out of the same sound."""
    clips = []
    for stream in streams:
        (digit,) = stream.digits
        middle = int((digit.start + digit.end) / 2 * SAMPLE_RATE)
        clips.append(pad_or_trim(stream.samples[max(0, middle - SAMPLE_RATE // 2) : middle + SAMPLE_RATE // 2]))
    probabilities, _ = load_classifier(PRETRAINED, MEL_CNN).predict_proba(np.stack(clips))
    return float(np.mean(probabilities.argmax(axis=1) == [stream.digits[0].digit for stream in streams]))


def detect(outputs: Outputs, config: DetectorConfig, context: str) -> OperatingPoint:
    """What is detected in a context at the threshold of the config."""
    threshold = {DIGITS: config.digits_threshold, ANY: config.any_threshold}[context]
    return OperatingPoint(outputs.detect(replace(config, context=context)), threshold)


def summarise(point: OperatingPoint) -> Row:
    scores = [
        score(stream.digits, point.detections.accept(found, point.threshold))
        for stream, found in point.detections.digits
    ]
    alarms = [point.false_alarms_per_hour(kind) for kind in (NOISE, SPEECH)]
    return Row((scores[0], scores[1]), scores[2], sum(scores[JOINED:], Score()), alarms[0], alarms[1])


def format_table(rows: dict[str, Row], classified: float) -> str:
    """A Markdown table with a column for each context."""

    def line(title: str, cell: Callable[[Row], str]) -> str:
        return f"| {title} | {' | '.join(cell(row) for row in rows.values())} |"

    def delay(row: Row) -> str:
        joined = row.pauses[0] + row.pauses[1] + row.strings
        return f"{1e3 * joined.delay(50):.0f} / {1e3 * joined.delay(95):.0f}"

    isolated = f"single words, noise at {ISOLATED_SNR:g} dB, % (mel_cnn: {100 * classified:.1f})"
    return "\n".join([
        f"| | {' | '.join(f'context {name}' for name in rows)} |", f"|---|{'---:|' * len(rows)}",
        line("digits with pauses, noise at 20 dB: right, %", lambda r: f"{100 * r.pauses[0].accuracy:.1f}"),
        line("the same at 10 dB, %", lambda r: f"{100 * r.pauses[1].accuracy:.1f}"),
        line("connected strings of 3 to 7, %", lambda r: f"{100 * r.strings.accuracy:.1f}"),
        line(isolated, lambda r: f"{100 * r.isolated.accuracy:.1f}"),
        line("false alarms an hour of noise", lambda r: f"{r.noise_per_hour:.1f}"),
        line("false alarms an hour of sentences", lambda r: f"{r.speech_per_hour:.0f}"),
        line("delay p50 / p95, ms", delay),
    ]) + "\n"  # fmt: skip


def format_errors(row: Row) -> str:
    """A line of error counts for each kind of stream."""
    named = (("20 dB", row.pauses[0]), ("10 dB", row.pauses[1]), ("connected", row.strings), ("single", row.isolated))
    return "\n".join(
        f"{title}: {counts.reference} digits, {counts.correct} right, {counts.substituted} mistaken, "
        f"{counts.deleted} missed, {counts.inserted} too many"
        for title, counts in named
    )


def update_docs(table: str, points: Sequence[OperatingPoint], row: Row, words: str, model: Path) -> None:
    (DOCS / "images").mkdir(exist_ok=True)
    plot_det(points, TITLES, DOCS / "images" / "live_det.png")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    write_atomically(PAGE, f"{before}{BEGIN}\n{table}{END}{rest.split(END)[1]}".encode())
    append_scoring(
        DOCS / "strangers_scored.md", protocol="live", commit=git_commit(), seeds=["0"],
        recordings=f"{words} in streams: {100 * row.pauses[0].accuracy:.1f} at 20 dB, "
        f"{100 * row.pauses[1].accuracy:.1f} at 10 dB, {100 * row.strings.accuracy:.1f} connected; "
        f"{row.noise_per_hour:.1f}/h of noise, {row.speech_per_hour:.0f}/h of sentences",
        models=[hashlib.sha256(model.read_bytes()).hexdigest()], figures={},
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpora = Path(os.environ.get("DIGIT_CORPORA_DIR", "."))
    parser.add_argument("--words", type=Path, default=corpora / "strangers")
    parser.add_argument("--noise", type=Path, default=corpora / "noise" / "eval")
    parser.add_argument("--speech", type=Path, default=corpora / "speech" / "eval")
    parser.add_argument("--hours", type=float, default=5.0)
    parser.add_argument("--live_model", type=Path, default=ROOT / "digit_detector" / PRETRAINED / FILE)
    parser.add_argument("--update-docs", action="store_true")
    arguments = parser.parse_args()
    noises = load_sounds(arguments.noise)
    streams = make_streams(load_words(arguments.words), noises)
    rng = np.random.default_rng(SEED + 1)
    noise = split_noise(mix_noise(noises, 3600 * arguments.hours, rng))
    speech = sentences(load_sounds(arguments.speech), rng)
    engine = Engine(model=arguments.live_model)
    outputs = run(engine, streams, {SPEECH: [speech], NOISE: noise})
    points = {context: detect(outputs, engine.config, context) for context in CONTEXTS}
    rows = {context: summarise(point) for context, point in points.items()}
    table = format_table(rows, classify(streams[JOINED:]))
    print(
        f"{len(streams[0].digits)} digits a stream with pauses, {len(streams[2].digits)} connected; "
        f"a match is within {NEAR} s"
    )
    print(table)
    for context, row in rows.items():
        print(f"context {context}\n{format_errors(row)}")
    if arguments.update_docs:
        update_docs(table, list(points.values()), rows[DIGITS], arguments.words.name, arguments.live_model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
