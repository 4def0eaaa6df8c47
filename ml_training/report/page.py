"""The training report: one HTML file that loads nothing, for a person to read and to pass on.

This module turns results into what the page shows; how it looks is in report_template.html.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from digit_detector.errors import MissingExtraError
from digit_detector.files import write_atomically
from digit_detector.labels import LABELS, PIPELINE_TITLES
from ml_training import __version__
from ml_training.config import to_dict
from ml_training.report.parts import Chart, draw_curves, listenable_wav, outline
from ml_training.results import DataSummary, Evaluation, PipelineResult
from ml_training.utils.visualization import colour_index, tint

MAX_PLAYERS = 60  # a pipeline; more would make the file too heavy to pass on
MAX_ROWS = 12  # speakers shown before the rest is folded away
PACKAGES = ("torch", "numpy", "onnxruntime", "onnx", "soundfile", "soxr", "matplotlib", "jinja2")
NBSP = "\N{NO-BREAK SPACE}"  # between a number and its unit
COUNT_WORDS = {1: "One", 2: "Two", 3: "Three", 4: "Four", 5: "Five"}


def write_report(
    results: Sequence[PipelineResult], data: DataSummary, path: Path, *, failures: Mapping[str, str] | None = None
) -> None:
    """Write the report of a run; `failures` maps the pipelines that failed to their messages.

    Raises MissingExtraError without jinja2, TrainingError where the file cannot be written.
    """
    page = render_report(results, data, failures or {}, gather_versions(), datetime.now().astimezone())
    # A file name that is no UTF-8 reaches us as lone surrogates, which no encoding takes.
    write_atomically(path, page.encode("utf-8", errors="backslashreplace"))


def render_report(
    results: Sequence[PipelineResult],
    data: DataSummary,
    failures: Mapping[str, str],
    versions: Mapping[str, str],
    written: datetime,
) -> str:
    """The page as text. Raises MissingExtraError without jinja2."""
    missed_by: dict[str, list[str]] = {}
    for result in results:
        for i in result.test.mistakes():
            missed_by.setdefault(result.test.files[i], []).append(title_of(result.pipeline))
    axis_low = _axis_low(results)
    return render_page(
        "report_template.html",
        headline=_headline(results, data),
        data=data,
        parts=[Share(n, sum(data.parts.values()), name) for name, n in data.parts.items()],
        views=[_view(result, i, axis_low, missed_by) for i, result in enumerate(results)],
        winners=[title_of(r.pipeline) for r in _winners(results)],
        winner=next(iter(_winners(results)), None),
        rows=_summary_rows(results),
        axis_low=axis_low,
        digits=_by_digit(results),
        speakers=_by_speaker(results),
        max_rows=MAX_ROWS,
        labels=LABELS,
        failures={title_of(name): message for name, message in failures.items()},
        versions=versions,
        written=date_of(written),
        total_seconds=sum(r.train_seconds for r in results),
        percent=percent,
        percent_short=lambda share: f"{100 * share:.0f}{NBSP}%",
        duration=duration,
        size=size,
        plural=plural,
    )


def render_page(template: str, **values: Any) -> str:
    """A template of this folder, filled in. Raises MissingExtraError without jinja2."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("the report", "train") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.FunctionLoader(
            lambda name: (resources.files("ml_training.report") / "templates" / name).read_text(encoding="utf-8")
        ),
    )  # fmt: skip
    return environment.get_template(template).render(**values)


def date_of(written: datetime) -> str:
    """A moment as a person reads it."""
    return f"{written.day} {written:%B %Y, %H:%M} (UTC{written:%z})"  # %-d is no format on Windows


def gather_versions() -> dict[str, str]:
    """What this run stood on: package, commit, Python, libraries, machine. Imports none of them."""
    found = {"streaming-digit-detector": __version__, "git commit": _git_commit(), "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    found["platform"] = platform.platform()
    found["processor"] = f"{platform.machine()}, {os.cpu_count()} logical cores"
    return found


def _git_commit() -> str:
    """The commit of the checkout this file belongs to, if it belongs to one."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        # Fails where the package lies in an environment inside somebody else's checkout.
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "none (not run from a checkout)"


# --- words and numbers ---------------------------------------------------------------------------


def title_of(pipeline: str) -> str:
    """The name a person reads."""
    return PIPELINE_TITLES.get(pipeline, pipeline)


def percent(share: float) -> str:
    """0.98667 as '98.67 %', never broken at the space."""
    return f"{100 * share:.2f}{NBSP}%" if math.isfinite(share) else "-"


def duration(seconds: float) -> str:
    """Seconds as '4.2 s', '71 s', '3 min 35 s' or '1 h 04 min'."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 100:
        return f"{seconds:.1f}{NBSP}s" if seconds < 10 else f"{seconds:.0f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest:02d}{NBSP}s"
    return f"{minutes // 60}{NBSP}h {minutes % 60:02d}{NBSP}min"


def size(count: float) -> str:
    """Bytes as kB or MB (powers of ten)."""
    if not math.isfinite(count):
        return "-"
    if count < 1e6:
        return f"{count / 1e3:.0f}{NBSP}kB"
    return f"{count / 1e6:.2f}{NBSP}MB" if count < 1e8 else f"{count / 1e6:,.0f}{NBSP}MB"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _headline(results: Sequence[PipelineResult], data: DataSummary) -> str:
    if not results:
        return f"Nothing finished training on {data.name}"
    noun = "recogniser" if len(results) == 1 else "recognisers"
    return f"{COUNT_WORDS.get(len(results), str(len(results)))} digit {noun} trained on {data.name}"


def _error_share(result: PipelineResult) -> float:
    return result.test.errors / result.test.clips if result.test.clips else math.inf


def _winners(results: Sequence[PipelineResult]) -> list[PipelineResult]:
    least = min(map(_error_share, results), default=math.inf)
    return [r for r in results if _error_share(r) == least and math.isfinite(least)]


@dataclass(frozen=True)
class Row:
    """One line of the summary: a value for each pipeline, and which of them are the best."""

    name: str
    values: tuple[str, ...]
    best: frozenset[int]


def _summary_rows(results: Sequence[PipelineResult]) -> list[Row]:
    def row(name: str, show: Callable[[PipelineResult], str], rank: Callable[[PipelineResult], float] | None) -> Row:
        ranks = [value if math.isfinite(value) else math.inf for value in map(rank, results)] if rank else []
        best = {i for i, value in enumerate(ranks) if value == min(ranks)} if len(set(ranks)) > 1 else set()
        return Row(name, tuple(map(show, results)), frozenset(best))

    return [
        row("Errors on the test part", lambda r: f"{r.test.errors} of {r.test.clips}", _error_share),
        row("Accuracy", lambda r: percent(r.test.accuracy), _error_share),
        row("95 % interval", lambda r: " to ".join(f"{100 * x:.1f}" for x in r.test.interval) + f"{NBSP}%", None),
        row("Parameters", lambda r: f"{r.parameters:,}", lambda r: r.parameters),
        row("Model file", lambda r: size(r.model_bytes), lambda r: r.model_bytes),
        row("Latency of one clip", lambda r: f"{r.latency_ms:.2f} ms", lambda r: r.latency_ms),
        row("Training time", lambda r: duration(r.train_seconds), lambda r: r.train_seconds),
        # Of the process until then, so whoever comes first has least: no rank.
        row("Peak memory of the run so far", lambda r: size(1e6 * r.peak_memory_mb), None),
        row("Best epoch", lambda r: f"{r.best_epoch} of {len(r.history)}", None),
        row("Stopped because", lambda r: r.stopped, None),
    ]


def _axis_low(results: Sequence[PipelineResult]) -> int:
    """Where the accuracy axis starts, in percent: the next multiple of five below every interval."""
    low = min((r.test.interval[0] for r in results), default=0.0)
    return max(0, min(95, 5 * math.floor(20 * low)))


@dataclass(frozen=True)
class Share:
    """`right` of `clips`."""

    right: int
    clips: int
    name: str = ""

    @property
    def share(self) -> float:
        return self.right / self.clips if self.clips else math.nan

    @property
    def percent(self) -> str:
        return f"{100 * self.share:.1f}{NBSP}%".replace(".0", "")

    @property
    def miss_tint(self) -> float:
        return tint(1 - self.share) if self.clips else 0.0


@dataclass(frozen=True)
class Breakdown:
    """One digit's or speaker's line: a share for each pipeline, None where it had no such clip."""

    name: str
    shares: tuple[Share | None, ...]

    @property
    def errors(self) -> int:
        return sum(s.clips - s.right for s in self.shares if s)


def _by_digit(results: Sequence[PipelineResult]) -> list[Breakdown]:
    tables = [{d: Share(*s) for d, s in r.test.accuracy_by_digit().items()} for r in results]
    rows = [Breakdown(f"{d} {name}", tuple(table.get(d) for table in tables)) for d, name in enumerate(LABELS)]
    return [row for row in rows if any(row.shares)]


def _by_speaker(results: Sequence[PipelineResult]) -> list[Breakdown]:
    """By name; the most misheard first where there are so many that some are folded away."""
    tables = [{name: Share(*s) for name, s in r.test.accuracy_by_speaker().items()} for r in results]
    names = sorted({name for table in tables for name in table})
    rows = [Breakdown(name, tuple(table.get(name) for table in tables)) for name in names]
    return rows if len(rows) <= MAX_ROWS else sorted(rows, key=lambda row: -row.errors)


# --- one pipeline --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One count of a confusion matrix; alpha is how strongly it is coloured."""

    count: int
    right: bool
    alpha: float


@dataclass(frozen=True)
class Mistake:
    """A clip that was misheard, with its picture and its sound."""

    file: str
    speaker: str
    said: int
    heard: int
    confidence: float
    said_probability: float
    others: tuple[str, ...]  # the other pipelines that missed it too
    outline: str
    wav: str  # base64


@dataclass(frozen=True)
class View:
    """What the page shows of one pipeline."""

    result: PipelineResult
    title: str
    colour: int
    dot: float  # places on the accuracy axis, percent of its length
    low: float
    high: float
    charts: tuple[Chart, ...]
    confusion: list[list[Cell]]
    confused: list[str]
    mistakes: list[Mistake]
    settings: dict[str, str]

    @property
    def epoch_seconds(self) -> float:
        """The median epoch."""
        return statistics.median([r.seconds for r in self.result.history] or [math.nan])


def _view(result: PipelineResult, position: int, axis_low: int, missed_by: Mapping[str, list[str]]) -> View:
    test, title = result.test, title_of(result.pipeline)
    low, high = test.interval
    dot, low, high = ((100 * x - axis_low) / (100 - axis_low) * 100 for x in (test.accuracy, low, high))
    return View(
        result=result,
        title=title,
        colour=colour_index(result.pipeline, position),
        dot=dot if math.isfinite(dot) else 0.0,
        low=low,
        high=high,
        charts=draw_curves(result.history, result.best_epoch),
        confusion=_cells(test),
        confused=_confused(test),
        mistakes=_mistakes(result, title, missed_by),
        settings=_flat(to_dict(result.config)),
    )


def _cells(test: Evaluation) -> list[list[Cell]]:
    totals = np.maximum(test.confusion.sum(axis=1), 1)
    return [
        [Cell(int(n), said == heard, tint(n / totals[said])) for heard, n in enumerate(row)]
        for said, row in enumerate(test.confusion)
    ]


def _confused(test: Evaluation) -> list[str]:
    """The most frequent confusions, in words."""
    pairs = [(int(n), s, h) for (s, h), n in np.ndenumerate(test.confusion) if s != h and n]
    return [f"{LABELS[s]} heard as {LABELS[h]}, {n}\u00d7" for n, s, h in sorted(pairs, key=lambda p: -p[0])[:3]]


def _mistakes(result: PipelineResult, title: str, missed_by: Mapping[str, list[str]]) -> list[Mistake]:
    test = result.test
    return [
        Mistake(
            file=test.files[i],
            speaker=test.speakers[i],
            said=int(test.labels[i]),
            heard=int(test.predicted[i]),
            confidence=float(test.probabilities[i].max()),
            said_probability=float(test.probabilities[i, test.labels[i]]),
            others=tuple(name for name in missed_by[test.files[i]] if name != title),
            outline=outline(samples),
            wav=base64.b64encode(listenable_wav(samples)).decode(),
        )
        for i, samples in zip(test.mistakes()[:MAX_PLAYERS], result.mistake_waveforms, strict=False)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as one level, values as JSON writes them."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
