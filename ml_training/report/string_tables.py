"""Tables of the strings protocol: errors of the live detector on digit strings, false alarms in speech."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from digit_detector.evaluation.metrics import poisson_interval
from digit_detector.evaluation.perturbations import CLEAN
from digit_detector.evaluation.scoring import NONE, Score
from digit_detector.evaluation.speech import MIN_STRING, SpeechResult
from digit_detector.evaluation.strings import StringResult
from digit_detector.labels import LABELS
from ml_training.report.table import Cell, Table, percent
from ml_training.results import ProtocolResult
from ml_training.utils.visualization import tint

MAX_ERRORS = 15  # rows of the commonest errors
MAX_ALARMS = 40  # rows of transcripts with false alarms
MAX_WORDS = 15
MAX_SPEAKERS = 40


def string_tables(result: ProtocolResult) -> list[Table]:
    """Every table of a result of the strings protocol."""
    clean = [each for each in result.strings if each.condition == CLEAN.name]
    tables = []
    if result.strings:
        tables.append(error_rates(result.strings))
    if result.speech:
        tables.append(false_alarms(result.speech))
    if clean:
        tables += [
            by_group(clean, "digits a second of speech", StringResult.by_rate),
            by_group(clean, "length of the string", StringResult.by_length),
            by_group(clean, "speaker", StringResult.by_speaker),
            *map(commonest_errors, clean),
        ]
    for speech in (each for each in result.speech if each.alarms and each.condition == CLEAN.name):
        tables += [alarm_transcripts(speech), *([words] if (words := alarm_words(speech)).rows else [])]
    return tables


def condition_name(result: StringResult | SpeechResult) -> str:
    """The set, and what was changed."""
    return result.name if result.condition == CLEAN.name else f"{result.name}, {result.condition}"


def error_rates(results: Sequence[StringResult]) -> Table:
    """A row for each set and condition."""
    rows = []
    for result in results:
        total = result.total
        rows.append((
            condition_name(result), f"{total.reference}", f"{total.substituted} / {total.deleted} / {total.inserted}",
            f"{percent(total.digit_error_rate)} ({_bounds(total.interval)})",
            f"{total.whole} of {total.strings}: {_share(total)} ({_bounds(result.whole_interval)})",
            f"{_milliseconds(result.latency(50))} / {_milliseconds(result.latency(95))}",
            percent(result.calibration()[0]) if any(clip.confidences for clip in result.clips) else "-",
        ))  # fmt: skip
    head = (
        "recordings", "digits", "mistaken / missed / added", "digit error rate (95 %)", "strings whole (95 %)",
        "latency p50 / p95, ms", "calibration error",
    )  # fmt: skip
    return Table("Digit strings: errors by plain edit distance, latency from the end of speech", head, tuple(rows))


def false_alarms(results: Sequence[SpeechResult]) -> Table:
    """A row for each set of speech and condition."""
    rows = []
    for result in results:
        bounds = [result.per_hour(bound) for bound in poisson_interval(result.total)]
        rows.append((
            condition_name(result), f"{result.clips}, {60 * result.seconds / 3600:.0f} min", f"{result.total}",
            f"{_rate(result.per_hour(result.total))} ({_rate(bounds[0])} to {_rate(bounds[1])})",
            f"{result.in_homophones}",
            _rate(result.unexplained_per_hour) if result.seconds > result.homophone_seconds else "-",
            _rate(result.per_hour(result.strings)),
            f"{len(result.alarms)} of {result.clips}",
        ))  # fmt: skip
    head = (
        "speech", "recordings", "digits reported", "an hour (95 %)", "in transcripts with digit words or homophones",
        "an hour without these", f"strings of {MIN_STRING} or more, an hour", "recordings with any",
    )  # fmt: skip
    return Table("False alarms in speech without digit strings", head, tuple(rows))


def by_group(results: Sequence[StringResult], group: str, split: Callable[[StringResult], dict[str, Score]]) -> Table:
    """The digit error rate of each group, a column for each set."""
    groups = [split(result) for result in results]
    names = list(dict.fromkeys(name for each in groups for name in each))
    if group == "speaker":
        rates = {name: max(g[name].digit_error_rate for g in groups if name in g) for name in names}
        names = sorted(names, key=lambda name: -rates[name])
    elif len(groups) > 1:  # each is in order
        names = sorted(names, key=lambda name: (name.startswith(">"), len(name), name))
    title = f"By {group}: digit error rate"
    if len(names) > MAX_SPEAKERS:
        title += f"; the {MAX_SPEAKERS} of {len(names)} with the highest"
    rows = tuple((name, *(_group_cell(each.get(name)) for each in groups)) for name in names[:MAX_SPEAKERS])
    return Table(title, (group, *(result.name for result in results)), rows)


def _group_cell(counts: Score | None) -> str:
    if counts is None:
        return "-"
    rate = counts.digit_error_rate
    return Cell(f"{percent(rate)} of {counts.reference} digits, {counts.whole} of {counts.strings} whole",
                shade=0.6 * tint(min(1.0, rate)))  # fmt: skip


def commonest_errors(result: StringResult) -> Table:
    """Pairs of a digit spoken and a digit detected, the most frequent first."""
    counts = Counter(pair for clip in result.clips for pair in clip.score.confusions)
    spoken = "".join(clip.reference for clip in result.clips)
    rows = []
    for (reference, hypothesis), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_ERRORS]:
        name = "nothing" if reference == NONE else f"{reference} {LABELS[reference]}"
        of = "" if reference == NONE else f" of {spoken.count(str(reference))}"
        rows.append((name, "nothing" if hypothesis == NONE else f"{hypothesis} {LABELS[hypothesis]}", f"{count}{of}"))
    return Table(f"Commonest errors: {result.name}", ("spoken", "detected", "times"), tuple(rows))


def alarm_transcripts(result: SpeechResult) -> Table:
    """The recordings with false alarms, those without a digit word or homophone first."""
    alarms = sorted(result.alarms, key=lambda alarm: (bool(alarm.sounds_like), -len(alarm.digits), alarm.file))
    title = f"Recordings with false alarms: {result.name}"
    if len(alarms) > MAX_ALARMS:
        title += f"; {MAX_ALARMS} of {len(alarms)}"
    rows = tuple(
        (alarm.text or alarm.file, alarm.digits, ", ".join(alarm.sounds_like) or "-") for alarm in alarms[:MAX_ALARMS]
    )
    return Table(title, ("transcript or file", "reported", "digit words and homophones"), rows)


def alarm_words(result: SpeechResult) -> Table:
    """The words of several recordings with false alarms, the most frequent first."""
    repeated = [count for count in result.words if count.alarms > 1][:MAX_WORDS]
    rows = tuple((count.word, f"{count.alarms} of {count.clips}") for count in repeated)
    return Table(f"Words in recordings with false alarms: {result.name}", ("word", "recordings with an alarm"), rows)


def _share(total: Score) -> str:
    return percent(total.whole / max(1, total.strings))


def _bounds(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _rate(per_hour: float) -> str:
    return f"{per_hour:,.0f}" if per_hour >= 100 else f"{per_hour:.1f}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.0f}"
