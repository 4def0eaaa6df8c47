"""Plots of evaluation protocols as PNG files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ml_training.report import tables
from ml_training.report.string_plots import plot_strings
from ml_training.report.tables import pipeline_title, pipelines_in, title_of
from ml_training.results import Curve, ProtocolResult
from ml_training.utils import visualization as style
from ml_training.utils.visualization import MUTED, colour_of, drawable, dress, new_figure, save

MAX_LABEL = 24  # characters of the name of a kind of clips in a legend
STYLES = ("-", "--", ":", "-.")  # with more lines than colours the colours repeat in another style


def slug(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_") or "data"


def plot_result(result: ProtocolResult, folder: Path, name: str) -> list[Path]:
    """Write every plot of a result as {name}_{what}.png to `folder`. Raises MissingExtraError, TrainingError."""
    paths: list[Path] = []

    def new_path(what: str) -> Path:
        paths.append(folder / f"{name}_{slug(what)}.png")
        return paths[-1]

    for kind in dict.fromkeys(curve.kind for curve in result.curves):
        plot_curves([c for c in result.curves if c.kind == kind], new_path(kind), title_of(result))
    if result.strings:
        plot_strings(result, title_of(result), new_path)
    if result.reliability:
        plot_reliability(result, new_path("reliability"))
    if result.rejections:
        plot_rejection(result, new_path("roc"))
    if not paths and result.scores:
        draw = {"loso": plot_speakers_left_out, "cv": plot_folds}.get(result.protocol, plot_scores)
        draw(result, new_path("accuracy"))
    for pipeline, counts in (result.details or {}).get("confusion", {}).items():
        title = f"{pipeline_title(pipeline)}, all folds\n{title_of(result)}"
        style.plot_confusion(np.array(counts), new_path(f"{pipeline}_confusion"), title)
    return paths


def plot_curves(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Accuracy with its 95 % interval against the severity of one kind of change, of all pipelines."""
    figure = new_figure(8.4, 4.4, f"{curves[0].title}\n{title}")
    axes = figure.subplots()
    for position, (pipeline, points) in enumerate(tables.average_curves(curves).items()):
        colour = colour_of(pipeline, position)
        places = np.arange(len(points)) + 0.06 * (position - 1)
        bounds = np.array([p.count.interval for p in points]).T * 100
        axes.vlines(places, bounds[0], bounds[1], color=colour, lw=1.4, alpha=0.55)
        shares = [100 * p.count.accuracy for p in points]
        axes.plot(places, shares, "o-", color=colour, lw=2, ms=5, label=pipeline_title(pipeline))
        axes.set_xticks(range(len(points)), [p.label for p in points])
    axes.set_ylim(0, 102)
    axes.axhline(10, color=MUTED, lw=0.8, ls=":")
    style.note(axes, "chance", (0, 10), (0, 3), fontsize=8, color=MUTED)
    dress(axes, "Accuracy, % (lines: 95 % interval)", curves[0].axis, grid="y", legend="best")
    save(figure, path)


def plot_reliability(result: ProtocolResult, path: Path) -> None:
    """Accuracy against confidence before and after temperature scaling: a column a pipeline, a row a seed."""
    models = [r for r in result.reliability if r.when == "after"]
    pipelines = pipelines_in(models)
    by_pipeline = [[m for m in models if m.pipeline == pipeline] for pipeline in pipelines]
    rows = max(map(len, by_pipeline))
    figure = new_figure(1.4 + 3.2 * len(pipelines), 1.0 + 3.6 * rows, f"Reliability\n{title_of(result)}")
    panels = figure.subplots(rows, len(pipelines), sharex=True, sharey=True, squeeze=False)
    for position, own in enumerate(by_pipeline):
        for axes in panels[len(own) :, position]:
            axes.set_visible(False)
        for axes, model in zip(panels[:, position], own, strict=False):
            axes.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=":")
            for r in (r for r in result.reliability if (r.pipeline, r.seed) == (model.pipeline, model.seed)):
                colour, style = (MUTED, "--") if r.when == "before" else (colour_of(r.pipeline, position), "-")
                confidence, accuracy = [100 * b.confidence for b in r.bins], [100 * b.accuracy for b in r.bins]
                label = f"{r.when} (T {r.temperature:.2f}): error {100 * r.ece:.1f} %"
                sizes = [12 + 150 * b.count / result.clips for b in r.bins]
                axes.plot(confidence, accuracy, style, color=colour, lw=1.5)
                axes.scatter(confidence, accuracy, s=sizes, color=colour, label=label, zorder=3)
            axes.set(xlim=(0, 102), ylim=(0, 102))
            axes.set_ylabel("Accuracy, %", color=MUTED)
            title = f"{pipeline_title(model.pipeline)}, seed {model.seed}"
            dress(axes, title, "Confidence, %", grid="both", legend="lower right")
    save(figure, path)


def plot_rejection(result: ProtocolResult, path: Path) -> None:
    """ROC curves: a panel a pipeline (its first seed), a line a kind of clips."""
    pipelines = pipelines_in(result.rejections)
    figure = new_figure(
        1.4 + 3.4 * len(pipelines), 4.6, f"Digit or not (legend: area under the curve)\n{title_of(result)}"
    )
    panels = figure.subplots(1, len(pipelines), sharey=True, squeeze=False)[0]
    kinds = [kind for kind in dict.fromkeys(r.kind for r in result.rejections) if kind != "digits"]
    for axes, pipeline in zip(panels, pipelines, strict=True):
        own = [r for r in result.rejections if r.pipeline == pipeline]
        for position, kind in enumerate(kinds):
            roc = next(r for r in own if r.kind == kind)
            lap, colour = divmod(position, len(style.COLOURS))
            name = kind if len(kind) <= MAX_LABEL else f"{kind[: MAX_LABEL - 1]}…"
            axes.plot(*np.array(roc.roc).T * 100, STYLES[lap % len(STYLES)], color=style.COLOURS[colour], lw=1.8,
                      label=drawable(f"{name}: {roc.area:.3f}"))  # fmt: skip
        for share in (95, 90):
            axes.axhline(share, color=MUTED, lw=0.8, ls=":")
        axes.set(xlim=(-1, 60), ylim=(60, 100.5))
        title = f"{pipeline_title(pipeline)}, seed {own[0].seed}"
        dress(axes, title, "Clips without a digit accepted, %", grid="both", legend="lower right")
    panels[0].set_ylabel("Digits accepted, %", color=MUTED)
    save(figure, path)


def plot_scores(result: ProtocolResult, path: Path) -> None:
    """Accuracy of each seed of a pipeline, and the 95 % interval of their mean."""
    counts = {p: [s.all for s in result.scores if s.pipeline == p] for p in pipelines_in(result.scores)}
    _plot_rows(
        {p: [c.accuracy for c in own] for p, own in counts.items()},
        {p: tables.mean_count(own).interval for p, own in counts.items()},
        "Accuracy, % (points: seeds, lines: 95 % interval of their mean)", title_of(result), path,
    )  # fmt: skip


def plot_folds(result: ProtocolResult, path: Path) -> None:
    """Accuracy of every fold of a pipeline, and one standard deviation either way of their mean."""
    shares = {p: list(tables.fold_shares(result, p).values()) for p in pipelines_in(result.scores)}
    spreads = {p: (np.mean(own), np.std(own, ddof=1) if len(own) > 1 else 0.0) for p, own in shares.items()}
    _plot_rows(
        shares, {p: (float(mean - spread), float(mean + spread)) for p, (mean, spread) in spreads.items()},
        "Accuracy, % (points: folds, number: their mean, band: one standard deviation)", title_of(result), path,
    )  # fmt: skip


def _plot_rows(
    shares: Mapping[str, Sequence[float]], bands: Mapping[str, tuple[float, float]], label: str, title: str, path: Path
) -> None:
    """A row for each pipeline: its shares as points, a band, and the mean as a number."""
    figure = new_figure(8.4, 1.6 + 0.7 * len(shares), title)
    axes = figure.subplots()
    for row, (pipeline, own) in enumerate(shares.items()):
        colour, mean = colour_of(pipeline, row), 100 * float(np.mean(own))
        places = row + 0.36 * (np.arange(len(own)) / max(1, len(own) - 1) - 0.5)
        axes.plot([100 * bound for bound in bands[pipeline]], [row, row], color=colour, lw=6, alpha=0.25)
        axes.plot([mean, mean], [row - 0.3, row + 0.3], color=colour, lw=2)
        axes.plot([100 * share for share in own], places, "o", color=colour, ms=5, alpha=0.8)
        style.note(axes, f"{mean:.2f}", (mean, row - 0.3), (0, 3), ha="center")
    dress(axes, label, grid="x")
    style.set_rows(axes, [pipeline_title(pipeline) for pipeline in shares])
    save(figure, path)


def plot_speakers_left_out(result: ProtocolResult, path: Path) -> None:
    """Accuracy on each speaker left out, a point a seed, and the mean of each pipeline as a line."""
    pipelines = pipelines_in(result.scores)
    speakers = sorted({name for s in result.scores for name in s.by_speaker})
    figure = new_figure(max(6.4, 1.6 + 1.1 * len(speakers)), 4.4, title_of(result))
    axes = figure.subplots()
    for position, pipeline in enumerate(pipelines):
        colour = colour_of(pipeline, position)
        own = [s for s in result.scores if s.pipeline == pipeline]
        place = 0.22 * (position - (len(pipelines) - 1) / 2)
        for column, name in enumerate(speakers):
            shares = [100 * s.by_speaker[name].accuracy for s in own if name in s.by_speaker]
            axes.plot([column + place] * len(shares), shares, "o", color=colour, ms=6, alpha=0.75)
        mean = 100 * tables.spread_of(own).mean
        axes.axhline(mean, color=colour, lw=1.3, ls="--", label=f"{pipeline_title(pipeline)}, mean {mean:.1f} %")
    turn: dict[str, Any] = {"rotation": 25, "ha": "right"} if max(map(len, speakers)) > 12 else {}
    axes.set_xticks(range(len(speakers)), [drawable(name) for name in speakers], parse_math=False, **turn)
    dress(axes, "Accuracy on the speaker left out, % (points: seeds)", grid="y", legend="best")
    save(figure, path)
