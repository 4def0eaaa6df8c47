"""Plots of the strings protocol: error rates with intervals, groups as bars, confusion matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from digit_detector.evaluation.perturbations import CLEAN
from digit_detector.evaluation.scoring import Score
from digit_detector.evaluation.strings import RATES, StringResult
from ml_training.report.string_tables import condition_name
from ml_training.results import ProtocolResult
from ml_training.utils import visualization as style
from ml_training.utils.visualization import COLOURS, dress, new_figure, save

MAX_SPEAKERS = 40  # bars, those with the highest error rates


def plot_strings(result: ProtocolResult, title: str, new_path: Callable[[str], Path]) -> None:
    """Write the plots of a result; `new_path` makes the path of one from its name."""
    clean = [each for each in result.strings if each.condition == CLEAN.name]
    if result.strings:
        plot_error_rates(result.strings, title, new_path("error rates"))
    if clean:
        plot_groups(clean, title, new_path("rate and length"))
    for each in clean:
        if len(each.by_speaker()) > 1:
            plot_speakers(each, title, new_path(f"{each.name} speakers"))
        plot_confusion(each, new_path(f"{each.name} confusion"))


def plot_error_rates(results: Sequence[StringResult], title: str, path: Path) -> None:
    """Digit error rate, and strings with an error, of each set and condition, with 95 % intervals."""
    figure = new_figure(9.6, 1.7 + 0.42 * len(results), title)
    panels = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(result.name for result in results))
    for row, result in enumerate(results):
        colour, total = COLOURS[names.index(result.name) % len(COLOURS)], result.total
        low, high = result.whole_interval
        for axes, share, (least, most) in (
            (panels[0], total.digit_error_rate, total.interval),
            (panels[1], 1 - total.whole / max(1, total.strings), (1 - high, 1 - low)),
        ):
            axes.plot([100 * least, 100 * most], [row, row], color=colour, lw=5, alpha=0.3, solid_capstyle="butt")
            axes.plot(100 * share, row, "o", color=colour, ms=7)
            style.note(axes, f"{100 * share:.1f}", (100 * share, row), (0, 6), ha="center", fontsize=8.5)
    for axes, name in zip(panels, ("Digit error rate, %", "Strings with an error, %"), strict=True):
        axes.set_xlim(left=0, right=max(axes.get_xlim()[1], 5.0))
        dress(axes, name, "lines: 95 % interval", grid="x")
    style.set_rows(panels[0], [condition_name(result) for result in results])
    save(figure, path)


def plot_groups(results: Sequence[StringResult], title: str, path: Path) -> None:
    """Digit error rate by speaking rate and by length, a bar for each set."""
    figure = new_figure(9.6, 3.9, title)
    panels = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    rates = [name for _, _, name in RATES]
    lengths = sorted({len(clip.reference) for result in results for clip in result.clips})
    _plot_bars(panels[0], results, [result.by_rate() for result in results], rates)
    _plot_bars(panels[1], results, [result.by_length() for result in results], [*map(str, lengths)])
    dress(panels[0], "Digit error rate, % (lines: 95 % interval)", "digits a second of speech", grid="y")
    dress(panels[1], "", "digits in the string", grid="y", legend="best" if len(results) > 1 else "")
    save(figure, path)


def _plot_bars(
    axes: Any, results: Sequence[StringResult], groups: Sequence[Mapping[str, Score]], names: Sequence[str]
) -> None:
    width = 0.8 / len(results)
    for turn, (result, own) in enumerate(zip(results, groups, strict=True)):
        counts = [(place + (turn + 0.5) * width - 0.4, own[name]) for place, name in enumerate(names) if name in own]
        colour = COLOURS[turn % len(COLOURS)]
        axes.bar([place for place, _ in counts], [100 * c.digit_error_rate for _, c in counts], 0.9 * width,
                 color=colour, label=style.drawable(result.name))  # fmt: skip
        bounds = [[100 * bound for bound in c.interval] for _, c in counts]
        axes.vlines([place for place, _ in counts], [b[0] for b in bounds], [b[1] for b in bounds],
                    color=style.INK, lw=1.2)  # fmt: skip
    digits = [sum(own[name].reference for own in groups if name in own) for name in names]
    axes.set_xticks(range(len(names)), [f"{n}\n{d} digits" if d else n for n, d in zip(names, digits, strict=True)])
    axes.set_xlim(-0.6, len(names) - 0.4)
    if len(names) > 8:
        axes.tick_params(axis="x", labelsize=7)


def plot_confusion(result: StringResult, path: Path) -> None:
    """Digits spoken against digits detected; accuracy of the detections against their confidence."""
    total = result.total
    figure = new_figure(10.8, 5.9, f"{result.name}: {total.errors} errors in {total.reference} digits")
    left, right = figure.subplots(1, 2, width_ratios=(5, 3))
    style.draw_confusion(left, result.confusion())
    left.set_xlabel("Digit detected", color=style.MUTED)
    left.set_ylabel("Digit spoken", color=style.MUTED)
    right.plot([0, 100], [0, 100], color=style.MUTED, lw=1, ls=":")
    if any(clip.confidences for clip in result.clips):
        error, bins = result.calibration()
        detections = sum(b.count for b in bins)
        confidence, accuracy = [100 * b.confidence for b in bins], [100 * b.accuracy for b in bins]
        right.plot(confidence, accuracy, color=COLOURS[0], lw=1.5)
        sizes = [12 + 200 * b.count / detections for b in bins]
        right.scatter(confidence, accuracy, s=sizes, color=COLOURS[0], label=f"calibration error {100 * error:.1f} %")
    right.set(xlim=(0, 102), ylim=(0, 104), box_aspect=1)
    dress(right, f"Detections right, % (of {sum(map(len, (c.confidences for c in result.clips)))})", "Confidence, %",
          grid="both", legend="lower right" if right.collections else "")  # fmt: skip
    save(figure, path)


def plot_speakers(result: StringResult, title: str, path: Path) -> None:
    """Digit error rate of each speaker, the highest first."""
    groups = sorted(result.by_speaker().items(), key=lambda item: -item[1].digit_error_rate)
    shown = groups[:MAX_SPEAKERS]
    note = f", the {len(shown)} of {len(groups)} with the highest" if len(shown) < len(groups) else ""
    figure = new_figure(max(6.4, 1.6 + 0.24 * len(shown)), 3.6, title)
    axes = figure.subplots()
    rates = [100 * counts.digit_error_rate for _, counts in shown]
    axes.bar(range(len(shown)), rates, color=COLOURS[0], width=0.7)
    mean = 100 * result.total.digit_error_rate
    low, high = (100 * bound for bound in result.total.interval)
    axes.axhline(mean, color=COLOURS[1], lw=1.3, ls="--")
    axes.axhspan(low, high, color=COLOURS[1], alpha=0.12, lw=0)
    style.note(axes, f"all: {mean:.1f} %", (len(shown) - 0.5, high), (0, 3), ha="right", color=COLOURS[1])
    names = [style.drawable(name if len(name) <= 10 else f"{name[:9]}…") for name, _ in shown]
    axes.set_xticks(range(len(shown)), names, rotation=60, ha="right", parse_math=False)
    dress(axes, f"{result.name}: digit error rate of each speaker, %{note}", grid="y")
    axes.tick_params(axis="x", labelsize=7.5)
    save(figure, path)
