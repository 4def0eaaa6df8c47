"""Plots of a training run, and the style that every plot shares.

Plots use Figure objects only: pyplot keeps global state, picks a window system and is not safe in threads.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from digit_detector.errors import MissingExtraError
from digit_detector.files import write_atomically
from digit_detector.labels import LABELS, PIPELINE_TITLES, PIPELINES
from ml_training.results import EpochRecord, Evaluation, Ints, PipelineResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Distinct with any colour vision, and at least 4.5 : 1 on white.
COLOURS = ("#0b62a8", "#b3460d", "#0d7566", "#7a3e9d", "#6b5b00")
INK, MUTED, GRID = "#1d1f24", "#63666d", "#e2e2de"
HIT, MISS = np.array([11, 98, 168]) / 255, np.array([200, 70, 20]) / 255


def plot_training_history(history: Sequence[EpochRecord], path: Path, title: str) -> None:
    """Write loss and accuracy over the epochs as PNG. Raises MissingExtraError, TrainingError."""
    save(draw_training_history(history, title), path)


def draw_training_history(history: Sequence[EpochRecord], title: str = "") -> Figure:
    """Loss and accuracy of training and validation over the epochs, the best epoch marked."""
    figure = new_figure(9.6, 4.0, title)
    panels = (
        ("Loss", [(r.train_loss, r.validation_loss) for r in history]),
        ("Accuracy, %", [(100 * r.train_accuracy, 100 * r.validation_accuracy) for r in history]),
    )
    epochs = [record.epoch for record in history]
    marker = "." if len(history) < 3 else ""
    for axes, (name, values) in zip(figure.subplots(1, 2), panels, strict=True):
        training, validation = [value for value, _ in values], [value for _, value in values]
        axes.plot(epochs, training, marker=marker, ls="--", color=MUTED, lw=1.3, label="training")
        axes.plot(epochs, validation, marker=marker, color=COLOURS[0], lw=2, label="validation")
        if history:
            best = best_record(history).epoch
            axes.axvline(best, color=MUTED, lw=0.8, ls=":")
            label = f"lowest validation loss, epoch {best}"
            axes.plot(best, validation[epochs.index(best)], "o", color=COLOURS[1], ms=6, label=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        dress(axes, name, "Epoch", grid="y", legend="best" if name == "Loss" else "")
    return figure


def best_record(history: Sequence[EpochRecord]) -> EpochRecord:
    """The epoch with the lowest validation loss; epochs whose loss is no number never win."""
    return min(history, key=lambda r: r.validation_loss if math.isfinite(r.validation_loss) else math.inf)


def plot_confusion_matrix(evaluation: Evaluation, path: Path, title: str) -> None:
    """Write the confusion matrix of an evaluation as PNG. Raises MissingExtraError, TrainingError."""
    score = f"{evaluation.errors} of {evaluation.clips} wrong, accuracy {100 * evaluation.accuracy:.2f} %"
    plot_confusion(evaluation.confusion, path, f"{title}\n{score if evaluation.clips else 'no clips'}")


def plot_confusion(counts: Ints, path: Path, title: str) -> None:
    """Write (10, 10) counts, row true digit, column predicted digit, as PNG."""
    figure = new_figure(6.4, 6.6, title)
    draw_confusion(figure.subplots(), counts)
    save(figure, path)


def draw_confusion(axes: Any, counts: Ints) -> None:
    """Draw counts, row true digit, column predicted digit; an eleventh row and column stand for no digit."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = np.ones((*counts.shape, 3))
    for true, predicted in np.argwhere(counts):
        strength = tint(float(shares[true, predicted]))
        cells[true, predicted] = strength * (HIT if true == predicted else MISS) + (1 - strength)
        axes.text(predicted, true, str(counts[true, predicted]), ha="center", va="center", color=INK, fontsize=11)
    axes.imshow(cells, interpolation="nearest")
    digits, has_none = range(len(LABELS)), len(counts) > len(LABELS)
    axes.set_xticks(range(len(counts)), [*map(str, digits), *(["missed"] if has_none else [])])
    axes.set_yticks(
        range(len(counts)), [*(f"{d}  {name}" for d, name in enumerate(LABELS)), *(["added"] if has_none else [])]
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(np.arange(len(counts) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, lw=0.8)
    axes.tick_params(which="minor", length=0)
    dress(axes, "", "Predicted digit")
    axes.set_ylabel("True digit", color=MUTED)
    axes.spines[:].set_visible(False)


def plot_model_comparison(results: Sequence[PipelineResult], path: Path) -> None:
    """Write accuracy with its 95 % interval, size, latency and training time of each pipeline as PNG.

    Raises MissingExtraError, TrainingError.
    """
    protocol = results[0].test.protocol if results else "nothing was trained"
    figure = new_figure(12.0, 1.7 + 0.55 * max(1, len(results)), f"Pipelines side by side: {protocol}")
    accuracy, *others = figure.subplots(1, 4, sharey=True)
    colours = [colour_of(result.pipeline, row) for row, result in enumerate(results)]
    for row, (result, colour) in enumerate(zip(results, colours, strict=True)):
        share = 100 * result.test.accuracy
        accuracy.plot([100 * bound for bound in result.test.interval], [row, row], color=colour, lw=2.5)
        accuracy.plot(share, row, "o", color=colour, ms=8)
        note(accuracy, f"{share:.2f}", (share, row), (0, 8), ha="center")
    dress(accuracy, "Accuracy, % (95 % interval)", grid="x")
    set_rows(accuracy, [PIPELINE_TITLES.get(result.pipeline, result.pipeline) for result in results])
    for axes, name, values, form in (
        (others[0], "Model size, kB", [r.model_bytes / 1e3 for r in results], "{:,.0f}"),
        (others[1], "Latency of one clip, ms", [r.latency_ms for r in results], "{:.2f}"),
        (others[2], "Training, seconds", [r.train_seconds for r in results], "{:,.0f}"),
    ):
        bars = axes.barh(range(len(values)), values, color=colours, height=0.5)
        axes.bar_label(bars, fmt=form, padding=4, fontsize=9)
        axes.set_xlim(0, 1.25 * max(values, default=1) or 1)
        dress(axes, name)
        axes.tick_params(left=False)
    save(figure, path)


# --- style ---------------------------------------------------------------------------------------


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """A white figure of `width` x `height` inches. Raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots", "train") from error
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white", layout="constrained")
    if title:
        head(figure, title)
    return figure


def head(figure: Figure, title: str) -> None:
    """Set the title over a whole figure."""
    # parse_math: a dollar sign in a name is no formula.
    figure.suptitle(drawable(title), x=0.012, ha="left", fontsize=12.5, fontweight="bold", color=INK, parse_math=False)


def dress(axes: Any, title: str, xlabel: str = "", grid: Any = "", legend: str = "") -> None:
    """Give axes their titles, quiet lines, a grid ("x", "y" or "both") and a legend at a place."""
    axes.set_title(drawable(title), loc="left", fontsize=10.5, color=INK, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b5b5b0")
    axes.tick_params(colors=MUTED, labelsize=9, labelcolor=INK)
    if xlabel:
        axes.set_xlabel(drawable(xlabel), color=MUTED, parse_math=False)
    if grid:
        axes.grid(axis=grid, color=GRID, lw=0.8)
        axes.set_axisbelow(True)
    if legend:
        for text in axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc=legend).get_texts():
            text.set_parse_math(False)


def set_rows(axes: Any, names: Sequence[str]) -> None:
    """Name the rows 0, 1, ... of axes, from top to bottom."""
    axes.set_yticks(range(len(names)), [drawable(name) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.7)


def note(axes: Any, text: str, at: tuple[float, float], offset: tuple[float, float], **options: Any) -> None:
    """Write a short text at a point of the data, `offset` points away from it."""
    axes.annotate(text, at, xytext=offset, textcoords="offset points", **{"fontsize": 9, "color": INK, **options})


def drawable(text: str) -> str:
    """A text that matplotlib draws: bytes of a file name that are not UTF-8 are escaped."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def colour_index(pipeline: str, position: int) -> int:
    """Index of a pipeline's colour: fixed for the pipelines of the package, by `position` for others."""
    if pipeline in PIPELINES:
        return PIPELINES.index(pipeline)
    return len(PIPELINES) + position % (len(COLOURS) - len(PIPELINES))


def colour_of(pipeline: str, position: int) -> str:
    return COLOURS[colour_index(pipeline, position)]


def tint(share: float) -> float:
    """Strength of the colour of a cell for a share (0 to 1): a square root, so that one in thirty shows.

    At most 0.6, where dark text on the colour still reads well.
    """
    return 0.12 + 0.48 * math.sqrt(share) if share > 0 else 0.0


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically. Raises TrainingError."""
    write_atomically(path, _render(figure, "png"))


def svg_uri(figure: Figure) -> str:
    """A figure as a data: address of an SVG image whose text stays text."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "digits"}):
        content = _render(figure, "svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode()


def _render(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A data set may be named in characters that matplotlib's font lacks: boxes will do.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()
