"""The live detector on recordings of digit strings: errors by plain edit distance, latency, calibration.

from digit_detector.evaluation.strings import evaluate_strings, live_detect, load_strings

result = evaluate_strings(load_strings("phone_numbers"), live_detect())
print(result.total.digit_error_rate, result.total.interval, result.latency(50))
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio import SAMPLE_RATE, Floats, decode_sound, list_audio_files
from digit_detector.errors import AudioError, DataError
from digit_detector.evaluation.metrics import ReliabilityBin, measure_reliability, wilson_interval
from digit_detector.evaluation.perturbations import CLEAN, Perturbation
from digit_detector.evaluation.scoring import Score, align_strings, count_pairs
from digit_detector.evaluation.streams import find_edges
from digit_detector.labels import NUM_CLASSES
from digit_detector.streaming.detector import Detection, StreamingDetector
from digit_detector.table_files import is_table, read_rows

CLIPS = "clips.tsv"  # the table of a folder
UNKNOWN = "unknown"  # speaker
RATES = ((0.0, 2.0, "0-2"), (2.0, 3.0, "2-3"), (3.0, 4.0, "3-4"), (4.0, np.inf, ">4"))  # digits a second
_FILE_COLUMNS = ("file", "path", "filename", "name")
_BLANKS = str.maketrans("", "", " -")

Detect = Callable[[Floats], Sequence[Detection]]  # (T,) samples of a recording at 8 kHz -> its digits
Progress = Callable[[int, int], None]  # recordings done, of how many


@dataclass(frozen=True)
class TableRow:
    """A recording that a table names."""

    path: Path
    file: str  # as the table names it
    line: int
    values: Mapping[str, str]  # column -> cell


@dataclass(frozen=True)
class StringClip:
    """A recording of a digit string."""

    path: Path
    file: str
    digits: str
    speaker: str = UNKNOWN


@dataclass(frozen=True)
class StringSet:
    """Recordings of digit strings."""

    name: str
    clips: tuple[StringClip, ...]
    without_digits: int = 0  # rows of the table whose digits are not known


@dataclass(frozen=True)
class ClipResult:
    """What was detected in one recording."""

    file: str
    speaker: str
    reference: str
    hypothesis: str
    score: Score
    confidences: tuple[float, ...]  # of each detection
    correct: tuple[bool, ...]  # whether each is aligned with an equal digit
    speech_seconds: float  # from the first sound of speech to the last
    latency: float | None  # seconds from there to the report of the last digit; None where that is not correct

    @property
    def rate(self) -> str:
        """The class of RATES of its digits a second of speech."""
        rate = len(self.reference) / max(self.speech_seconds, 1e-3)
        return next(name for low, high, name in RATES if low <= rate < high)


@dataclass(frozen=True)
class StringResult:
    """A set of recordings under one condition."""

    name: str
    condition: str
    clips: tuple[ClipResult, ...]

    @property
    def total(self) -> Score:
        return sum((clip.score for clip in self.clips), Score())

    @property
    def whole_interval(self) -> tuple[float, float]:
        """95 % interval of the share of strings without an error."""
        return wilson_interval(self.total.whole, self.total.strings)

    def confusion(self) -> NDArray[np.int64]:
        """(11, 11) counts: rows are the digits spoken and none, columns the digits detected and none."""
        counts = self.total.confusion
        spoken = "".join(clip.reference for clip in self.clips)
        for digit in range(NUM_CLASSES):
            counts[digit, digit] = spoken.count(str(digit)) - counts[digit].sum()
        return counts

    def latency(self, percent: float) -> float | None:
        """A percentile of the latencies, seconds."""
        known = [clip.latency for clip in self.clips if clip.latency is not None]
        return float(np.percentile(known, percent)) if known else None

    def calibration(self) -> tuple[float, tuple[ReliabilityBin, ...]]:
        """Expected calibration error of the confidences of all detections, and its bins."""
        confidence = np.array([value for clip in self.clips for value in clip.confidences])
        return measure_reliability(confidence, np.array([value for clip in self.clips for value in clip.correct], bool))

    def by_speaker(self) -> dict[str, Score]:
        return self._group(lambda clip: clip.speaker)

    def by_length(self) -> dict[str, Score]:
        """Number of digits of a string -> counts, ascending."""
        return dict(sorted(self._group(lambda clip: str(len(clip.reference))).items(), key=lambda item: int(item[0])))

    def by_rate(self) -> dict[str, Score]:
        """Class of digits a second -> counts, in the order of RATES."""
        groups = self._group(lambda clip: clip.rate)
        return {name: groups[name] for _, _, name in RATES if name in groups}

    def figures(self) -> dict[str, Any]:
        """The main figures for JSON."""
        total = self.total
        return {
            "set": self.name, "condition": self.condition, "digits": total.reference, "correct": total.correct,
            "substituted": total.substituted, "deleted": total.deleted, "inserted": total.inserted,
            "digit_error_rate": total.digit_error_rate, "interval_95": list(total.interval), "strings": total.strings,
            "whole": total.whole, "whole_interval_95": list(self.whole_interval), "latency_p50": self.latency(50),
            "latency_p95": self.latency(95), "calibration_error": self.calibration()[0],
        }  # fmt: skip

    def _group(self, key: Callable[[ClipResult], str]) -> dict[str, Score]:
        groups: dict[str, Score] = {}
        for clip in self.clips:
            groups[key(clip)] = groups.get(key(clip), Score()) + clip.score
        return dict(sorted(groups.items()))


# --- tables --------------------------------------------------------------------------------------


def load_strings(place: str | Path, where: Mapping[str, str] | None = None) -> StringSet:
    """The recordings of a table (.csv, .tsv), or of the clips.tsv of a folder, with columns `file` and `digits`.

    Other columns, such as `speaker` and `fold`, are optional; `where` keeps the rows with these values,
    alternatives joined by commas (fold=3,4). Rows without digits are left out. Raises DataError for a table without
    these columns, a missing file, or digits that are none.
    """
    rows = read_table(place, where, ("digits",))
    clips = []
    for row in rows:
        digits = row.values["digits"].translate(_BLANKS)
        if not digits:
            continue
        if not (digits.isascii() and digits.isdecimal()):
            raise DataError(
                f"{find_table(Path(place))}: line {row.line} has the digits {row.values['digits']!r}: expected digits "
                "such as 0429, or nothing where they are not known"
            )
        clips.append(StringClip(row.path, row.file, digits, row.values.get("speaker") or UNKNOWN))
    if not clips:
        raise DataError(f"{place}: no digits in any row{_describe(where)}: expected a digit string such as 0429")
    return StringSet(set_name(place, where), tuple(clips), len(rows) - len(clips))


def find_table(place: Path) -> Path:
    """A table itself, or the clips.tsv or the only table of a folder. Raises DataError."""
    if is_table(place):
        return place
    if not place.is_dir():
        raise DataError(f"{place} is no folder and no table: expected a folder with {CLIPS}, or a .csv or .tsv file")
    if (place / CLIPS).is_file():
        return place / CLIPS
    tables = sorted(path for path in place.iterdir() if is_table(path))
    if len(tables) != 1:
        raise DataError(f"{place} holds {len(tables) or 'no'} tables and no {CLIPS}: name the table (.csv, .tsv)")
    return tables[0]


def read_table(place: str | Path, where: Mapping[str, str] | None, needed: Sequence[str]) -> list[TableRow]:
    """The rows of a table whose columns have the values of `where` (or one of several: "3,4").

    Files are relative to its folder. A table of two columns without a header has `file` and `text`; a file may lack its
    suffix. Raises DataError for a column or a file that is missing.
    """
    table = find_table(Path(place).expanduser())
    lines = list(read_rows(table))
    header = [cell.strip().lower() for cell in lines[0][1]] if lines else []
    file_column = next((name for name in _FILE_COLUMNS if name in header), None)
    if file_column is None and len(header) == 2 and tuple(needed) == ("text",):
        file_column, header = "file", ["file", "text"]
    else:
        lines = lines[1:]
    missing = [name for name in (*needed, *(where or ())) if name not in header]
    if file_column is None or missing:
        names = " and ".join(["file"] if file_column is None else missing)
        raise DataError(f"{table} has no column {names}: expected a header with it, got {', '.join(header) or 'none'}")
    rows = []
    audio: dict[str, Path] = {}  # stem -> file, where a name lacks its suffix
    for line, cells in lines:
        values = dict(zip(header, (cell.strip() for cell in cells), strict=False))
        if any(values.get(name, "") not in value.split(",") for name, value in (where or {}).items()):
            continue
        values = {**dict.fromkeys(header, ""), **values}
        path = table.parent / values[file_column]
        if not path.is_file():
            audio = audio or {file.stem: file for file in list_audio_files(table.parent)}
            if path.name not in audio:
                raise DataError(f"{table}: line {line} names {values[file_column]!r}, and {path} does not exist")
            path = audio[path.name]
        rows.append(TableRow(path, values[file_column], line, values))
    if not rows:
        raise DataError(f"{table} has no row{_describe(where)}: check its columns and values")
    return rows


def _describe(where: Mapping[str, str] | None) -> str:
    return " with " + " and ".join(f"{name}={value}" for name, value in where.items()) if where else ""


def set_name(place: str | Path, where: Mapping[str, str] | None = None) -> str:
    """The name of a set: that of its folder, or of a table that is not clips.tsv, and the filter."""
    path = Path(place).expanduser().resolve()
    name = path.name if path.is_dir() else path.parent.name if path.name == CLIPS else path.stem
    return f"{name} ({', '.join(f'{column}={value}' for column, value in where.items())})" if where else name


# --- evaluation ----------------------------------------------------------------------------------


def live_detect(live_model: str | Path | None = None, context: str = "digits") -> Detect:
    """The live detector as a function of one recording; `live_model` None is the bundled one.

    Raises ModelError.
    """
    detector = StreamingDetector(context, model=live_model)

    def detect(samples: Floats) -> list[Detection]:
        return [*detector.feed(samples, SAMPLE_RATE), *detector.flush()]

    return detect


def evaluate_strings(
    strings: StringSet, detect: Detect, perturbation: Perturbation = CLEAN, noises: Sequence[Floats] = (),
    seed: int = 0, progress: Progress = lambda done, total: None,
) -> StringResult:  # fmt: skip
    """Detect digits in every recording of a set, perturbed, and align them with what was spoken. Raises DataError."""
    clips = []
    for clip in strings.clips:
        samples, edges = read_recording(clip.path)
        changed = perturb(samples, clip.file, perturbation, noises, seed)
        first, last = (perturbation.map_time(edge) for edge in edges)
        clips.append(score_clip(clip, detect(changed), last - first, last))
        progress(len(clips), len(strings.clips))
    return StringResult(strings.name, perturbation.name, tuple(clips))


def read_recording(path: Path) -> tuple[Floats, tuple[float, float]]:
    """(T,) samples at 8 kHz, and the seconds at which speech begins and ends. Raises DataError."""
    try:
        samples = decode_sound(path)
    except AudioError as error:
        raise DataError(f"{path} cannot be evaluated: {error}; fix or remove it") from error
    first, last = find_edges(samples)
    return samples, (first / SAMPLE_RATE, last / SAMPLE_RATE)


def perturb(
    samples: Floats, file: str, perturbation: Perturbation, noises: Sequence[Floats] = (), seed: int = 0
) -> Floats:
    """The samples perturbed, with random numbers that depend on the file, the perturbation and the seed alone."""
    rng = np.random.default_rng([seed, zlib.crc32(file.encode()), zlib.crc32(perturbation.name.encode())])
    return perturbation.apply(samples, rng, noises)


def score_clip(
    clip: StringClip, detections: Sequence[Detection], speech_seconds: float, speech_end: float
) -> ClipResult:
    """The counts of one recording; times in seconds."""
    detections = sorted(detections, key=lambda detection: detection.end)
    reference, hypothesis = [*map(int, clip.digits)], [detection.digit for detection in detections]
    pairs = align_strings(reference, hypothesis)
    right = {j: i for i, j in pairs if i is not None and j is not None and reference[i] == hypothesis[j]}
    last = next((j for j, i in right.items() if i == len(reference) - 1), None)
    return ClipResult(
        clip.file, clip.speaker, clip.digits, "".join(map(str, hypothesis)), count_pairs(pairs, reference, hypothesis),
        tuple(float(detection.confidence) for detection in detections),
        tuple(j in right for j in range(len(detections))), speech_seconds,
        None if last is None else detections[last].reported - speech_end,
    )  # fmt: skip
