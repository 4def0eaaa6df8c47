"""Results on disk: a JSON file each, the page made of them, and the log of every look at evaluation-only recordings."""

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
from ml_training.results import ModelScore, ProtocolResult

Report = Callable[[str], None]

PLOTS = "plots"  # folder of plots, beside the JSON files
LONGEST_NAME = 150  # bytes; file systems take 255, and more is added for plots and while a file is written
SCORING_LOG = "strangers_scored.md"  # beside results.md


def file_name(result: ProtocolResult) -> str:
    """What a result's JSON is called, without suffix: the same for the same question, so that answers are replaced."""
    pipelines = {s.pipeline for s in result.scores}
    details = result.details or {}
    asked = [result.protocol, result.data, str(details.get("noise_folder", "")), *details.get("left_out", ())]
    if pipelines != set(PIPELINES):
        asked.append("_".join(sorted(pipelines)))
    asked += sorted({model.precision for model in result.models} - {FP32})
    name = "_".join(slug(part) for part in asked if part)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def save_result(result: ProtocolResult, folder: Path, report: Report = lambda line: None) -> Path:
    """Write a result as JSON into a folder; `report` is told where it takes the place of an answer to something else.

    Raises TrainingError where it cannot be written.
    """
    path = folder / f"{file_name(result)}.json"
    values = result.to_dict()
    try:
        changed = [name for name, how in _asked(json.loads(path.read_text(encoding="utf-8"))).items()
                   if how != _asked(values)[name]]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none there, or of an older version
        changed = []
    if changed:
        report(
            f"{path}: replaces a result of other {' and '.join(changed)}; --output or --log_dir elsewhere keeps both"
        )
    write_json(path, values)
    return path


def _asked(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a result is the answer to beyond the name of its file."""
    details = values["details"] or {}
    return {
        "recordings": values["data_hash"], "noise seed": details.get("noise_seed"),
        "settings": details.get("trainings"), "clips without a digit": details.get("others"),
    }  # fmt: skip


def load_results(folder: Path, report: Report | None = None) -> list[ProtocolResult]:
    """The results in a folder, by protocol and data.

    A file that is none, or of an older version, is told to `report` and left out; without one DataError is raised.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(ProtocolResult.from_dict(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            fault = f"{path} is no result of evaluate.py ({type(error).__name__}: {error}): remove it or evaluate again"
            if report is None:
                raise DataError(fault) from error
            report(f"left out of the report: {fault}")
    order = {name: i for i, name in enumerate(PROTOCOLS)}
    return sorted(found, key=lambda r: (order.get(r.protocol, len(order)), r.data, file_name(r)))


def load_result(path: Path) -> ProtocolResult:
    """One result. Raises DataError for a file that is none."""
    try:
        return ProtocolResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no result of evaluate.py or train.py --cv ({type(error).__name__}: {error})"
        ) from error


# --- docs/results.md -----------------------------------------------------------------------------


Shown = tuple[ProtocolResult, Sequence[str]]  # a result and the addresses of its plots


def results_page(parts: Mapping[str, Sequence[Shown]], scorings: str) -> str:
    """docs/results.md as text.

    `parts` are results under a heading, "" for none; `scorings` is the log of every look at evaluation-only recordings,
    "" without one.
    """
    lines = [
        "# Results", "",
        "Written by `python ml_training/evaluate.py --update_docs` from the JSON files of the protocols; not typed.",
        "Intervals are Wilson's, 95 %. ± is one standard deviation.", "",
    ]  # fmt: skip
    for heading, shown in parts.items():
        lines += [f"# {heading}", ""] if heading else []
        for result, addresses in shown:
            lines += [f"## {title_of(result)}", "", f"{result.definition}.", ""]
            for table in tables_of(result):
                lines += [table.markdown(), ""]
            for address in addresses:
                lines += [f"![{title_of(result)}: {_words(address, result)}]({address})", ""]
            lines += [f"Made with: {provenance(result)}.", ""]
    logged = [line for line in scorings.splitlines() if line.startswith("|")]
    if logged:
        lines += [
            "## Every time evaluation-only recordings were scored", "",
            "No decision is taken on these figures: per cent right, one figure a model, in the order of the seeds.", "",
            *logged, "",
        ]  # fmt: skip
    return "\n".join(lines)


def _address(path: Path, page: Path) -> str:
    """A file's address on a page, as Markdown takes it."""
    try:
        return quote(Path(os.path.relpath(path, page.parent)).as_posix())
    except ValueError:  # on another drive
        return path.resolve().as_uri()


def _words(address: str, result: ProtocolResult) -> str:
    """What a plot shows, from its name."""
    return Path(address).stem.removeprefix(file_name(result)).strip("_").replace("_", " ")


def update_docs(folder: Path, page: Path, log: Path | None = None) -> int:
    """Write `page` from the results in `folder` and the log (default: beside the page); returns how many results.

    Plots that lie in the folder's sub-folder `plots` are shown. Other sub-folders with results are parts of their own,
    but for hidden ones, where editors and synchronisers keep copies.
    Raises DataError without any, and TrainingError where it cannot be written.
    """
    parts = {"": _shown(folder, page)}
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    for inner in (path for path in inside if not path.name.startswith(".") and _names_protocol(path)):
        parts[inner.name.replace("_", " ").capitalize()] = _shown(inner, page)
    count = sum(map(len, parts.values()))
    if not count:
        raise DataError(f"{folder} holds no results to write {page} from: evaluate first, or name another --output")
    log = log or page.with_name(SCORING_LOG)
    scorings = log.read_text(encoding="utf-8") if log.is_file() else ""
    text = results_page({heading: shown for heading, shown in parts.items() if shown}, scorings)
    write_atomically(page, text.encode("utf-8", errors="backslashreplace"))
    return count


def _names_protocol(folder: Path) -> bool:
    """Whether some JSON file there is a result, be it of an older version; what trainings log, say, is none."""
    for path in folder.glob("*.json"):
        try:
            if "protocol" in json.loads(path.read_text(encoding="utf-8")):
                return True
        except (OSError, ValueError, TypeError):
            continue
    return False


def _shown(folder: Path, page: Path) -> list[Shown]:
    """The results of one folder, each with the addresses of its plots on the page."""
    results = load_results(folder)
    pictures: dict[str, list[str]] = {}
    for name in sorted(map(file_name, results), key=len, reverse=True):  # a longer name may begin with a shorter one
        taken = {address for addresses in pictures.values() for address in addresses}
        found = [_address(path, page) for path in sorted((folder / PLOTS).glob(f"{name}_*.png"))]
        pictures[name] = [address for address in found if address not in taken]
    return [(result, pictures[file_name(result)]) for result in results]


# --- the log -------------------------------------------------------------------------------------


def append_scoring(
    log: Path,
    *,
    protocol: str,
    recordings: str,
    commit: str,
    seeds: Iterable[str],
    models: Iterable[str],
    figures: Mapping[str, Sequence[float]],
) -> None:
    """Add a line to the log of every look at evaluation-only recordings.

    `models` are the SHA-256 hashes of the files, `figures` the shares right of each pipeline, one a seed. A log with
    other columns gets a table of these below its own. Raises DataError where the log cannot be written.
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
        before = log.read_text(encoding="utf-8") if log.exists() else (
            "# Every time evaluation-only recordings were scored\n\nNo decision is taken on these figures: per cent "
            "right, one figure a model, in the order of the seeds.\n"
        )  # fmt: skip
        if head not in before:
            before = f"{before.rstrip()}\n\n{head}"
        write_atomically(log, (before + line).encode("utf-8", errors="backslashreplace"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot log the scoring in {log}: {error}") from error


def log_scoring(log: Path, result: ProtocolResult) -> None:
    """`append_scoring` of a result: the accuracy on its clips as they are."""
    figures: dict[str, list[float]] = {}
    for found in _in_order(result.scores):
        figures.setdefault(found.pipeline, []).append(found.all.accuracy)
    order = (*PIPELINES, *sorted({m.pipeline for m in result.models} - {*PIPELINES}))
    models = sorted(result.models, key=lambda m: (order.index(m.pipeline), m.seed))
    append_scoring(
        log, protocol=result.protocol, recordings=f"{result.data}, {result.clips} clips", commit=result.git_commit,
        seeds=result.seeds, models=[m.sha256 for m in models], figures=figures,
    )  # fmt: skip


def _in_order(scores: Sequence[ModelScore]) -> list[ModelScore]:
    return sorted(scores, key=lambda s: s.seed)
