"""Plots of evaluation protocols as PNG files, in the look of visualization.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from digit_detector.labels import PIPELINE_TITLES
from ml_training.report.tables import (
    fold_shares,
    mean_count,
    merged,
    pipelines_of,
    spread_of,
    title_of,
)
from ml_training.results import Curve, ProtocolResult
from ml_training.utils.visualization import (
    COLOURS,
    GRID,
    INK,
    MUTED,
    colour_index,
    drawable,
    dress,
    head,
    new_figure,
    plot_confusion,
    save,
)

LEGEND = 24  # characters of a kind of clips that fit into the legend of a panel
STYLES = ("-", "--", ":", "-.")  # more kinds than colours: the same colours again in another style


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_") or "data"


def plot_result(result: ProtocolResult, folder: Path, name: str) -> list[Path]:
    """Every plot of a result, as {name}_{what}.png in `folder`. Raises MissingExtraError, TrainingError."""
    paths: list[Path] = []
    for kind in dict.fromkeys(curve.kind for curve in result.curves):
        paths.append(folder / f"{name}_{slug(kind)}.png")
        plot_curves([c for c in result.curves if c.kind == kind], paths[-1], title_of(result))
    if result.reliability:
        paths.append(folder / f"{name}_reliability.png")
        plot_reliability(result, paths[-1])
    if result.rejections:
        paths.append(folder / f"{name}_roc.png")
        plot_rejection(result, paths[-1])
    if not paths and result.scores:
        paths.append(folder / f"{name}_accuracy.png")
        {"loso": plot_speakers_left_out, "cv": plot_folds}.get(result.protocol, plot_scores)(result, paths[-1])
    for pipeline, counts in (result.details or {}).get("confusion", {}).items():
        paths.append(folder / f"{name}_{slug(pipeline)}_confusion.png")
        title = f"{PIPELINE_TITLES.get(pipeline, pipeline)}, all folds\n{title_of(result)}"
        plot_confusion(np.array(counts), paths[-1], title)
    return paths


def plot_curves(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Accuracy with its 95 % interval against the severity of one kind of change, all pipelines together."""
    figure = new_figure(8.4, 4.4)
    axes = figure.subplots()
    labels: list[str] = []
    for position, (pipeline, points) in enumerate(merged(curves).items()):
        colour = COLOURS[colour_index(pipeline, position)]
        places = np.arange(len(points)) + 0.06 * (position - 1)
        shares = [100 * p.count.accuracy for p in points]
        bounds = np.array([p.count.interval for p in points]).T * 100
        axes.vlines(places, bounds[0], bounds[1], color=colour, lw=1.4, alpha=0.55)
        axes.plot(places, shares, "o-", color=colour, lw=2, ms=5, label=PIPELINE_TITLES.get(pipeline, pipeline))
        labels = [p.label for p in points]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(0, 102)
    axes.axhline(10, color=MUTED, lw=0.8, ls=":")
    axes.annotate("chance", (0, 10), xytext=(0, 3), textcoords="offset points", fontsize=8, color=MUTED)
    dress(axes, "Accuracy, % (lines: 95 % interval)")
    axes.set_xlabel(curves[0].axis, color=MUTED)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower left", bbox_to_anchor=(0.0, 0.12))
    head(figure, f"{curves[0].title}\n{title}")
    figure.subplots_adjust(left=0.08, right=0.98, top=0.76, bottom=0.13)
    save(figure, path)


def plot_reliability(result: ProtocolResult, path: Path) -> None:
    """Accuracy against confidence, before and after the temperature, one panel a model."""
    models = [r for r in result.reliability if r.when == "after"]
    pipelines = pipelines_of(models)
    rows = max(sum(m.pipeline == p for m in models) for p in pipelines)
    figure = new_figure(1.4 + 3.2 * len(pipelines), 1.0 + 3.6 * rows)
    panels = figure.subplots(rows, len(pipelines), sharex=True, sharey=True, squeeze=False)
    taken = dict.fromkeys(pipelines, 0)
    for panel in panels.flat:
        panel.set_visible(False)
    for after in models:
        position = pipelines.index(after.pipeline)
        axes = panels[taken[after.pipeline], position]
        taken[after.pipeline] += 1
        axes.set_visible(True)
        axes.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=":")
        for found in result.reliability:
            if (found.pipeline, found.seed) != (after.pipeline, after.seed):
                continue
            colour = COLOURS[colour_index(after.pipeline, position)] if found.when == "after" else MUTED
            said, happened = [100 * b.confidence for b in found.bins], [100 * b.accuracy for b in found.bins]
            axes.plot(said, happened, "--" if found.when == "before" else "-", color=colour, lw=1.5)
            sizes = [12 + 150 * b.count / result.clips for b in found.bins]
            label = f"{found.when} (T {found.temperature:.2f}): error {100 * found.ece:.1f} %"
            axes.scatter(said, happened, s=sizes, color=colour, label=label, zorder=3)
        dress(axes, f"{PIPELINE_TITLES.get(after.pipeline, after.pipeline)}, seed {after.seed}")
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_xlabel("Confidence, %", color=MUTED)
        axes.grid(color=GRID, lw=0.6)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
        axes.set_ylabel("Accuracy, %", color=MUTED)
    head(figure, f"Reliability\n{title_of(result)}")
    figure.subplots_adjust(left=0.55 / figure.get_figwidth(), right=0.985,
                           top=1 - 0.95 / figure.get_figheight(), bottom=0.5 / figure.get_figheight(),
                           wspace=0.2, hspace=0.25)  # fmt: skip
    save(figure, path)


def plot_rejection(result: ProtocolResult, path: Path) -> None:
    """ROC curves, one panel a pipeline (its first seed), one line a kind; the left side is where it is decided."""
    pipelines = pipelines_of(result.rejections)
    figure = new_figure(1.4 + 3.4 * len(pipelines), 4.6)
    panels = figure.subplots(1, len(pipelines), sharey=True, squeeze=False)[0]
    kinds = [kind for kind in dict.fromkeys(r.kind for r in result.rejections) if kind != "digits"]
    for axes, pipeline in zip(panels, pipelines, strict=True):
        own = [r for r in result.rejections if r.pipeline == pipeline]
        for position, kind in enumerate(kinds):
            found = next(r for r in own if r.kind == kind)
            places, shares = np.array(found.roc).T * 100
            lap, colour = divmod(position, len(COLOURS))
            told = kind if len(kind) <= LEGEND else f"{kind[: LEGEND - 1]}…"
            label = drawable(f"{told}: {found.area:.3f}")
            axes.plot(places, shares, color=COLOURS[colour], lw=1.8, ls=STYLES[lap % len(STYLES)], label=label)
        for share in (95, 90):
            axes.axhline(share, color=MUTED, lw=0.8, ls=":")
        dress(axes, f"{PIPELINE_TITLES.get(pipeline, pipeline)}, seed {own[0].seed}")
        axes.set_xlim(-1, 60)
        axes.set_ylim(60, 100.5)
        axes.set_xlabel("Clips without a digit accepted, %", color=MUTED)
        axes.grid(color=GRID, lw=0.6)
        legend = axes.legend(
            frameon=False, fontsize=8, labelcolor=INK, loc="lower right", title="area under the curve", title_fontsize=8
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    panels[0].set_ylabel("Digits accepted, %", color=MUTED)
    head(figure, f"Digit or not\n{title_of(result)}")
    figure.subplots_adjust(left=0.6 / figure.get_figwidth(), right=0.985, top=0.8, bottom=0.12, wspace=0.12)
    save(figure, path)


def plot_scores(result: ProtocolResult, path: Path) -> None:
    """Accuracy of each pipeline with its 95 % interval (of the mean of seeds), and each seed beside."""
    pipelines = pipelines_of(result.scores)
    figure = new_figure(8.4, 1.6 + 0.6 * len(pipelines))
    axes = figure.subplots()
    for row, pipeline in enumerate(pipelines):
        colour = COLOURS[colour_index(pipeline, row)]
        own = [s.all for s in result.scores if s.pipeline == pipeline]
        low, high = mean_count(own).interval
        axes.plot([100 * low, 100 * high], [row, row], color=colour, lw=2.5, solid_capstyle="round")
        axes.plot([100 * c.accuracy for c in own], [row] * len(own), "o", color=colour, ms=7, alpha=0.8)
    axes.set_yticks(range(len(pipelines)), [PIPELINE_TITLES.get(p, p) for p in pipelines])
    axes.set_ylim(len(pipelines) - 0.5, -0.5)
    dress(axes, "Accuracy, % (points: seeds, lines: 95 % interval of their mean)")
    axes.grid(axis="x", color=GRID, lw=0.8)
    head(figure, title_of(result))
    figure.subplots_adjust(left=0.22, right=0.98, top=1 - 0.85 / figure.get_figheight(),
                           bottom=0.35 / figure.get_figheight())  # fmt: skip
    save(figure, path)


def plot_folds(result: ProtocolResult, path: Path) -> None:
    """Accuracy of every fold, a point each, with their mean and one standard deviation either way."""
    pipelines = pipelines_of(result.scores)
    figure = new_figure(8.4, 1.8 + 0.7 * len(pipelines))
    axes = figure.subplots()
    for row, pipeline in enumerate(pipelines):
        colour = COLOURS[colour_index(pipeline, row)]
        shares = 100 * np.array(list(fold_shares(result, pipeline).values()))
        mean, deviation = shares.mean(), shares.std(ddof=1) if len(shares) > 1 else 0.0
        places = row + 0.36 * (np.arange(len(shares)) / max(1, len(shares) - 1) - 0.5)
        axes.plot([mean - deviation, mean + deviation], [row, row], color=colour, lw=6, alpha=0.25)
        axes.plot([mean, mean], [row - 0.3, row + 0.3], color=colour, lw=2)
        axes.plot(shares, places, "o", color=colour, ms=5, alpha=0.8)
        axes.annotate(f"{mean:.2f}", (mean, row - 0.3), xytext=(0, 3), textcoords="offset points", ha="center",
                      fontsize=9, color=INK)  # fmt: skip
    axes.set_yticks(range(len(pipelines)), [PIPELINE_TITLES.get(p, p) for p in pipelines])
    axes.set_ylim(len(pipelines) - 0.5, -0.7)
    dress(axes, "Accuracy, % (points: folds, line: their mean, band: one standard deviation)")
    axes.grid(axis="x", color=GRID, lw=0.8)
    head(figure, title_of(result))
    figure.subplots_adjust(left=0.22, right=0.98, top=1 - 0.85 / figure.get_figheight(),
                           bottom=0.35 / figure.get_figheight())  # fmt: skip
    save(figure, path)


def plot_speakers_left_out(result: ProtocolResult, path: Path) -> None:
    """Accuracy on each speaker left out, a point a seed, and the mean of each pipeline as a line."""
    pipelines = pipelines_of(result.scores)
    speakers = sorted({name for s in result.scores for name in s.by_speaker})
    figure = new_figure(max(6.4, 1.6 + 1.1 * len(speakers)), 4.4)
    axes = figure.subplots()
    for position, pipeline in enumerate(pipelines):
        colour = COLOURS[colour_index(pipeline, position)]
        own = [s for s in result.scores if s.pipeline == pipeline]
        for column, name in enumerate(speakers):
            shares = [100 * s.by_speaker[name].accuracy for s in own if name in s.by_speaker]
            place = column + 0.22 * (position - (len(pipelines) - 1) / 2)
            axes.plot([place] * len(shares), shares, "o", color=colour, ms=6, alpha=0.75)
        mean = 100 * spread_of(own).mean
        title = PIPELINE_TITLES.get(pipeline, pipeline)
        axes.axhline(mean, color=colour, lw=1.3, ls="--", label=f"{title}, mean {mean:.1f} %")
    axes.set_xticks(range(len(speakers)), [drawable(name) for name in speakers], parse_math=False)
    dress(axes, "Accuracy on the speaker left out, % (points: seeds)")
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    head(figure, title_of(result))
    figure.subplots_adjust(left=0.08, right=0.98, top=0.82, bottom=0.08)
    save(figure, path)
