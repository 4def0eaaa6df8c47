"""The report of a search: one page that loads nothing, like the training report."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ml_training.utils.evaluation_tables import Table
from ml_training.utils.files import write_atomically
from ml_training.utils.report import date_of, gather_versions, render_page
from ml_training.utils.visualization_tuning import plot_search

MAX_ROWS = 200  # of the table of trials


@dataclass(frozen=True)
class TrialRow:
    """One trial."""

    number: int
    state: str  # complete, pruned, fail, running
    values: tuple[float, ...]  # of the objectives; empty unless complete
    settings: Mapping[str, Any]
    steps: Mapping[int, float]  # epoch or fold -> share right
    epochs: int
    fault: str = ""


@dataclass(frozen=True)
class SearchPage:
    """Everything the page tells."""

    pipeline: str
    data: str
    synthetic: bool
    objectives: tuple[str, ...]
    directions: tuple[str, ...]
    sampler: str
    pruner: str
    seed: int
    rows: tuple[TrialRow, ...]
    space: Mapping[str, Any]
    importances: Mapping[str, float]
    best: int | None
    front: tuple[int, ...]
    epochs: int
    most_epochs: int
    config: Mapping[str, Any]
    logarithmic: tuple[str, ...]  # settings that were searched so


def write_search_report(page: SearchPage, path: Path) -> None:
    """Write page and plots. Raises MissingExtraError without jinja2 or matplotlib, TrainingError where it cannot."""
    plots = plot_search(page, path.parent / "plots")
    saved = 1 - page.epochs / page.most_epochs if page.most_epochs else 0.0
    states = [row.state for row in page.rows]
    content = render_page(
        "tuning_template.html",
        page=page,
        headline=f"{len(page.rows)} trials of {page.pipeline}",
        states={name: states.count(state) for name, state in (
            ("to the end", "complete"), ("given up", "pruned"), ("failed", "fail"), ("not ended", "running"),
        )},
        saved=f"{100 * saved:.0f} %",
        best=next((_values(page, row) for row in page.rows if row.number == page.best), ""),
        config=json.dumps(page.config, indent=2),
        space=json.dumps(page.space, indent=2),
        table=_table(page),
        plots=[(title, base64.b64encode(plot.read_bytes()).decode()) for title, plot in plots],
        written=date_of(datetime.now().astimezone()),
        versions=gather_versions(),
    )  # fmt: skip
    write_atomically(path, content.encode("utf-8", errors="backslashreplace"))


def _values(page: SearchPage, row: TrialRow) -> str:
    told = []
    for name, direction, value in zip(page.objectives, page.directions, row.values, strict=True):
        told.append(f"{100 * value:.2f} % ({name})" if direction == "maximize" else f"{value:.3g} ({name})")
    return ", ".join(told)


def _table(page: SearchPage) -> Table:
    names = list(page.space)
    ranked = sorted(page.rows, key=lambda row: (-row.values[0] if row.values else 1.0, row.number))
    rows = [
        (
            str(row.number), _values(page, row) if row.values else f"{row.state} {row.fault}".strip(), str(row.epochs),
            *(_short(row.settings.get(name)) for name in names),
        )
        for row in ranked[:MAX_ROWS]
    ]  # fmt: skip
    title = "Trials, the best first" + (f"; {MAX_ROWS} of {len(ranked)}" if len(ranked) > MAX_ROWS else "")
    return Table(title, ("trial", "result", "epochs", *names), tuple(rows))


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
