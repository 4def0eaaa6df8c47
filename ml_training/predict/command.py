"""What the door asks for: every recording of some folders answered into a table."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from digit_detector.audio import AUDIO_SUFFIXES, Floats
from digit_detector.cli.signals import StopSignals
from digit_detector.cli.text import escape_controls
from digit_detector.errors import BatchError, ConfigError, Interrupted
from ml_training.predict.decoding import Decoded, decoded
from ml_training.predict.flags import AUTO, ONLY_WITH_OUT
from ml_training.predict.journal import Journal, without
from ml_training.predict.progress import Progress
from ml_training.predict.sizes import Batches
from ml_training.predict.tables import Row, table_for
from ml_training.predict.walk import ELSEWHERE, Found, Walk, kinds_of, place

MAX_DECODERS = 64


class Classifier(Protocol):
    """What is asked of ml_training.inference.DigitClassifier."""

    model_file: Path
    metadata: dict[str, str]

    def predict_proba(self, waveforms: Floats) -> tuple[Floats, Floats]: ...


Elsewhere = Callable[[Iterator[Found]], Iterator[list[Row]]]


@dataclass(frozen=True)
class BatchRequest:
    """Which recordings are answered into which table. Raises ConfigError for numbers that cannot be meant."""

    named: tuple[str, ...]  # folders and files
    out: Path  # .csv, .jsonl or .parquet
    resume: bool = False  # go on with a table, finished or not
    overwrite: bool = False  # replace a table that is there
    batch_size: int | None = None  # clips through the model at once; None: as many as suits memory
    decoders: int = 1  # threads that decode
    listed: Callable[[], list[Found]] | None = None  # recordings that lie elsewhere than in files of this machine
    answered: Elsewhere | None = None  # who answers in the place of this process

    def __post_init__(self) -> None:
        faults = []
        if self.batch_size is not None and self.batch_size < 1:
            faults.append(f"batch_size: expected 1 or more, or auto, got {self.batch_size}")
        if not 1 <= self.decoders <= MAX_DECODERS:
            faults.append(f"decoders: expected 1 to {MAX_DECODERS}, got {self.decoders}")
        if self.resume and self.overwrite:
            faults.append("resume goes on with a table and overwrite replaces it: give one of both")
        if faults:
            raise ConfigError(faults, "batch")


@dataclass(frozen=True)
class BatchOutcome:
    """What a finished table holds, rows of earlier sessions included."""

    answers: int
    errors: int
    left_out: int  # files in the folders whose names are not those of recordings
    unchanged: bool = False  # it was finished before, and nothing is new

    def __str__(self) -> str:
        others = f"; {self.left_out:,} other files left out" if self.left_out else ""
        return f"{self.answers:,} answers and {self.errors:,} errors{others}"


def request_of(named: Sequence[str], flags: Mapping[str, Any]) -> BatchRequest:
    """What the door's flags ask for. Raises ConfigError for flags that cannot be meant."""
    faults = [f"{flag} belongs to a table: name one with --out" for flag in sorted(flags.keys() & ONLY_WITH_OUT)]
    faults = [] if "out" in flags else faults
    if "out" in flags and "json" in flags:
        faults.append("json: a table is asked for, --out answers.jsonl writes JSON")
    size = flags.get("batch_size", AUTO)
    if size != AUTO and not (size.isascii() and size.isdigit()):
        faults.append(f"batch_size: expected a number or {AUTO}, got {size!r}")
    if faults:
        raise ConfigError(faults, "flags")
    return BatchRequest(
        named=tuple(named), out=Path(flags["out"]), resume="resume" in flags, overwrite="overwrite" in flags,
        batch_size=None if size == AUTO else int(size), decoders=flags.get("decoders", default_decoders()),
    )  # fmt: skip


def write_table(classifier: Classifier, request: BatchRequest, answered_by: str) -> int:
    """Write the table, say what it holds; returns the exit code, 1 where a file has no answer."""
    outcome = answer_all(classifier, request)
    if outcome.unchanged:
        print(escape_controls(f"{request.out} is whole, with {outcome}: nothing to resume"), file=sys.stderr)
        return 0
    print(escape_controls(f"{outcome} in {request.out}"))
    print(escape_controls(f"answered by {answered_by}"), file=sys.stderr)
    return 1 if outcome.errors else 0


def default_decoders() -> int:
    """One for each CPU that this process may use, up to eight: more wait for each other."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        count = os.cpu_count() or 1
    return min(8, count)


def answer_all(classifier: Classifier, request: BatchRequest) -> BatchOutcome:
    """Write the table that `request` asks for, or add to it.

    Memory does not grow with the number of files. Ctrl-C and SIGTERM end it behind a whole batch with Interrupted.
    Raises BatchError for folders that are not there, a table that cannot be written, is there already, belongs to
    another run or was changed since.
    """
    table = table_for(request.out, str(classifier.model_file))
    if request.out.exists() and not request.out.is_file():
        what = "a folder" if request.out.is_dir() else "a pipe or a device"
        raise BatchError(f"{request.out} is {what}: expected the name of a table to write")
    progress = Progress()
    with Journal(request.out, table, progress.note) as journal, StopSignals("these files") as signals:
        before = journal.remembered() if request.resume else None
        if request.resume and before is None:
            progress.note(f"no {journal.out} and no {journal.part.name} to resume: starting anew")
        if request.listed is not None:
            named, folder = dict.fromkeys(sorted(request.named), ELSEWHERE), None
        else:
            named = kinds_of(request.named, before and before["named"])
            folder = None if all(map(os.path.isabs, named)) else os.getcwd()  # what relative names begin in
        model = hashlib.sha256(classifier.model_file.read_bytes()).hexdigest()
        pipeline = classifier.metadata["pipeline"]
        run = {"named": named, "working_folder": folder, "pipeline": pipeline, "model": model}
        journal.begin(run, before, request.overwrite)
        if before is not None:
            again = f"; {journal.failed_before:,} with an error are answered again" if journal.failed_before else ""
            progress.note(f"going on behind {journal.rows:,} rows with an answer{again}")
        walk = Walk(named) if request.listed is None else _Listed(request.listed())
        try:
            with contextlib.nullcontext() if request.answered else signals.deferred():
                _answer(classifier, request, walk, journal, progress, signals)
            if not journal.rows:
                journal.discard()
                raise BatchError(
                    f"no recordings in {', '.join(named)} ({walk.left_out:,} other files): expected files whose names "
                    f"end in {', '.join(AUDIO_SUFFIXES)}"
                )
            if journal.unchanged:
                journal.discard()
                return BatchOutcome(journal.answers, journal.errors, walk.left_out, unchanged=True)
            journal.finish()
        except Interrupted:
            progress.note(f"stopped: {journal.rows:,} rows are in {journal.part}, --resume goes on")
            raise
        finally:
            progress.clear()
    return BatchOutcome(journal.answers, journal.errors, walk.left_out)


class _Listed:
    """Recordings that somebody else has listed, as Walk gives those it comes by."""

    def __init__(self, found: list[Found]) -> None:
        self.found, self.left_out = sorted(found, key=lambda one: place(one.name)), 0

    def __iter__(self) -> Iterator[Found]:
        return iter(self.found)


def _answer(
    classifier: Classifier,
    request: BatchRequest,
    walk: Walk | _Listed,
    journal: Journal,
    progress: Progress,
    signals: StopSignals,
) -> None:
    progress.begin(journal.rows)
    if request.answered is not None:
        for rows in request.answered(without(walk, journal.done())):
            journal.add(rows)
            progress.tell(journal.rows, journal.errors)
        return
    batches = Batches(classifier, request.batch_size, progress.note)
    with contextlib.closing(decoded(without(walk, journal.done()), request.decoders)) as clips:
        while group := list(islice(clips, batches.size)):
            journal.add(list(_rows(group, batches)))
            progress.tell(journal.rows, journal.errors)
            if signals.signum is not None:
                raise Interrupted(signals.signum)


def _rows(group: list[Decoded], batches: Batches) -> Iterator[Row]:
    heard = [one.clip for one in group if one.clip is not None]
    answers = zip(*batches.predict_proba(heard), strict=True) if heard else iter(())
    for one in group:
        if one.clip is None:
            yield Row(one.name, error=one.error)
        else:
            probabilities, digit_score = next(answers)
            yield Row(one.name, probabilities, float(digit_score))
