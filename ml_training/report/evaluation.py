"""HTML report of evaluations: every result of a folder on one page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from digit_detector.labels import PIPELINES
from ml_training.report import tables
from ml_training.report.page import write_page
from ml_training.report.table import Cell, Table, percent, plural
from ml_training.report.tables import pipeline_title, pipelines_in, title_of
from ml_training.results import Count, ProtocolResult

# Protocols whose figures say most about unknown voices, the first one most; others come after them.
HEADLINES = ("unseen_speakers", "strangers", "loso", "cv", "official")


@dataclass(frozen=True)
class Section:
    """One result on the page."""

    id: str
    title: str
    result: ProtocolResult
    provenance: str
    tables: list[Table]
    plots: list[str]  # base64 PNG


def write_evaluation_report(results: Sequence[tuple[ProtocolResult, Sequence[Path]]], path: Path) -> None:
    """Write the page of results, each with its plots.

    Raises MissingExtraError without jinja2, TrainingError where the file cannot be written.
    """
    sections = [
        Section(
            f"result{number}", title_of(result), result, tables.provenance(result), tables.tables_of(result),
            [base64.b64encode(plot.read_bytes()).decode() for plot in plots],
        )
        for number, (result, plots) in enumerate(results, 1)
    ]  # fmt: skip
    headline, lede = _headline([result for result, _ in results])
    overview = _overview(sections)
    write_page(path, "evaluation.html", sections=sections, headline=headline, lede=lede, overview=overview)


def _mean_scores(result: ProtocolResult) -> dict[str, Count]:
    """Clips right by pipeline, the mean over seeds."""
    names = pipelines_in(result.scores)
    return {name: tables.mean_count([s.all for s in result.scores if s.pipeline == name]) for name in names}


def _overview(sections: Sequence[Section]) -> Table:
    names = pipelines_in(score for section in sections for score in section.result.scores)
    own = {*PIPELINES, *(model.pipeline for section in sections for model in section.result.models)}
    names = [name for name in names if name in own] or names
    rows = []
    for section in sections:
        if section.result.curves or section.result.reliability or section.result.rejections:  # have other tables
            continue
        shares = {name: count.accuracy for name, count in _mean_scores(section.result).items() if name in names}
        best = max(shares.values()) if len(shares) > 1 else None
        cells = (Cell(percent(shares[n]), best=shares[n] == best) if n in shares else "-" for n in names)
        if shares:
            rows.append((Cell(section.title, link=section.id), *cells))
    header = ("recordings", *map(pipeline_title, names))
    return Table("Clips right, the mean over seeds; the best of each line in bold", header, tuple(rows))


def _headline(results: Sequence[ProtocolResult]) -> tuple[str, str]:
    """The most important figure of all results, and what it was measured on."""
    scored = [result for result in results if result.scores]
    strings = [each for result in results for each in result.strings]
    if not scored and strings:
        total = strings[0].total
        headline = f"The live detector makes {total.errors} errors in {total.reference} digits of {strings[0].name}"
        whole = f"{total.whole} of {plural(total.strings, 'string')} without an error"
        return headline, f"Digit error rate {percent(total.digit_error_rate)}, {whole}."
    if not scored:
        return title_of(results[0]) if len(results) == 1 else f"{len(results)} evaluation results", ""
    rank = {protocol: place for place, protocol in enumerate(HEADLINES)}
    result = min(scored, key=lambda r: (rank.get(r.protocol, len(rank)), -r.clips))
    counts = _mean_scores(result)
    most = max(counts.values(), key=lambda count: count.accuracy)
    best = [pipeline_title(name) for name, count in counts.items() if count.accuracy == most.accuracy]
    synthetic = " of synthetic speech" if result.synthetic else ""
    verb = "gets" if len(best) == 1 else "get"
    headline = f"{' and '.join(best)} {verb} {percent(most.accuracy)} of the digits{synthetic} right"
    seeds = f", the mean of {plural(len(result.seeds), 'seed')}" if len(result.seeds) > 1 else ""
    lede = f"{title_of(result)}; {plural(result.clips, 'clip')}{seeds} (95 % interval {tables.interval(most)} %)."
    return headline[0].upper() + headline[1:], lede
