"""Results on disk: JSON files, the Markdown page made of them, the log of scorings of evaluation-only recordings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from digit_detector.errors import DataError
from digit_detector.files import write_atomically, write_json
from digit_detector.labels import FP32, PIPELINES
from ml_training.evaluation.protocols import PROTOCOLS
from ml_training.report.evaluation_plots import slug
from ml_training.report.tables import provenance, short, tables_of, title_of
from ml_training.results import EARLIER_NAMES, ProtocolResult

Report = Callable[[str], None]

PLOTS = "plots"  # folder of plots beside the JSON files
SCORING_LOG = "strangers_scored.md"  # beside results.md
_LONGEST_NAME = 150  # bytes; file systems take 255, plots and temporary files need some
_LOG_TITLE = "Every time evaluation-only recordings were scored"
_LOG_NOTE = "No decision is taken on these figures: per cent right, one figure a model, in the order of the seeds."
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


def file_name(result: ProtocolResult) -> str:
    """The name of a result's JSON file without suffix: equal for the same protocol, data and models."""
    details = result.details or {}
    parts = [result.protocol, result.data, str(details.get("noise_folder", "")), *details.get("left_out", ())]
    parts += [str(details.get("context", "")), Path(details.get("live_model") or "").stem]  # of the live detector
    pipelines = {s.pipeline for s in result.scores}
    if pipelines != set(PIPELINES):
        parts.append("_".join(sorted(pipelines)))
    parts += sorted({model.precision for model in result.models} - {FP32})
    name = "_".join(slug(part) for part in parts if part)
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return f"{name.encode()[:_LONGEST_NAME].decode(errors='ignore')}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def save_result(result: ProtocolResult, folder: Path, report: Report = lambda line: None) -> Path:
    """Write a result as JSON into a folder; reports when it replaces a result of other data or settings.

    Raises TrainingError where it cannot be written.
    """
    path = folder / f"{file_name(result)}.json"
    values = result.to_dict()
    try:
        before = _settings(json.loads(path.read_text(encoding="utf-8")))
        changed = [name for name, setting in _settings(values).items() if before[name] != setting]
    except _UNREADABLE:
        changed = []
    if changed:
        report(f"{path}: replaces a result of other {' and '.join(changed)}; another --output or --log_dir keeps both")
    write_json(path, values)
    for earlier, name in EARLIER_NAMES.items():
        if result.protocol == name:
            path.with_name(path.name.replace(name, earlier, 1)).unlink(missing_ok=True)
    return path


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    details = values["details"] or {}
    return {
        "recordings": values["data_hash"], "noise seed": details.get("noise_seed"),
        "settings": details.get("trainings"), "clips without a digit": details.get("others"),
    }  # fmt: skip


def load_result(path: Path) -> ProtocolResult:
    """The result in a JSON file. Raises DataError for other files."""
    try:
        return ProtocolResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except _UNREADABLE as error:
        raise DataError(
            f"{path} is no result of evaluate.py or train.py --cv ({type(error).__name__}: {error}): remove it or "
            "evaluate again"
        ) from error


def load_results(folder: Path, report: Report | None = None) -> list[ProtocolResult]:
    """The results in a folder, as in `load_files`."""
    return list(load_files(folder, report).values())


def load_files(folder: Path, report: Report | None = None) -> dict[Path, ProtocolResult]:
    """JSON file -> result, sorted by protocol and data. Foreign files are reported, or without `report` a DataError."""
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            results[path] = load_result(path)
        except DataError as error:
            if report is None:
                raise
            report(f"left out of the report: {error}")
    order = {name: i for i, name in enumerate(PROTOCOLS)}
    return dict(sorted(results.items(), key=lambda item: (order.get(item[1].protocol, len(order)), item[1].data)))


def update_docs(folder: Path, page: Path, log: Path | None = None) -> int:
    """Write `page` from the results and plots in `folder` and the scoring log beside it; returns the number of results.

    Sub-folders with results become parts of the page, except hidden ones. Raises DataError without results or for a
    foreign JSON file, TrainingError where the page cannot be written.
    """
    parts = {"": load_files(folder)}
    if folder.is_dir():
        for inner in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
            if _has_results(inner):
                parts[inner.name.replace("_", " ").capitalize()] = load_files(inner)
    count = sum(map(len, parts.values()))
    if not count:
        raise DataError(f"{folder} holds no results to write {page} from: evaluate first, or name another --output")
    lines = [
        "# Results", "",
        "Written by `python ml_training/evaluate.py --update_docs` from the JSON files of the protocols; not typed.",
        "Intervals are Wilson's, 95 %. ± is one standard deviation.", "",
    ]  # fmt: skip
    for heading, results in parts.items():
        lines += [f"# {heading}", ""] if heading and results else []
        taken: set[Path] = set()
        plots: dict[Path, list[Path]] = {}
        for path in sorted(results, key=lambda p: -len(p.name)):  # a name may begin another's
            plots[path] = [p for p in sorted((path.parent / PLOTS).glob(f"{path.stem}_*.png")) if p not in taken]
            taken |= set(plots[path])
        for path, result in results.items():
            title = title_of(result)
            lines += [f"## {title}", "", f"{result.definition}.", ""]
            for table in tables_of(result):
                lines += [table.markdown(), ""]
            for plot in plots[path]:
                shown = plot.stem.removeprefix(path.stem).strip("_").replace("_", " ")
                lines += [f"![{title}: {shown}]({quote(Path(os.path.relpath(plot, page.parent)).as_posix())})", ""]
            lines += [f"Made with: {provenance(result)}.", ""]
    log = log or page.with_name(SCORING_LOG)
    logged = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    if rows := [line for line in logged if line.startswith("|")]:
        lines += [f"## {_LOG_TITLE}", "", _LOG_NOTE, "", *rows, ""]
    write_atomically(page, "\n".join(lines).encode("utf-8", errors="backslashreplace"))
    return count


def _has_results(folder: Path) -> bool:
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.json"))
    return any(text.lstrip("{ \n").startswith('"protocol"') for text in texts)  # the first key of a result


def append_scoring(
    log: Path, *, protocol: str, recordings: str, commit: str, seeds: Iterable[str], models: Iterable[str],
    figures: Mapping[str, Sequence[float]],
) -> None:  # fmt: skip
    """Append a row to the log of scorings; a log with other columns gets a new table.

    `models` are SHA-256 hashes, `figures` the accuracies of each pipeline, one a seed. Raises DataError where the log
    cannot be written.
    """
    pipelines = (*PIPELINES, *(name for name in figures if name not in PIPELINES))
    head = f"| when (UTC) | commit | protocol | recordings | seeds | models | {' | '.join(pipelines)} |\n"
    head += f"|{'---|' * (6 + len(pipelines))}\n"
    cells = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M}", short(commit), protocol, recordings, " ".join(seeds),
        " ".join(sha256[:8] for sha256 in models),
        *(" ".join(f"{100 * share:.1f}" for share in figures.get(p, ())) or "-" for p in pipelines),
    ]  # fmt: skip
    line = "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |\n"
    try:
        before = log.read_text(encoding="utf-8") if log.exists() else f"# {_LOG_TITLE}\n\n{_LOG_NOTE}\n"
        if head not in before:
            before = f"{before.rstrip()}\n\n{head}"
        write_atomically(log, (before + line).encode("utf-8", errors="backslashreplace"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot log the scoring in {log}: {error}") from error


def log_scoring(log: Path, result: ProtocolResult) -> None:
    """Append the accuracies of a result on its unchanged clips to the log of scorings."""
    figures: dict[str, list[float]] = {}
    for score in sorted(result.scores, key=lambda s: s.seed):
        figures.setdefault(score.pipeline, []).append(score.all.accuracy)
    order = (*PIPELINES, *sorted({m.pipeline for m in result.models} - {*PIPELINES}))
    models = sorted(result.models, key=lambda m: (order.index(m.pipeline), m.seed))
    append_scoring(
        log, protocol=result.protocol, recordings=f"{result.data}, {result.clips} clips", commit=result.git_commit,
        seeds=result.seeds, models=[m.sha256 for m in models], figures=figures,
    )  # fmt: skip
