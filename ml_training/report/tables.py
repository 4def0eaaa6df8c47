"""What a ProtocolResult says, as tables of words: for the terminal, the report and docs/results.md alike."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from digit_detector.labels import LABELS, PIPELINES
from ml_training.results import Count, Curve, ModelScore, Point, ProtocolResult, Rejection, Reliability

_UNSEEN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
MAX_SPEAKERS = 15  # rows; of more, those with most errors


def _one_line(cell: str) -> str:
    """A name may hold what ends a line, or moves a terminal: that is told as Python writes it."""
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], cell)


@dataclass(frozen=True)
class Table:
    """Rows of cells under a heading; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Aligned columns for a terminal."""
        every = [tuple(map(_one_line, row)) for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*every, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every
        ]
        return "\n".join([self.title, *(f"  {line}" for line in lines)])

    def markdown(self) -> str:
        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(_one_line(cell).replace("|", "\\|") for cell in cells) + " |"

        ruler = "|---|" + "---:|" * (len(self.header) - 1)
        return "\n".join([f"*{self.title}*", "", line(self.header), ruler, *map(line, self.rows)])


def tables_of(result: ProtocolResult) -> list[Table]:
    """Every table of a result, the most telling one first."""
    if result.protocol == "comparison":
        return [_comparison(result)]
    if result.protocol == "loso":
        return [_loso(result), *comparison(result), _by_digit(result)]
    if result.protocol == "cv":
        return [_cv(result), *comparison(result), _by_fold(result), _by_digit(result), _by_speaker(result)]
    if result.curves:
        return _conditions(result)
    if result.reliability:
        return [_calibration(result)]
    if result.rejections:
        return [_rejection(result)]
    return [_scores(result), _by_digit(result), _by_speaker(result)]


def title_of(result: ProtocolResult) -> str:
    """The heading of a result."""
    noises = (result.details or {}).get("noise_folder")
    titles = {
        "official": "Official test part", "cv": "Cross-validation", "loso": "Leave one speaker out",
        "unseen_speakers": "Unseen speakers",
        "noise": "Noise and other changes", "calibration": "Calibration", "rejection": "Not a digit",
        "comparison": "Beside other recognisers",
    }  # fmt: skip
    name = titles.get(result.protocol, result.protocol)
    return f"{name}: {result.data}" + (f", backgrounds from {noises}" if noises else "")


def provenance(result: ProtocolResult) -> str:
    """With what a result was made, in one line."""
    parts = [
        f"protocol {result.protocol}", f"seeds {', '.join(result.seeds) or 'none'}",
        f"data {result.data}, hash {result.data_hash[:12]}" + (" (synthetic speech)" if result.synthetic else ""),
        f"version {result.version}", f"commit {short(result.git_commit)}", result.created,
    ]  # fmt: skip
    details = result.details or {}
    if "noise_seed" in details:
        parts.insert(2, f"noise seed {details['noise_seed']}")
    if result.models:
        parts.append(
            "models " + ", ".join(f"{m.pipeline} {m.sha256[:8]} (commit {short(m.git_commit)})" for m in result.models)
        )
    return "; ".join(parts)


def short(commit: str) -> str:
    """A commit in twelve signs, its '-dirty' kept."""
    name, sign, rest = commit.partition("-")
    return name[:12] + sign + rest


def pipelines_of(
    items: Iterable[ModelScore] | Iterable[Curve] | Iterable[Reliability] | Iterable[Rejection],
) -> list[str]:
    """The pipelines that occur, in the order of the registry, others after them."""
    names = dict.fromkeys(item.pipeline for item in items)
    return sorted(names, key=lambda name: PIPELINES.index(name) if name in PIPELINES else len(PIPELINES))


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "-"


def interval(count: Count) -> str:
    low, high = count.interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def mean_count(counts: Sequence[Count]) -> Count:
    """The counts of several models on the same clips as that of an average one: no more clips than there are."""
    return Count(statistics.fmean(c.right for c in counts), counts[0].clips)


def merged(curves: Sequence[Curve]) -> dict[str, list[Point]]:
    """Curves of one kind: pipeline -> its points, averaged over seeds."""
    found: dict[str, list[Point]] = {}
    for pipeline in pipelines_of(curves):
        own = [curve.points for curve in curves if curve.pipeline == pipeline]
        found[pipeline] = [
            Point(same[0].severity, same[0].label, mean_count([p.count for p in same]))
            for same in zip(*own, strict=True)
        ]
    return found


# --- one protocol each ---------------------------------------------------------------------------


def _scores(result: ProtocolResult) -> Table:
    rows = []
    for pipeline in pipelines_of(result.scores):
        own = [s for s in result.scores if s.pipeline == pipeline]
        for s in own:
            errors = f"{s.all.clips - s.all.right} of {s.all.clips}"
            rows.append((pipeline, s.seed, errors, percent(s.all.accuracy), f"{interval(s.all)} %"))
        if len(own) > 1:
            errors = f"{statistics.fmean(s.all.clips - s.all.right for s in own):.2f} of {own[0].all.clips}"
            shares = [s.all.accuracy for s in own]
            spread = f"{percent(statistics.fmean(shares))} ± {100 * statistics.stdev(shares):.1f}"
            rows.append((pipeline, f"mean of {len(own)}", errors, spread, ""))
    return Table("Errors and accuracy", ("pipeline", "seed", "errors", "accuracy", "95 % interval"), tuple(rows))


def _by_digit(result: ProtocolResult) -> Table:
    names = {str(d): f"{d} {word}" for d, word in enumerate(LABELS)}
    there = [d for d in names if any(d in s.by_digit for s in result.scores)]
    return _breakdown("By digit, clips right (mean over seeds)", "digit", result.scores, "by_digit", there, names)


def _by_speaker(result: ProtocolResult) -> Table:
    names = sorted({name for s in result.scores for name in s.by_speaker})
    title = "By speaker, clips right (mean over seeds)"
    if len(names) > MAX_SPEAKERS:
        wrong = {n: sum(_errors(s.by_speaker.get(n)) for s in result.scores) for n in names}
        title += f"; the {MAX_SPEAKERS} of {len(names)} with most errors"
        names = sorted(names, key=lambda n: (-wrong[n], n))[:MAX_SPEAKERS]
    return _breakdown(title, "speaker", result.scores, "by_speaker", names, {n: n for n in names})


def _errors(count: Count | None) -> float:
    return count.clips - count.right if count else 0


def _breakdown(
    title: str, what: str, scores: Sequence[ModelScore], field: str, keys: Sequence[str], names: Mapping[str, str]
) -> Table:
    pipelines = pipelines_of(scores)
    rows = []
    for key in keys:
        cells = []
        for pipeline in pipelines:
            own = [getattr(s, field)[key] for s in scores if s.pipeline == pipeline and key in getattr(s, field)]
            share = statistics.fmean(c.accuracy for c in own) if own else math.nan
            cells.append(f"{percent(share)} of {own[0].clips}" if own else "-")
        rows.append((names[key], *cells))
    return Table(title, (what, *pipelines), tuple(rows))


@dataclass(frozen=True)
class Spread:
    """Leave-one-speaker-out of one pipeline: shares right, 0 to 1."""

    by_speaker: dict[str, tuple[float, float]]  # mean over seeds, standard deviation over seeds
    mean: float  # over speakers, then seeds
    over_seeds: float  # standard deviation of that mean over seeds; NaN for one seed
    over_speakers: float  # standard deviation of the speakers' means over seeds; NaN for one speaker


def spread_of(scores: Sequence[ModelScore]) -> Spread:
    """Mean and spread of the folds of one pipeline, one score a seed."""

    def deviation(values: Sequence[float]) -> float:
        return statistics.stdev(values) if len(values) > 1 else math.nan

    speakers = sorted({name for s in scores for name in s.by_speaker})
    shares = {n: [s.by_speaker[n].accuracy for s in scores if n in s.by_speaker] for n in speakers}
    means = {n: statistics.fmean(values) for n, values in shares.items()}
    by_seed = [statistics.fmean(c.accuracy for c in s.by_speaker.values()) for s in scores]
    return Spread(
        {n: (means[n], deviation(shares[n])) for n in speakers}, statistics.fmean(by_seed), deviation(by_seed),
        deviation(list(means.values())),
    )  # fmt: skip


def _loso(result: ProtocolResult) -> Table:
    pipelines = pipelines_of(result.scores)
    spreads = {p: spread_of([s for s in result.scores if s.pipeline == p]) for p in pipelines}
    speakers = sorted({name for s in result.scores for name in s.by_speaker})

    def cell(mean: float, deviation: float) -> str:
        return percent(mean) + (f" ± {100 * deviation:.1f}" if math.isfinite(deviation) else "")

    rows = [
        (name, *(cell(*spreads[p].by_speaker[name]) if name in spreads[p].by_speaker else "-" for p in pipelines))
        for name in speakers
    ]
    rows.append(("mean ± over seeds", *(cell(spreads[p].mean, spreads[p].over_seeds) for p in pipelines)))
    over = [100 * spreads[p].over_speakers for p in pipelines]
    rows.append(("± over speakers", *(f"{value:.1f}" if math.isfinite(value) else "-" for value in over)))
    folds = (result.details or {}).get("folds", ())
    errors = {p: [f["ece"] for f in folds if f["pipeline"] == p] for p in pipelines}
    if all(errors.values()):
        rows.append(("calibration error, mean of folds", *(percent(statistics.fmean(errors[p])) for p in pipelines)))
    count = plural(len(result.seeds), "seed")
    return Table(f"Accuracy on the speaker left out, {count} (± is one standard deviation)",
                 ("left out", *pipelines), tuple(rows))  # fmt: skip


def fold_shares(result: ProtocolResult, pipeline: str) -> dict[tuple[int, str], float]:
    """(seed, what was left out) -> share right, of a result whose folds tell."""
    folds = (result.details or {}).get("folds", ())
    own = [fold for fold in folds if fold["pipeline"] == pipeline]
    return {(fold["seed"], fold["left_out"]): fold["right"] / fold["clips"] for fold in own}


def _cv(result: ProtocolResult) -> Table:
    """Mean, spread and extremes of the folds of each pipeline, all seeds together."""
    rows = []
    for pipeline in pipelines_of(result.scores):
        shares = list(fold_shares(result, pipeline).values())
        own = [s for s in result.scores if s.pipeline == pipeline]
        by_seed = [s.all.accuracy for s in own]
        errors = statistics.fmean(s.all.clips - s.all.right for s in own)
        rows.append((
            pipeline, f"{percent(statistics.fmean(shares))} ± {100 * statistics.stdev(shares):.1f}",
            f"{percent(min(shares))} to {percent(max(shares))}",
            f"± {100 * statistics.stdev(by_seed):.1f}" if len(by_seed) > 1 else "-",
            f"{errors:.1f} of {own[0].all.clips}", f"{interval(mean_count([s.all for s in own]))} %",
        ))  # fmt: skip
    head = ("pipeline", "mean of folds", "worst and best fold", "over seeds", "errors a seed", "95 % interval of clips")
    return Table(f"Accuracy on {_folds_of(result)} (± is one standard deviation)", head, tuple(rows))


def _folds_of(result: ProtocolResult) -> str:
    names = {fold["left_out"] for fold in (result.details or {}).get("folds", ())}
    return f"{plural(len(names), 'fold')}, {plural(len(result.seeds), 'seed')}"


def _by_fold(result: ProtocolResult) -> Table:
    pipelines = pipelines_of(result.scores)
    shares = {pipeline: fold_shares(result, pipeline) for pipeline in pipelines}
    keys = list(dict.fromkeys(key for own in shares.values() for key in own))
    rows = [
        (f"seed {seed}, fold {name}", *(percent(shares[p].get((seed, name), math.nan)) for p in pipelines))
        for seed, name in keys
    ]
    return Table("By fold, clips right", ("fold", *pipelines), tuple(rows))


def comparison(result: ProtocolResult) -> list[Table]:
    """This result against an earlier one, where somebody asked for that."""
    against = (result.details or {}).get("compared")
    if against is None:
        return []
    rows = []
    for pair in against["pairs"]:
        name = pair["pipeline"] + (f" against {pair['other']}" if pair["other"] != pair["pipeline"] else "")
        between = "one fold has no interval"
        if _finite(pair["low"]):
            between = f"{100 * pair['low']:+.2f} to {100 * pair['high']:+.2f}"
        p = _p(pair["t_test"])
        rows.append((
            name, f"{100 * pair['difference']:+.2f} points ({between})",
            f"{pair['t']:.2f}, p = {p}" if _finite(pair["t"]) else "-" if p == "-" else f"p = {p}",
            f"{pair['only_this']} and {pair['only_other']}, p = {_p(pair['mcnemar'])}",
        ))  # fmt: skip
    head = (
        "pipeline",
        "difference (95 % interval)",
        "corrected t over folds",
        "McNemar: right by one alone",
    )
    return [Table(f"Compared with {against['with']} of {against['created']}", head, tuple(rows))]


def _finite(value: float | None) -> bool:
    """Whether there is such a number: JSON keeps none that is infinite, and one fold has no spread."""
    return value is not None and math.isfinite(value)


def _p(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _conditions(result: ProtocolResult) -> list[Table]:
    tables = []
    for kind in dict.fromkeys(curve.kind for curve in result.curves):
        curves = [curve for curve in result.curves if curve.kind == kind]
        points = merged(curves)
        rows = [
            (same[0].label, *(f"{percent(p.count.accuracy)} ({interval(p.count)})" for p in same))
            for same in zip(*points.values(), strict=True)
        ]
        tables.append(Table(f"{curves[0].title}: accuracy (95 % interval)", (curves[0].axis, *points), tuple(rows)))
    return tables


def _calibration(result: ProtocolResult) -> Table:
    rows = []
    for after in (r for r in result.reliability if r.when == "after"):
        before = next(
            r for r in result.reliability if (r.pipeline, r.seed, r.when) == (after.pipeline, after.seed, "before")
        )
        rows.append((
            after.pipeline, after.seed, f"{after.temperature:.3f}", percent(before.ece), percent(after.ece),
            f"{before.nll:.3f}", f"{after.nll:.3f}",
        ))  # fmt: skip
    header = ("pipeline", "seed", "temperature", "error before", "error after", "NLL before", "NLL after")
    return Table("Expected calibration error and negative log likelihood", header, tuple(rows))


def _rejection(result: ProtocolResult) -> Table:
    """Clips that pass for digits, by kind and threshold; means over seeds."""
    pipelines = pipelines_of(result.rejections)
    rows = []
    for kind in dict.fromkeys(r.kind for r in result.rejections):
        same = [r for r in result.rejections if r.kind == kind]
        for threshold in same[0].accepted:
            cells = []
            for pipeline in pipelines:
                shares = [r.accepted[threshold].accuracy for r in same if r.pipeline == pipeline]
                cells.append(percent(statistics.fmean(shares)))
            rows.append((f"{kind} ({same[0].clips:,})", threshold, *cells))
        areas = (statistics.fmean(r.area for r in same if r.pipeline == p) for p in pipelines)
        if kind != "digits":
            rows.append((f"{kind} ({same[0].clips:,})", "area under ROC", *(f"{area:.3f}" for area in areas)))
    title = "Share of clips that pass for digits, where the threshold lets so many digits pass (mean over seeds)"
    return Table(title, ("clips", "threshold", *pipelines), tuple(rows))


def _comparison(result: ProtocolResult) -> Table:
    """Recognisers side by side: accuracy, clean and in noise, size and time."""
    details = result.details or {}
    noisy = {c.pipeline: c.points[1:] for c in result.curves}
    labels = [point.label for point in next(iter(noisy.values()), ())]
    rows = []
    for score in result.scores:
        name, wide = score.pipeline, details["original"].get(score.pipeline)
        rows.append((
            name, f"{percent(score.all.accuracy)} ({interval(score.all)})", "-" if wide is None else percent(wide),
            *(percent(point.count.accuracy) for point in noisy.get(name, ())),
            f"{details['megabytes'][name]:.2f}", f"{details['milliseconds'][name]:.2f}",
        ))  # fmt: skip
    header = ("recogniser", "8 kHz, clean (95 % interval)", "16 kHz", *labels, "MB", "ms a clip")
    return Table("Clips right, size of the model, time of one clip on one thread (medians)", header, tuple(rows))
