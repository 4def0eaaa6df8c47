"""The report of a search: one page that loads nothing, like the training report."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from digit_detector.files import write_atomically
from ml_training.report.page import date_of, gather_versions, render_page, title_of
from ml_training.report.tables import Table, plural
from ml_training.report.tuning_plots import plot_search

MAX_ROWS = 200  # of the table of trials
WORDS = {  # behind the figure of an objective
    "validation": "of the validation clips right", "cv": "of the clips right in cross-validation",
    "loso": "of the clips right, of speakers left out", "latency": "ms for one clip", "size": "kB",
}  # fmt: skip


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
    best = next((row for row in page.rows if row.number == page.best), None)
    saved = 1 - page.epochs / page.most_epochs if page.most_epochs else 0.0
    states = [row.state for row in page.rows]
    content = render_page(
        "tuning_template.html",
        page=page,
        headline=_headline(page, best),
        title=title_of(page.pipeline),
        states={name: states.count(state) for name, state in (
            ("to the end", "complete"), ("given up", "pruned"), ("failed", "fail"), ("not ended", "running"),
        )},
        saved=f"{100 * saved:.0f} %",
        best=best,
        told=_told(page, best) if best else [],
        found=_settings(page, best),
        config=json.dumps(page.config, indent=2),
        space=json.dumps(page.space, indent=2),
        table=_table(page),
        plots=[(title, base64.b64encode(plot.read_bytes()).decode()) for title, plot in plots],
        written=date_of(datetime.now().astimezone()),
        versions=gather_versions(),
    )  # fmt: skip
    write_atomically(path, content.encode("utf-8", errors="backslashreplace"))


def _headline(page: SearchPage, best: TrialRow | None) -> str:
    trials = plural(len(page.rows), "trial")
    if best is None:
        return f"None of {trials} was completed"
    # The first objective alone: a headline is one figure.
    return f"{_told(page, best)[0]}: the best of {trials}"


def _told(page: SearchPage, row: TrialRow) -> list[str]:
    """What a trial reached, a phrase for each objective."""
    names = zip(page.objectives, page.directions, row.values, strict=True)
    return [
        f"{f'{100 * value:.2f} %' if direction == 'maximize' else f'{value:.3g}'} {WORDS.get(name, name)}"
        for name, direction, value in names
    ]


def _settings(page: SearchPage, best: TrialRow | None) -> Table:
    """What the best trial was trained with, of all that was searched."""
    rows = []
    for name in sorted(page.space, key=lambda name: -page.importances.get(name, 0.0)):
        share = f"{100 * page.importances[name]:.0f} %" if name in page.importances else "-"
        rows.append((name, _short(best.settings.get(name)) if best else "-", _range(page.space[name]), share))
    head = ("setting", "best value", "searched", "importance")
    return Table("Settings of the best trial, the most important first", head, tuple(rows))


def _range(values: Any) -> str:
    """Where a setting was searched, for people."""
    if isinstance(values, Mapping):
        scale = f", {values['scale']} scale" if "scale" in values else ""
        return f"{_short(values['from'])} to {_short(values['to'])}{scale}"
    return ", ".join(_short(value).strip('"') for value in values)


def _table(page: SearchPage) -> Table:
    names = list(page.space)
    ranked = sorted(page.rows, key=lambda row: (-row.values[0] if row.values else 1.0, row.number))
    rows = [
        (
            str(row.number), *(_cells(page, row)), str(row.epochs),
            *(_short(row.settings.get(name)) for name in names),
        )
        for row in ranked[:MAX_ROWS]
    ]  # fmt: skip
    title = "Trials, the best first" + (f"; {MAX_ROWS} of {len(ranked)}" if len(ranked) > MAX_ROWS else "")
    return Table(title, ("trial", *page.objectives, "epochs", *names), tuple(rows))


def _cells(page: SearchPage, row: TrialRow) -> list[str]:
    if row.values:
        pairs = zip(page.directions, row.values, strict=True)
        return [f"{100 * value:.2f} %" if direction == "maximize" else f"{value:.3g}" for direction, value in pairs]
    state = {"pruned": "given up", "fail": "failed", "running": "not ended"}.get(row.state, row.state)
    return [f"{state}: {row.fault}" if row.fault else state, *["-"] * (len(page.objectives) - 1)]


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
