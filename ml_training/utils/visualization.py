"""Plots of a training run as PNG files.

matplotlib is used through Figure objects only: pyplot keeps global state, picks a window system
and is neither fast nor safe in threads.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from digit_detector.errors import MissingExtraError
from digit_detector.files import write_atomically
from digit_detector.labels import LABELS, PIPELINE_TITLES, PIPELINES
from ml_training.results import EpochRecord, Evaluation, Ints, PipelineResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people with any colour vision, and at least 4.5 : 1 on white.
COLOURS = ("#0b62a8", "#b3460d", "#0d7566", "#7a3e9d", "#6b5b00")
INK, MUTED, GRID = "#1d1f24", "#63666d", "#e2e2de"
HIT, MISS = np.array([11, 98, 168]) / 255, np.array([200, 70, 20]) / 255


def colour_index(pipeline: str, position: int) -> int:
    """Which of the five colours a pipeline has: always the same for the ones that ship."""
    if pipeline in PIPELINES:
        return PIPELINES.index(pipeline)
    return len(PIPELINES) + position % (len(COLOURS) - len(PIPELINES))


def tint(share: float) -> float:
    """How strongly a share (0 to 1) colours its cell: a root above a base, so that one in thirty shows.

    Never above 0.6, where dark text on the colour still reads well.
    """
    return 0.12 + 0.48 * math.sqrt(share) if share > 0 else 0.0


def best_record(history: Sequence[EpochRecord]) -> EpochRecord:
    """The epoch with the lowest validation loss; epochs whose loss is no number never win."""
    return min(history, key=lambda r: r.validation_loss if math.isfinite(r.validation_loss) else math.inf)


def plot_training_history(history: Sequence[EpochRecord], path: Path, title: str) -> None:
    """Loss and accuracy of training and validation over the epochs, the best epoch marked.

    Cheap enough (0.1 s) to be redrawn after each epoch. Raises MissingExtraError, TrainingError.
    """
    figure = new_figure(9.6, 4.0)
    from matplotlib.ticker import MaxNLocator

    loss, accuracy = figure.subplots(1, 2)
    epochs = [record.epoch for record in history]
    panels: tuple[tuple[Axes, str, Callable[[EpochRecord], float], Callable[[EpochRecord], float]], ...] = (
        (loss, "Loss", lambda r: r.train_loss, lambda r: r.validation_loss),
        (accuracy, "Accuracy, %", lambda r: 100 * r.train_accuracy, lambda r: 100 * r.validation_accuracy),
    )
    marker = "." if len(history) < 3 else ""
    for axes, name, of_training, of_validation in panels:
        training, validation = [of_training(r) for r in history], [of_validation(r) for r in history]
        axes.plot(epochs, training, marker=marker, ls="--", color=MUTED, lw=1.3, label="training")
        axes.plot(epochs, validation, marker=marker, ls="-", color=COLOURS[0], lw=2, label="validation")
        if history:
            best = best_record(history)
            axes.axvline(best.epoch, color=MUTED, lw=0.8, ls=":")
            label = f"lowest validation loss, epoch {best.epoch}"
            axes.plot(best.epoch, of_validation(best), "o", color=COLOURS[1], ms=6, ls="", label=label)
        dress(axes, name)
        axes.set_xlabel("Epoch", color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(axis="y", color=GRID, lw=0.8)
    loss.legend(frameon=False, fontsize=9, labelcolor=INK)
    head(figure, title)
    figure.subplots_adjust(left=0.065, right=0.985, top=0.82, bottom=0.14, wspace=0.16)
    save(figure, path)


def plot_confusion_matrix(evaluation: Evaluation, path: Path, title: str) -> None:
    """Counts of digit said against digit heard. Raises MissingExtraError, TrainingError."""
    plot_confusion(evaluation.confusion, path, f"{title}\n{_score(evaluation)}")


def plot_confusion(counts: Ints, path: Path, title: str) -> None:
    """The same of (10, 10) counts, row the digit said, column the digit heard."""
    figure = new_figure(6.4, 6.6)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = np.ones((*counts.shape, 3))
    for said, heard in np.argwhere(counts):
        colour = HIT if said == heard else MISS
        strength = tint(float(shares[said, heard]))
        cells[said, heard] = strength * colour + (1 - strength)
        axes.text(heard, said, str(counts[said, heard]), ha="center", va="center", color=INK, fontsize=11)
    axes.imshow(cells, interpolation="nearest")
    names = [f"{digit}  {name}" for digit, name in enumerate(LABELS)]
    axes.set_xticks(range(len(LABELS)), [str(digit) for digit in range(len(LABELS))])
    axes.set_yticks(range(len(LABELS)), names)
    axes.set_xticks(np.arange(len(LABELS) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(LABELS) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, lw=0.8)
    axes.tick_params(which="minor", length=0)
    dress(axes, "")
    axes.spines[:].set_visible(False)
    axes.set_xlabel("Heard", color=MUTED)
    axes.set_ylabel("Said", color=MUTED)
    head(figure, title)
    figure.subplots_adjust(left=0.16, right=0.97, top=0.88, bottom=0.09)
    save(figure, path)


def plot_model_comparison(results: Sequence[PipelineResult], path: Path) -> None:
    """Accuracy with its 95 % interval, size, latency and training time, one row for each pipeline.

    Raises MissingExtraError, TrainingError.
    """
    figure = new_figure(12.0, 1.7 + 0.55 * max(1, len(results)))
    accuracy, *others = figure.subplots(1, 4, sharey=True)
    rows = np.arange(len(results))
    colours = [COLOURS[colour_index(r.pipeline, i)] for i, r in enumerate(results)]
    for row, (result, colour) in enumerate(zip(results, colours, strict=True)):
        low, high = result.test.interval
        accuracy.plot([100 * low, 100 * high], [row, row], color=colour, lw=2.5, solid_capstyle="round")
        accuracy.plot(100 * result.test.accuracy, row, "o", color=colour, ms=8)
        accuracy.annotate(
            f"{100 * result.test.accuracy:.2f}", (100 * result.test.accuracy, row), xytext=(0, 8),
            textcoords="offset points", ha="center", fontsize=9, color=INK,
        )  # fmt: skip
    dress(accuracy, "Accuracy, % (95 % interval)")
    accuracy.grid(axis="x", color=GRID, lw=0.8)
    accuracy.set_yticks(rows, [PIPELINE_TITLES.get(r.pipeline, r.pipeline) for r in results])
    accuracy.set_ylim(len(results) - 0.5, -0.6)
    panels: tuple[tuple[Axes, str, list[float], str], ...] = (
        (others[0], "Model size, kB", [r.model_bytes / 1e3 for r in results], "{:,.0f}"),
        (others[1], "Latency of one clip, ms", [r.latency_ms for r in results], "{:.2f}"),
        (others[2], "Training, seconds", [r.train_seconds for r in results], "{:,.0f}"),
    )
    for axes, name, values, form in panels:
        axes.barh(rows, values, color=colours, height=0.5)
        for row, value in enumerate(values):
            axes.annotate(
                form.format(value), (value, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9
            )
        axes.set_xlim(0, 1.25 * max(values, default=1) or 1)
        dress(axes, name)
        axes.tick_params(left=False)
    protocol = results[0].test.protocol if results else "nothing was trained"
    head(figure, f"Pipelines side by side: {protocol}")
    figure.subplots_adjust(left=0.155, right=0.985, top=1 - 0.95 / figure.get_figheight(),
                           bottom=0.4 / figure.get_figheight(), wspace=0.12)  # fmt: skip
    save(figure, path)


def _score(evaluation: Evaluation) -> str:
    if not evaluation.clips:
        return "no clips"
    return f"{evaluation.errors} of {evaluation.clips} wrong, accuracy {100 * evaluation.accuracy:.2f} %"


def new_figure(width: float, height: float) -> Figure:
    """A white figure, inches. Raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots", "train") from error
    return Figure(figsize=(width, height), dpi=110, facecolor="white")


def dress(axes: Any, title: str) -> None:
    """Give axes their title and quiet lines."""
    axes.set_title(drawable(title), loc="left", fontsize=10.5, color=INK, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b5b5b0")
    axes.tick_params(colors=MUTED, labelsize=9, labelcolor=INK)


def drawable(text: str) -> str:
    """A text that matplotlib draws: bytes of a file's name that are no UTF-8 are escaped, where it would fail."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def head(figure: Figure, title: str) -> None:
    """The title over a whole figure."""
    # parse_math: a dollar sign in a name is no formula.
    figure.suptitle(drawable(title), x=0.012, y=1 - 0.1 / figure.get_figheight(), ha="left", va="top", fontsize=12.5,
                    fontweight="bold", color=INK, parse_math=False)  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically. Raises TrainingError."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A data set may be named in signs that matplotlib's font lacks: boxes will do, a warning helps nobody.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png")  # a Figure without pyplot draws with Agg
    write_atomically(path, buffer.getvalue())
