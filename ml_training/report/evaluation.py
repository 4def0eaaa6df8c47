"""The evaluation report: every result of a folder on one page that loads nothing, like the training report."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from digit_detector.files import write_atomically
from digit_detector.labels import PIPELINE_TITLES, PIPELINES
from ml_training.report.page import NBSP, date_of, gather_versions, render_page
from ml_training.report.tables import (
    Table,
    interval,
    mean_count,
    percent,
    pipelines_of,
    plural,
    provenance,
    tables_of,
    title_of,
)
from ml_training.results import Count, ProtocolResult

NOTHING = "Nothing was evaluated"
TELLING = ("unseen_speakers", "loso", "cv", "official")  # protocols, the one that tells most of strangers' voices first


@dataclass(frozen=True)
class Section:
    """One result on the page."""

    id: str
    title: str
    definition: str
    provenance: str
    synthetic: bool
    tables: list[Table]
    plots: list[str]  # base64 PNG


@dataclass(frozen=True)
class Line:
    """One result in the overview: a cell for each pipeline, and which of them are the best."""

    id: str
    title: str
    cells: tuple[str, ...]
    best: frozenset[int]


def write_evaluation_report(results: Sequence[tuple[ProtocolResult, Sequence[Path]]], path: Path) -> None:
    """Write the page of some results, each with its plots.

    Raises MissingExtraError without jinja2, TrainingError where the file cannot be written.
    """
    sections = [
        Section(
            id=f"result{number}", title=title_of(result), definition=result.definition,
            provenance=provenance(result), synthetic=result.synthetic, tables=tables_of(result),
            plots=[base64.b64encode(plot.read_bytes()).decode() for plot in plots],
        )
        for number, (result, plots) in enumerate(results, 1)
    ]  # fmt: skip
    found = [result for result, _ in results]
    headline, lede = _headline(found)
    pipelines = pipelines_of(score for result in found for score in result.scores)
    trained = {*PIPELINES, *(model.pipeline for result in found for model in result.models)}
    pipelines = [name for name in pipelines if name in trained] or pipelines
    page = render_page(
        "evaluation_template.html",
        sections=sections,
        headline=headline,
        lede=lede,
        pipelines=[PIPELINE_TITLES.get(name, name) for name in pipelines],
        overview=_overview(found, pipelines),
        written=date_of(datetime.now().astimezone()),
        versions=gather_versions(),
    )
    write_atomically(path, page.encode("utf-8", errors="backslashreplace"))


def _accuracies(result: ProtocolResult) -> dict[str, Count]:
    """Clips right by pipeline, the mean over seeds."""
    names = pipelines_of(result.scores)
    return {name: mean_count([s.all for s in result.scores if s.pipeline == name]) for name in names}


def _overview(results: Sequence[ProtocolResult], pipelines: Sequence[str]) -> list[Line]:
    lines = []
    for number, result in enumerate(results, 1):
        if result.curves or result.reliability or result.rejections:  # scored in other tables
            continue
        counts = _accuracies(result)
        shares = [counts[name].accuracy if name in counts else None for name in pipelines]
        there = [share for share in shares if share is not None]
        if there:
            best = {i for i, share in enumerate(shares) if share == max(there)} if len(there) > 1 else set()
            cells = tuple("-" if share is None else percent(share) for share in shares)
            lines.append(Line(f"result{number}", title_of(result), cells, frozenset(best)))
    return lines


def _headline(results: Sequence[ProtocolResult]) -> tuple[str, str]:
    """The most telling figure of all results, in words, and what it was measured on."""
    scored = [result for result in results if result.scores]
    if not scored:
        return (
            title_of(results[0]) if len(results) == 1 else plural(len(results), "result")
        ) if results else NOTHING, ""
    result = min(scored, key=lambda r: (TELLING.index(r.protocol) if r.protocol in TELLING else len(TELLING), -r.clips))
    counts = _accuracies(result)
    most = max(count.accuracy for count in counts.values())
    best = [PIPELINE_TITLES.get(name, name) for name, count in counts.items() if count.accuracy == most]
    verb = "gets" if len(best) == 1 else "get"
    synthetic = " of synthetic speech" if result.synthetic else ""
    headline = f"{' and '.join(best)} {verb} {percent(most)} of the digits{synthetic} right".replace(" %", NBSP + "%")
    seeds = f", the mean of {plural(len(result.seeds), 'seed')}" if len(result.seeds) > 1 else ""
    one = next(count for count in counts.values() if count.accuracy == most)
    lede = f"{title_of(result)}; {plural(result.clips, 'clip')}{seeds} (95 % interval {interval(one)} %)."
    return headline[0].upper() + headline[1:], lede.replace(" %", NBSP + "%")
