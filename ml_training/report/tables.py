"""Results as tables of text: for the terminal, the reports and docs/results.md alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digit_detector.labels import LABELS, PIPELINE_TITLES, PIPELINES
from ml_training.report.string_tables import string_tables
from ml_training.report.table import Cell, Table, format_number, percent, plural
from ml_training.results import STRINGS, Count, Curve, ModelScore, Point, ProtocolResult
from ml_training.utils.visualization import tint

MAX_SPEAKERS = 15  # rows; of more, those with most errors
_TITLES = {
    "official": "Official test part", "cv": "Cross-validation", "loso": "Leave one speaker out",
    "strangers": "Strangers", "unseen_speakers": "Unseen speakers", "noise": "Noise and other changes",
    "calibration": "Calibration", "rejection": "Not a digit", STRINGS: "Digit strings, live",
}  # fmt: skip


def interval(count: Count) -> str:
    low, high = count.interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def pipeline_title(name: str) -> str:
    return PIPELINE_TITLES.get(name, name)


def title_of(result: ProtocolResult) -> str:
    """The heading of a result."""
    noises = (result.details or {}).get("noise_folder")
    name = _TITLES.get(result.protocol, result.protocol)
    live = [f", context {context}"] if (context := (result.details or {}).get("context")) else []
    live += [f", {Path(model).name}"] if (model := (result.details or {}).get("live_model")) else []
    return f"{name}: {result.data}" + (f", backgrounds from {noises}" if noises else "") + "".join(live)


def provenance(result: ProtocolResult) -> str:
    """Protocol, seeds, data, code and models of a result, in one line."""
    noise_seed = (result.details or {}).get("noise_seed")
    models = [f"{m.pipeline} {m.sha256[:8]} (commit {short(m.git_commit)})" for m in result.models]
    return "; ".join([
        f"protocol {result.protocol}", f"seeds {', '.join(result.seeds) or 'none'}",
        *([] if noise_seed is None else [f"noise seed {noise_seed}"]),
        f"data {result.data}, hash {result.data_hash[:12]}" + (" (synthetic speech)" if result.synthetic else ""),
        f"version {result.version}", f"commit {short(result.git_commit)}", result.created,
        *([f"models {', '.join(models)}"] if models else []),
    ])  # fmt: skip


def short(commit: str) -> str:
    """A commit in twelve characters, its '-dirty' kept."""
    name, sign, rest = commit.partition("-")
    return name[:12] + sign + rest


# --- statistics ----------------------------------------------------------------------------------


def pipelines_in(items: Iterable[Any]) -> list[str]:
    """The pipelines of scores, curves, ... in the order of the registry, others after them."""
    names = dict.fromkeys(item.pipeline for item in items)
    return sorted(names, key=lambda name: PIPELINES.index(name) if name in PIPELINES else len(PIPELINES))


def mean_count(counts: Sequence[Count]) -> Count:
    """The counts of several models on the same clips as the count of an average model."""
    return Count(statistics.fmean(c.right for c in counts), counts[0].clips)


def average_curves(curves: Sequence[Curve]) -> dict[str, list[Point]]:
    """Curves of one kind: pipeline -> its points, averaged over seeds."""
    averaged = {}
    for pipeline in pipelines_in(curves):
        points = zip(*(curve.points for curve in curves if curve.pipeline == pipeline), strict=True)
        averaged[pipeline] = [Point(p[0].severity, p[0].label, mean_count([q.count for q in p])) for p in points]
    return averaged


def fold_shares(result: ProtocolResult, pipeline: str) -> dict[tuple[int, str], float]:
    """(seed, what was left out) -> share right, of each fold of a pipeline."""
    folds = [fold for fold in (result.details or {}).get("folds", ()) if fold["pipeline"] == pipeline]
    return {(fold["seed"], fold["left_out"]): fold["right"] / fold["clips"] for fold in folds}


@dataclass(frozen=True)
class Spread:
    """Leave-one-speaker-out of one pipeline: shares right, 0 to 1; deviations are NaN for a single value."""

    by_speaker: dict[str, tuple[float, float]]  # mean and standard deviation over seeds
    mean: float  # over speakers, then seeds
    over_seeds: float  # standard deviation of that mean over seeds
    over_speakers: float  # standard deviation of the speakers' means over seeds


def spread_of(scores: Sequence[ModelScore]) -> Spread:
    """Mean and spread of the folds of one pipeline, one score a seed."""
    speakers = sorted({name for s in scores for name in s.by_speaker})
    shares = {n: [s.by_speaker[n].accuracy for s in scores if n in s.by_speaker] for n in speakers}
    means = {name: statistics.fmean(values) for name, values in shares.items()}
    by_seed = [statistics.fmean(c.accuracy for c in s.by_speaker.values()) for s in scores]
    by_speaker = {name: (means[name], _deviation(values)) for name, values in shares.items()}
    return Spread(by_speaker, statistics.fmean(by_seed), _deviation(by_seed), _deviation(list(means.values())))


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


# --- tables --------------------------------------------------------------------------------------


def tables_of(result: ProtocolResult) -> list[Table]:
    """Every table of a result, the most important one first."""
    if result.protocol == "loso":
        return [_loso(result), *comparison(result), by_digit(result.scores)]
    if result.protocol == "cv":
        return [_cv(result), *comparison(result), _by_fold(result), by_digit(result.scores), by_speaker(result.scores)]
    if result.protocol == STRINGS:
        return string_tables(result)
    if result.curves:
        return _conditions(result)
    if result.reliability:
        return [_calibration(result)]
    if result.rejections:
        return [_rejection(result)]
    return [_scores(result), by_digit(result.scores), by_speaker(result.scores)]


def by_digit(scores: Sequence[ModelScore]) -> Table:
    names = {str(d): f"{d} {word}" for d, word in enumerate(LABELS) if any(str(d) in s.by_digit for s in scores)}
    return _breakdown("digit", scores, [s.by_digit for s in scores], names)


def by_speaker(scores: Sequence[ModelScore], limit: int | None = MAX_SPEAKERS) -> Table:
    """Speakers by name; of more than MAX_SPEAKERS the first `limit`, those with most errors first."""
    names = sorted({name for s in scores for name in s.by_speaker})
    note = ""
    if len(names) > MAX_SPEAKERS:
        note = f"; the {limit} of {len(names)} with most errors" if limit else "; most errors first"
        wrong = {n: sum(c.clips - c.right for s in scores if (c := s.by_speaker.get(n))) for n in names}
        names = sorted(names, key=lambda name: (-wrong[name], name))[:limit]
    return _breakdown("speaker", scores, [s.by_speaker for s in scores], {name: name for name in names}, note)


def _breakdown(
    group: str, scores: Sequence[ModelScore], counts: Sequence[Mapping[str, Count]], names: Mapping[str, str],
    note: str = "",
) -> Table:  # fmt: skip
    def cell(key: str, pipeline: str) -> str:
        own = [c[key] for s, c in zip(scores, counts, strict=True) if s.pipeline == pipeline and key in c]
        if not own:
            return "-"
        share = statistics.fmean(count.accuracy for count in own)
        return Cell(f"{percent(share)} of {own[0].clips}", shade=0.6 * tint(1 - share))

    mean = " (mean over seeds)" if any(s.seed for s in scores) else ""
    return _matrix(f"By {group}, clips right{mean}{note}", group, names, pipelines_in(scores), cell)


def _matrix(
    title: str, corner: str, names: Mapping[Any, str], pipelines: Sequence[str], cell: Callable[[Any, str], str]
) -> Table:
    """A row for each key of `names`, a column for each pipeline."""
    rows = tuple((name, *(cell(key, pipeline) for pipeline in pipelines)) for key, name in names.items())
    return Table(title, (corner, *pipelines), rows)


def _scores(result: ProtocolResult) -> Table:
    rows = []
    for pipeline in pipelines_in(result.scores):
        own = [s for s in result.scores if s.pipeline == pipeline]
        for s in own:
            errors = f"{s.all.clips - s.all.right} of {s.all.clips}"
            rows.append((pipeline, s.seed, errors, percent(s.all.accuracy), f"{interval(s.all)} %"))
        if len(own) > 1:
            errors = f"{statistics.fmean(s.all.clips - s.all.right for s in own):.2f} of {own[0].all.clips}"
            shares = [s.all.accuracy for s in own]
            spread = _with_deviation(statistics.fmean(shares), _deviation(shares))
            rows.append((pipeline, f"mean of {len(own)}", errors, spread, ""))
    return Table("Errors and accuracy", ("pipeline", "seed", "errors", "accuracy", "95 % interval"), tuple(rows))


def _with_deviation(mean: float, deviation: float) -> str:
    return percent(mean) + (f" ± {100 * deviation:.1f}" if math.isfinite(deviation) else "")


def _loso(result: ProtocolResult) -> Table:
    pipelines = pipelines_in(result.scores)
    spreads = {p: spread_of([s for s in result.scores if s.pipeline == p]) for p in pipelines}
    speakers = {name: name for name in sorted({name for s in result.scores for name in s.by_speaker})}
    title = f"Accuracy on the speaker left out, {plural(len(result.seeds), 'seed')} (± is one standard deviation)"
    unknown = (math.nan, math.nan)
    table = _matrix(
        title, "left out", speakers, pipelines, lambda n, p: _with_deviation(*spreads[p].by_speaker.get(n, unknown))
    )
    rows = [
        ("mean ± over seeds", *(_with_deviation(spreads[p].mean, spreads[p].over_seeds) for p in pipelines)),
        ("± over speakers", *(format_number(100 * spreads[p].over_speakers, ".1f") for p in pipelines)),
    ]
    folds = (result.details or {}).get("folds", ())
    errors = {p: [f["ece"] for f in folds if f["pipeline"] == p] for p in pipelines}
    if all(errors.values()):
        rows.append(("calibration error, mean of folds", *(percent(statistics.fmean(errors[p])) for p in pipelines)))
    return Table(title, table.header, (*table.rows, *rows))


def _cv(result: ProtocolResult) -> Table:
    """Mean, spread and extremes of the folds of each pipeline, all seeds together."""
    rows = []
    for pipeline in pipelines_in(result.scores):
        shares = list(fold_shares(result, pipeline).values())
        own = [s.all for s in result.scores if s.pipeline == pipeline]
        over_seeds = _deviation([100 * count.accuracy for count in own])
        rows.append((
            pipeline, _with_deviation(statistics.fmean(shares), _deviation(shares)),
            f"{percent(min(shares))} to {percent(max(shares))}", format_number(over_seeds, ".1f", before="± "),
            f"{statistics.fmean(c.clips - c.right for c in own):.1f} of {own[0].clips}",
            f"{interval(mean_count(own))} %",
        ))  # fmt: skip
    names = {fold["left_out"] for fold in (result.details or {}).get("folds", ())}
    counts = f"{plural(len(names), 'fold')}, {plural(len(result.seeds), 'seed')}"
    head = ("pipeline", "mean of folds", "worst and best fold", "over seeds", "errors a seed", "95 % interval of clips")
    return Table(f"Accuracy on {counts} (± is one standard deviation)", head, tuple(rows))


def _by_fold(result: ProtocolResult) -> Table:
    pipelines = pipelines_in(result.scores)
    shares = {pipeline: fold_shares(result, pipeline) for pipeline in pipelines}
    names = {key: f"seed {key[0]}, fold {key[1]}" for own in shares.values() for key in own}
    return _matrix("By fold, clips right", "fold", names, pipelines, lambda k, p: percent(shares[p].get(k, math.nan)))


def comparison(result: ProtocolResult) -> list[Table]:
    """The comparison of a result with an earlier one, if there is one."""
    against = (result.details or {}).get("compared")
    if against is None:
        return []
    rows = []
    for pair in against["pairs"]:
        name = pair["pipeline"] + (f" against {pair['other']}" if pair["other"] != pair["pipeline"] else "")
        between = "one fold has no interval"
        if pair["low"] is not None and math.isfinite(pair["low"]):
            between = f"{100 * pair['low']:+.2f} to {100 * pair['high']:+.2f}"
        t, p = format_number(pair["t"], ".2f"), _p_value(pair["t_test"])
        rows.append((
            name, f"{100 * pair['difference']:+.2f} points ({between})",
            f"{t}, p = {p}" if t != "-" else "-" if p == "-" else f"p = {p}",
            f"{pair['only_this']} and {pair['only_other']}, p = {_p_value(pair['mcnemar'])}",
        ))  # fmt: skip
    head = ("pipeline", "difference (95 % interval)", "corrected t over folds", "McNemar: right by one alone")
    return [Table(f"Compared with {against['with']} of {against['created']}", head, tuple(rows))]


def _p_value(value: float | None) -> str:
    return format_number(value, ".3f" if value is not None and value >= 0.001 else ".1e")


def _conditions(result: ProtocolResult) -> list[Table]:
    tables = []
    for kind in dict.fromkeys(curve.kind for curve in result.curves):
        curves = [curve for curve in result.curves if curve.kind == kind]
        points = average_curves(curves)
        rows = [
            (same[0].label, *(f"{percent(p.count.accuracy)} ({interval(p.count)})" for p in same))
            for same in zip(*points.values(), strict=True)
        ]
        tables.append(Table(f"{curves[0].title}: accuracy (95 % interval)", (curves[0].axis, *points), tuple(rows)))
    return tables


def _calibration(result: ProtocolResult) -> Table:
    rows = []
    before = {(r.pipeline, r.seed): r for r in result.reliability if r.when == "before"}
    for after in (r for r in result.reliability if r.when == "after"):
        first = before[after.pipeline, after.seed]
        errors = (percent(first.ece), percent(after.ece), f"{first.nll:.3f}", f"{after.nll:.3f}")
        rows.append((after.pipeline, after.seed, f"{after.temperature:.3f}", *errors))
    header = ("pipeline", "seed", "temperature", "error before", "error after", "NLL before", "NLL after")
    return Table("Expected calibration error and negative log likelihood", header, tuple(rows))


def _rejection(result: ProtocolResult) -> Table:
    """Clips accepted as digits, by kind and threshold; means over seeds."""
    pipelines = pipelines_in(result.rejections)
    rows = []
    for kind in dict.fromkeys(r.kind for r in result.rejections):
        same = [r for r in result.rejections if r.kind == kind]
        by_pipeline = [[r for r in same if r.pipeline == pipeline] for pipeline in pipelines]
        name = f"{kind} ({same[0].clips:,})"
        for threshold in same[0].accepted:
            means = (statistics.fmean(r.accepted[threshold].accuracy for r in own) for own in by_pipeline)
            rows.append((name, threshold, *map(percent, means)))
        if kind != "digits":
            areas = (statistics.fmean(r.area for r in own) for own in by_pipeline)
            rows.append((name, "area under ROC", *(f"{area:.3f}" for area in areas)))
    title = "Share of clips accepted as digits, at thresholds that accept this share of the digits (mean over seeds)"
    return Table(title, ("clips", "threshold", *pipelines), tuple(rows))
