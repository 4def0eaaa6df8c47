"""Plots of a search as PNG files, in the look of visualization.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_training.utils.visualization import COLOURS, GRID, INK, MUTED, drawable, dress, head, new_figure, save

if TYPE_CHECKING:
    from ml_training.report.tuning import SearchPage, TrialRow

COLUMNS = 3  # of slices


def plot_search(page: SearchPage, folder: Path) -> list[tuple[str, Path]]:
    """History, courses, importance, slices and the Pareto front, as far as there are any: titles and files."""
    plots = [("History", "history.png", _history), ("Courses", "courses.png", _courses)]
    if page.importances:
        plots.append(("Importance", "importance.png", _importance))
    if any(row.values for row in page.rows):
        plots.append(("Slices", "slices.png", _slices))
        if len(page.objectives) > 1:
            plots.append(("Pareto front", "front.png", _front))
    for _, name, draw in plots:
        draw(page, folder / name)
    return [(title, folder / name) for title, name, _ in plots]


def _axis(page: SearchPage, which: int = 0) -> str:
    name, direction = page.objectives[which], page.directions[which]
    return f"Clips right, % ({name})" if direction == "maximize" else name


@contextmanager
def _single(page: SearchPage, path: Path, title: str, note: str, xlabel: str, height: float = 3.8) -> Iterator[Any]:
    """Axes of a figure of its own, saved as `path` at the end."""
    figure = new_figure(8.4, height)
    axes = figure.subplots()
    yield axes
    axes.set_xlabel(xlabel, color=MUTED)
    dress(axes, f"{_axis(page)}; {note}")
    axes.grid(axis="y", color=GRID, lw=0.8)
    head(figure, title)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.83, bottom=0.13)
    save(figure, path)


def _history(page: SearchPage, path: Path) -> None:
    """The value of each trial (the last one reported, of pruned trials) and the best so far."""
    with _single(page, path, "History", "crosses were given up", "Trial") as axes:
        done = [row for row in page.rows if row.values]
        pruned = [row for row in page.rows if row.steps and not row.values]
        last = [100 * row.steps[max(row.steps)] for row in pruned]
        axes.plot([row.number for row in pruned], last, "x", color=MUTED, ms=5, alpha=0.7)
        if not done:
            return
        ends = np.array([100 * row.values[0] for row in done])
        axes.plot([row.number for row in done], ends, "o", color=COLOURS[0], ms=6, alpha=0.85)
        numbers, best = [*(row.number for row in done), page.rows[-1].number], np.maximum.accumulate(ends)
        axes.step(numbers, [*best, best[-1]], where="post", color=COLOURS[1], lw=1.6, label="best so far")
        low, high = min(np.percentile(ends, 10), min(ends[-20:])), max(ends)  # bad trials must not squeeze the others
        axes.set_ylim(low - 0.15 * (high - low) - 1, high + 0.1 * (high - low) + 0.5)
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")


def _courses(page: SearchPage, path: Path) -> None:
    """What each trial reported as it went on."""
    step = "Epoch" if page.objectives[0] == "validation" else "Fold"
    with _single(page, path, "Courses", "grey ones were given up, the thick one is the best", step) as axes:
        for row in page.rows:
            steps = sorted(row.steps)
            best = row.number == page.best
            axes.plot(
                steps, [100 * row.steps[step] for step in steps], "-" if len(steps) > 1 else "o", ms=3,
                color=COLOURS[1] if best else COLOURS[0] if row.values else MUTED,
                lw=2.4 if best else 1.0, alpha=1.0 if best else 0.45, zorder=3 if best else 2,
            )  # fmt: skip


def _importance(page: SearchPage, path: Path) -> None:
    """The importance of each setting; together 100 %."""
    names = sorted(page.importances, key=lambda name: page.importances[name])
    figure = new_figure(8.4, 1.5 + 0.32 * len(names))
    axes = figure.subplots()
    bars = axes.barh(range(len(names)), [100 * page.importances[name] for name in names], color=COLOURS[0], height=0.6)
    axes.bar_label(bars, fmt="%.0f", padding=4, fontsize=9)
    axes.set_yticks(range(len(names)), [drawable(name) for name in names], parse_math=False)
    dress(axes, "Share of what decides whether a trial is among the better ones, % (PED-ANOVA)")
    head(figure, "Importance")
    figure.subplots_adjust(left=0.3, right=0.95, top=1 - 0.85 / figure.get_figheight(),
                           bottom=0.35 / figure.get_figheight())  # fmt: skip
    save(figure, path)


def _slices(page: SearchPage, path: Path) -> None:
    """The value of every completed trial against each setting; colour is when it was tried."""
    done = [row for row in page.rows if row.values]
    names = list(page.space)
    lines = -(-len(names) // COLUMNS)
    figure = new_figure(10.2, 0.9 + 2.5 * lines)
    panels = list(figure.subplots(lines, COLUMNS, squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        _slice(page, axes, name, [row for row in done if name in row.settings])
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    head(figure, f"Slices: {_axis(page)}; darker is later")
    figure.subplots_adjust(left=0.06, right=0.985, top=1 - 0.75 / figure.get_figheight(),
                           bottom=0.35 / figure.get_figheight(), hspace=0.5, wspace=0.2)  # fmt: skip
    save(figure, path)


def _slice(page: SearchPage, axes: Any, name: str, rows: list[TrialRow]) -> None:
    values = [row.settings[name] for row in rows]
    if isinstance(page.space[name], dict):
        places: list[Any] = values
        if name in page.logarithmic and values:
            axes.set_xscale("log")
            marks = np.geomspace(page.space[name]["from"], page.space[name]["to"], 4)
            axes.set_xticks(marks, [f"{mark:.2g}" for mark in marks])
            axes.set_xticks([], minor=True)
    else:
        kinds = [json.dumps(value) for value in page.space[name]]
        places = [kinds.index(json.dumps(value)) for value in values]
        axes.set_xticks(range(len(kinds)), [drawable(kind.strip('"')) for kind in kinds], parse_math=False)
    last = max((row.number for row in page.rows), default=0) or 1
    for row, place in zip(rows, places, strict=True):
        alpha = 0.25 + 0.7 * row.number / last
        axes.plot(place, 100 * row.values[0], "o", ms=5, color=COLOURS[0], alpha=alpha)
    dress(axes, name)
    axes.grid(axis="y", color=GRID, lw=0.6)


def _front(page: SearchPage, path: Path) -> None:
    """Both objectives; the trials that no other beats in both are joined."""
    note = "numbers are trials that no other beats in both"
    with _single(page, path, "Pareto front", note, _axis(page, 1), height=4.4) as axes:
        done = {row.number: (row.values[1], 100 * row.values[0]) for row in page.rows if row.values}
        axes.plot(*zip(*done.values(), strict=True), "o", color=MUTED, ms=5, alpha=0.7)
        front = sorted((*done[number], number) for number in page.front)
        axes.plot([x for x, _, _ in front], [y for _, y, _ in front], "o-", color=COLOURS[1], lw=1.6, ms=7)
        for x, y, number in front:
            axes.annotate(str(number), (x, y), xytext=(5, 5), textcoords="offset points", fontsize=9, color=INK)
