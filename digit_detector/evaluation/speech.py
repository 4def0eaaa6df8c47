"""False alarms of the live detector in speech without digits, and the transcripts that caused them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import DataError
from digit_detector.evaluation.metrics import poisson_interval, wilson_interval
from digit_detector.evaluation.perturbations import CLEAN, Perturbation
from digit_detector.evaluation.streams import audio_files
from digit_detector.evaluation.strings import (
    Detect,
    Progress,
    find_table,
    perturb,
    read_recording,
    read_table,
    set_name,
)
from digit_detector.labels import LABELS
from digit_detector.streaming.detector import Detection

HOMOPHONES = ("to", "too", "for", "fore", "won", "ate", "oh", "o")
MIN_STRING = 3  # digits
STRING_GAP = 1.0  # seconds from the end of a digit, until which another belongs to its string
_WORD = re.compile(r"[a-z']+|\d")


@dataclass(frozen=True)
class SpeechClip:
    """A recording without a digit string."""

    path: Path
    file: str
    text: str | None  # transcript


@dataclass(frozen=True)
class SpeechSet:
    """Recordings without digit strings."""

    name: str
    clips: tuple[SpeechClip, ...]


@dataclass(frozen=True)
class FalseAlarm:
    """A recording in which digits were reported."""

    file: str
    digits: str
    text: str | None
    sounds_like: tuple[str, ...] = ()  # the digit words and homophones of its transcript


@dataclass(frozen=True)
class WordCount:
    """How many of the recordings whose transcript has a word have a false alarm."""

    word: str
    alarms: int
    clips: int


@dataclass(frozen=True)
class SpeechResult:
    """False alarms in a set under one condition."""

    name: str
    condition: str
    clips: int
    seconds: float
    homophone_clips: int  # those whose transcript has a digit word or a homophone
    homophone_seconds: float
    strings: int  # reported strings of at least MIN_STRING digits
    alarms: tuple[FalseAlarm, ...]
    words: tuple[WordCount, ...] = ()  # of transcripts with alarms, the most frequent first

    @property
    def total(self) -> int:
        return sum(len(alarm.digits) for alarm in self.alarms)

    @property
    def in_homophones(self) -> int:
        return sum(len(alarm.digits) for alarm in self.alarms if alarm.sounds_like)

    def per_hour(self, count: float, seconds: float | None = None) -> float:
        """A count over an hour of the recordings, or of some `seconds`; 0 of none."""
        hours = (self.seconds if seconds is None else seconds) / 3600
        return count / hours if hours else 0.0

    @property
    def unexplained_per_hour(self) -> float:
        """Alarms an hour of the recordings whose transcript has no digit word and no homophone."""
        return self.per_hour(self.total - self.in_homophones, self.seconds - self.homophone_seconds)

    def figures(self) -> dict[str, Any]:
        """The main figures for JSON."""
        seconds = self.seconds - self.homophone_seconds
        unexplained = self.total - self.in_homophones
        return {
            "set": self.name, "condition": self.condition, "clips": self.clips, "hours": self.seconds / 3600,
            "alarms": self.total, "per_hour": self.per_hour(self.total),
            "per_hour_interval_95": [self.per_hour(bound) for bound in poisson_interval(self.total)],
            "in_homophones": self.in_homophones, "without_homophones_per_hour": self.unexplained_per_hour,
            "without_homophones_interval_95": [self.per_hour(b, seconds) for b in poisson_interval(unexplained)],
            "strings": self.strings, "strings_per_hour": self.per_hour(self.strings),
            "clips_with_alarms": len(self.alarms),
            "clips_with_alarms_interval_95": list(wilson_interval(len(self.alarms), self.clips)),
        }  # fmt: skip


def load_speech(
    name: str, place: str | Path, where: Mapping[str, str] | None = None,
    select: Callable[[str], bool] = lambda file: True,
) -> SpeechSet:  # fmt: skip
    """The recordings in and below a folder, or those of its table of `file` (or `name`) and `text`.

    A folder may hold clips.tsv or one other table; without one there are no transcripts. `where` keeps the rows with
    these values, `select` the files that it returns true for. Raises DataError.
    """
    path = Path(place).expanduser()
    try:
        find_table(path)
    except DataError:
        if where or not path.is_dir():
            raise
        clips = [SpeechClip(file, file.relative_to(path).as_posix(), None) for file in audio_files(path)]
    else:
        rows = read_table(path, where, ("text",))
        clips = [SpeechClip(row.path, row.file, row.values["text"]) for row in rows]
    clips = [clip for clip in clips if select(clip.file)]
    if not clips:
        raise DataError(f"{place} has no recordings for {name}: expected some")
    return SpeechSet(name or set_name(place, where), tuple(clips))


def words_of(text: str) -> list[str]:
    """The words of a transcript in lower case; numerals digit by digit."""
    return _WORD.findall(text.lower())


def find_digit_words(text: str) -> tuple[str, ...]:
    """The words of a transcript that are digits or sound like one, each once."""
    return tuple(dict.fromkeys(w for w in words_of(text) if w.isdigit() or w in LABELS or w in HOMOPHONES))


def count_strings(detections: Sequence[Detection]) -> int:
    """Runs of at least MIN_STRING digits without a pause of STRING_GAP."""
    runs: list[int] = []
    end = -STRING_GAP
    for detection in sorted(detections, key=lambda d: d.end):
        if runs and detection.start - end < STRING_GAP:
            runs[-1] += 1
        else:
            runs.append(1)
        end = detection.end
    return sum(run >= MIN_STRING for run in runs)


def evaluate_speech(
    speech: SpeechSet, detect: Detect, perturbation: Perturbation = CLEAN, noises: Sequence[Floats] = (),
    seed: int = 0, progress: Progress = lambda done, total: None,
) -> SpeechResult:  # fmt: skip
    """Count the digits that are reported in every recording of a set, perturbed. Raises DataError."""
    alarms, strings = [], 0
    seconds, homophone_seconds, homophone_clips = 0.0, 0.0, 0
    clips_with: dict[str, int] = {}
    alarms_with: dict[str, int] = {}
    for done, clip in enumerate(speech.clips, 1):
        samples = perturb(read_recording(clip.path)[0], clip.file, perturbation, noises, seed)
        detections = sorted(detect(samples), key=lambda d: d.end)
        words, sounds_like = set(words_of(clip.text or "")), find_digit_words(clip.text or "")
        seconds += len(samples) / SAMPLE_RATE
        if sounds_like:
            homophone_clips, homophone_seconds = homophone_clips + 1, homophone_seconds + len(samples) / SAMPLE_RATE
        for word in words:
            clips_with[word] = clips_with.get(word, 0) + 1
            alarms_with[word] = alarms_with.get(word, 0) + bool(detections)
        if detections:
            digits = "".join(str(detection.digit) for detection in detections)
            alarms.append(FalseAlarm(clip.file, digits, clip.text, sounds_like))
            strings += count_strings(detections)
        progress(done, len(speech.clips))
    counts = (WordCount(word, count, clips_with[word]) for word, count in alarms_with.items() if count)
    return SpeechResult(
        speech.name, perturbation.name, len(speech.clips), seconds, homophone_clips, homophone_seconds, strings,
        tuple(alarms), tuple(sorted(counts, key=lambda c: (-c.alarms, c.clips, c.word))),
    )  # fmt: skip
