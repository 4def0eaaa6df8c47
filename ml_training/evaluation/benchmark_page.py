"""The benchmark as a table, as pictures and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from digit_detector.files import write_atomically
from digit_detector.labels import INT8, PIPELINES
from ml_training.evaluation.benchmark import YARDSTICK_MS, BenchmarkResult, Measured
from ml_training.utils.visualization import COLOURS, GRID, INK, MUTED, dress, head, new_figure, save

PAGE, JSON = "benchmark.md", "benchmark.json"
PICTURES = {"benchmark_accuracy.png": "Accuracy against time", "benchmark_growth.png": "From one clip to 100,000"}


def table(result: BenchmarkResult) -> list[str]:
    """Rows of Markdown, one for each contender."""
    protocols = list(result.clips)
    threads = [str(count) for count in result.plan.threads]
    heads = [
        *(f"{name}, %" for name in protocols), "ms a clip, p50", "p95", "p99", "scaled p50", "from a file, p50",
        *(f"clips a second, {count} thread{'s' * (count != '1')}" for count in threads),
        "start, ms", "memory, MB", "model, MB", "times ours",
    ]  # fmt: skip
    rows = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    by_name = {m.name: m for m in result.contenders}
    for m in result.contenders:
        cells = [f"{100 * m.accuracy[name].accuracy:.1f}" for name in protocols]
        cells += [_ms(m.one_ms[q]) for q in ("p50", "p95", "p99")]
        cells += [_ms(result.scaled(m.one_ms["p50"])), _ms(m.file_ms["p50"])]
        cells += [f"{max(m.many.get(count, {}).values(), default=float('nan')):,.0f}" for count in threads]
        cells += [f"{m.start_ms:,.0f}", f"{m.memory_mb:,.0f}", f"{m.model_mb:.2f}", times_ours(m, by_name)]
        rows.append(f"| {m.title} | {' | '.join(cells)} |")
    return rows


def times_ours(measured: Measured, by_name: Mapping[str, Measured]) -> str:
    """How many times as long a contender takes as our model with the same network; from files for raw_cnn."""
    ours = by_name.get(measured.against or "")
    if ours is None:
        return ""
    samples, files = (getattr(measured, f)["p50"] / getattr(ours, f)["p50"] for f in ("one_ms", "file_ms"))
    return f"{samples:.1f} ({files:.1f} from a file)"


def page(result: BenchmarkResult) -> str:
    """The whole of it as Markdown."""
    spread = f"{min(result.yardsticks_ms):.1f} to {max(result.yardsticks_ms):.1f}"
    lines = [
        "# Benchmark", "",
        "Everybody hears the same clips, in turn, in a process of its own; one thread where nothing else is said. "
        f"Medians and percentiles of {result.plan.rounds} rounds. A product of two 512 x 512 float32 matrices on one "
        f"thread took {result.yardstick_ms:.2f} ms in the median ({spread} in the rounds); scaled: as if it took "
        f"{YARDSTICK_MS:g}. Importing numpy and onnxruntime took {result.imports_ms:.0f} ms; start: from the start of "
        "a process to its first answer about a WAV file. Times ours: how many times as long as our model of the same "
        "network.", "",
        *table(result), "",
        *(f"- {name}: {clips}" for name, clips in result.clips.items()),
        *(f"- skipped: {name}, {why}" for name, why in result.skipped.items()), "",
    ]  # fmt: skip
    for name, title in PICTURES.items():
        lines += [f"![{title}]({name})", ""]
    made = f"version {result.version}; commit {result.git_commit[:12]}; {result.created[:16].replace('T', ' ')} UTC"
    lines += ["; ".join(f"{name} {value}" for name, value in result.machine.items()) + ".", "",
              f"Made with: `python ml_training/benchmark.py`; {made}. [Every figure](benchmark.json).", ""]  # fmt: skip
    return "\n".join(lines)


def write_benchmark(result: BenchmarkResult, folder: Path) -> Path:
    """JSON, pictures and the page into `folder`; returns the page. Raises MissingExtraError, TrainingError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / JSON, json.dumps(result.to_dict(), indent=1).encode())
    for plot, name in zip((plot_accuracy, plot_growth), PICTURES, strict=True):
        plot(result, folder / name)
    write_atomically(folder / PAGE, page(result).encode())
    return folder / PAGE


def plot_accuracy(result: BenchmarkResult, path: Path) -> None:
    """Accuracy against milliseconds for one clip, the area of a dot the size of the model."""
    protocols = list(result.clips)
    figure = new_figure(5.4 * len(protocols) + 2.0, 4.8)
    panels = figure.subplots(1, len(protocols), squeeze=False)[0]
    for axes, name in zip(panels, protocols, strict=True):
        for m in result.contenders:
            low, high = m.accuracy[name].interval
            x, y = m.one_ms["p50"], 100 * m.accuracy[name].accuracy
            colour = _colour(m)
            axes.plot([x, x], [100 * low, 100 * high], color=colour, lw=1, alpha=0.5)
            axes.scatter(x, y, s=30 + 12 * m.model_mb, color=colour, alpha=0.75, linewidths=0, marker=_marker(m))
            axes.plot([], [], _marker(m), color=colour, ms=6, label=m.name.replace("_", " "))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.1)
        axes.set_xlabel("Milliseconds for one clip, one thread", color=MUTED)
        axes.grid(color=GRID, lw=0.8)
        dress(axes, f"{name}, % right")
    panels[-1].legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    head(figure, PICTURES[path.name] + "; the larger, the more megabytes")
    figure.subplots_adjust(left=0.06, right=1 - 1.9 / (5.4 * len(protocols) + 2.0), top=0.84, bottom=0.12, wspace=0.14)
    save(figure, path)


def plot_growth(result: BenchmarkResult, path: Path) -> None:
    """Clips a second against how many are given at once, for each number of threads."""
    figure = new_figure(9.6, 4.8)
    axes = figure.subplots()
    styles = dict(zip(map(str, result.plan.threads), ("-", "--", ":", "-."), strict=False))
    for m in result.contenders:
        for count, speeds in m.many.items():
            label = m.name.replace("_", " ") if count == str(result.plan.threads[0]) else None
            axes.plot([int(n) for n in speeds], list(speeds.values()), styles.get(count, "-"), color=_colour(m),
                      marker=_marker(m), ms=4, lw=1.6, label=label)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("Clips given at once", color=MUTED)
    axes.grid(color=GRID, lw=0.8)
    dress(axes, "Clips a second")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    shown = ", ".join(f"{style} {count} thread{'s' * (count != '1')}" for count, style in styles.items())
    head(figure, f"{PICTURES[path.name]}: {shown}")
    figure.subplots_adjust(left=0.08, right=0.78, top=0.84, bottom=0.12)
    save(figure, path)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:,.0f}"


def _colour(measured: Measured) -> str:
    """A pipeline's own, and grey for the others."""
    name = next((name for name in PIPELINES if measured.name.startswith(name)), None)
    return MUTED if name is None else COLOURS[PIPELINES.index(name)]


def _marker(measured: Measured) -> str:
    """A shape for each kind of ours, and one for each of the others."""
    if measured.name in PIPELINES:
        return "o"
    if measured.name.endswith(INT8):
        return "d"
    return "s" if measured.against else {"svm": "^", "pocketsphinx": "v"}.get(measured.name, "P")
