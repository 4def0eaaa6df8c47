"""HTML report of a training: one file that loads nothing. templates/training.html says how it looks."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import statistics
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio import SAMPLE_RATE
from digit_detector.errors import MissingExtraError
from digit_detector.files import write_atomically
from digit_detector.labels import LABELS
from digit_detector.model_file import git_commit
from ml_training import __version__
from ml_training.config import flatten_settings, to_dict
from ml_training.report.table import Cell, Table, percent, plural
from ml_training.report.tables import by_digit, by_speaker, pipeline_title
from ml_training.results import Count, DataSummary, ModelScore, PipelineResult
from ml_training.utils.visualization import colour_index, draw_training_history, svg_uri, tint

MAX_PLAYERS = 60  # a pipeline; more would make the file too heavy to pass on
PACKAGES = ("torch", "numpy", "onnxruntime", "onnx", "soundfile", "soxr", "matplotlib", "jinja2")


def write_report(
    results: Sequence[PipelineResult], data: DataSummary, path: Path, *, failures: Mapping[str, str] | None = None
) -> None:
    """Write the report of a run; `failures` maps the pipelines that failed to their messages.

    Raises MissingExtraError without jinja2 or matplotlib, TrainingError where the file cannot be written.
    """
    missed_by: dict[str, list[str]] = {}
    for result in results:
        for i in result.test.mistakes():
            missed_by.setdefault(result.test.files[i], []).append(pipeline_title(result.pipeline))
    least = min(map(_error_share, results), default=math.inf)
    winners = [r for r in results if _error_share(r) == least < math.inf]
    low = max(0, min(95, 5 * math.floor(20 * min((r.test.interval[0] for r in results), default=0.0))))
    scores = [_score(result) for result in results]
    names = [pipeline_title(result.pipeline) for result in results]
    tables = (by_digit(scores), by_speaker(scores, limit=None)) if results else ()
    headline = f"{plural(len(results), 'digit recogniser')} trained on {data.name}"
    write_page(
        path, "training.html", headline=headline if results else f"Nothing finished training on {data.name}",
        data=data, views=[_view(result, i, low) for i, result in enumerate(results)], missed_by=missed_by,
        winners=[pipeline_title(r.pipeline) for r in winners], winner=winners[0] if winners else None,
        summary=_summary(results, names), breakdowns=tables, axis_low=low, labels=LABELS,
        failures={pipeline_title(name): message for name, message in (failures or {}).items()},
        total_seconds=sum(r.train_seconds for r in results), duration=duration, size=size,
    )  # fmt: skip


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill in a template and write it, atomically. Raises MissingExtraError without jinja2, TrainingError."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("the report", "train") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=_keep_units, loader=jinja2.PackageLoader("ml_training.report"),
    )  # fmt: skip
    now = datetime.now().astimezone()
    page = environment.get_template(template).render(
        **values, written=f"{now.day} {now:%B %Y, %H:%M} (UTC{now:%z})", versions=gather_versions(),
        percent=percent, plural=plural,
    )  # fmt: skip
    # A file name that is not UTF-8 arrives as lone surrogates, which no encoding takes.
    write_atomically(path, page.encode("utf-8", errors="backslashreplace"))


def _keep_units(value: Any) -> Any:
    """Text whose numbers stay in one line with their per cent sign."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", value)
    return value


def gather_versions() -> dict[str, str]:
    """Versions of the package, the commit, Python, libraries and the machine. Imports none of them."""
    versions = {"streaming-digit-detector": __version__, "git commit": git_commit()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    processor = f"{platform.machine()}, {os.cpu_count()} logical cores"
    return {**versions, "Python": platform.python_version(), "platform": platform.platform(), "processor": processor}


def duration(seconds: float) -> str:
    """Seconds as '4.2 s', '71 s', '3 min 35 s' or '1 h 04 min'."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes as kB or MB (powers of ten)."""
    if not math.isfinite(count):
        return "-"
    return f"{count / 1e3:.0f} kB" if count < 1e6 else f"{count / 1e6:.{2 if count < 1e8 else 0}f} MB"


# --- tables --------------------------------------------------------------------------------------


def _error_share(result: PipelineResult) -> float:
    return result.test.errors / result.test.clips if result.test.clips else math.inf


def _score(result: PipelineResult) -> ModelScore:
    test = result.test
    by_name = {name: Count(*counts) for name, counts in test.accuracy_by_speaker().items()}
    by_label = {str(digit): Count(*counts) for digit, counts in test.accuracy_by_digit().items()}
    return ModelScore(
        pipeline_title(result.pipeline), "", Count(test.clips - test.errors, test.clips), by_name, by_label
    )


def _summary(results: Sequence[PipelineResult], names: Sequence[str]) -> Table:
    def row(
        name: str, show: Callable[[PipelineResult], str], rank: Callable[[PipelineResult], float] | None = None
    ) -> tuple[str, ...]:
        ranks = [value if math.isfinite(value) else math.inf for value in map(rank, results)] if rank else []
        best = min(ranks) if len(set(ranks)) > 1 else None
        return (name, *(Cell(show(r), best=best is not None and ranks[i] == best) for i, r in enumerate(results)))

    rows = (
        row("Errors on the test part", lambda r: f"{r.test.errors} of {r.test.clips}", _error_share),
        row("Accuracy", lambda r: percent(r.test.accuracy, 2), _error_share),
        row("95 % interval", lambda r: " to ".join(f"{100 * x:.1f}" for x in r.test.interval) + " %"),
        row("Parameters", lambda r: f"{r.parameters:,}", lambda r: r.parameters),
        row("Model file", lambda r: size(r.model_bytes), lambda r: r.model_bytes),
        row("Latency of one clip", lambda r: f"{r.latency_ms:.2f} ms", lambda r: r.latency_ms),
        row("Training time", lambda r: duration(r.train_seconds), lambda r: r.train_seconds),
        # Of the whole process so far: the first pipeline has the least, so it is not ranked.
        row("Peak memory of the run so far", lambda r: size(1e6 * r.peak_memory_mb)),
        row("Best epoch", lambda r: f"{r.best_epoch} of {len(r.history)}"),
        row("Stopped because", lambda r: r.stopped),
    )
    best = ", the best of each line in bold" if len(results) > 1 else ""
    return Table(f"Summary{best}. Latency is the median for one clip on one thread.", ("", *names), rows)


# --- one pipeline --------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """What the page shows of one pipeline."""

    result: PipelineResult
    title: str
    colour: int
    strip: tuple[float, float, float]  # accuracy and its interval, places in percent of the axis
    curves: str  # address of an SVG image
    shades: list[list[float]]  # of the confusion matrix
    confused: list[str]
    mistakes: list[tuple[int, str, str]]  # index in the test part, outline, WAV file in base64
    settings: dict[str, str]
    epoch_seconds: float  # median


def _view(result: PipelineResult, position: int, axis_low: int) -> View:
    test = result.test
    dot, low, high = ((100 * x - axis_low) / (100 - axis_low) * 100 for x in (test.accuracy, *test.interval))
    shares = test.confusion / np.maximum(test.confusion.sum(axis=1, keepdims=True), 1)
    pairs = sorted((-int(n), t, p) for (t, p), n in np.ndenumerate(test.confusion) if t != p and n)
    clips = zip(test.mistakes()[:MAX_PLAYERS], result.mistake_waveforms, strict=False)
    return View(
        result=result, title=pipeline_title(result.pipeline), colour=colour_index(result.pipeline, position),
        strip=(dot if math.isfinite(dot) else 0.0, low, high),
        curves=svg_uri(draw_training_history(result.history)),
        shades=[[tint(float(share)) for share in row] for row in shares],
        confused=[f"{LABELS[t]} as {LABELS[p]}, {-n}×" for n, t, p in pairs[:3]],
        mistakes=[(i, outline(samples), base64.b64encode(to_wav(samples)).decode()) for i, samples in clips],
        settings={n: v if isinstance(v, str) else json.dumps(v) for n, v in flatten_settings(to_dict(result.config))},
        epoch_seconds=statistics.median([r.seconds for r in result.history] or [math.nan]),
    )  # fmt: skip


def to_wav(samples: NDArray[np.float32]) -> bytes:
    """A clip (T,) as a 16-bit WAV file, its loudest sample at 90 % of full scale."""
    peak = float(np.abs(samples).max(initial=0.0))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(np.round(samples * (0.9 * 32767 / peak if peak else 0.0)).astype("<i2").tobytes())
    return buffer.getvalue()


def outline(samples: NDArray[np.float32], bars: int = 80) -> str:
    """A clip (T,) as an SVG path of upright strokes, `bars` wide and 32 high."""
    peaks = np.array([np.abs(part).max(initial=0.0) for part in np.array_split(samples, bars)])
    heights = np.maximum(0.5, 15 * peaks / (peaks.max() or 1.0))
    return "".join(f"M{x}.5 {16 - h:.1f}v{2 * h:.1f}" for x, h in enumerate(heights))
