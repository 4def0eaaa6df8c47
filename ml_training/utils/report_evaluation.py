"""The evaluation report: every result of a folder on one page that loads nothing, like the training report."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ml_training.results import ProtocolResult
from ml_training.utils.evaluation_tables import Table, plural, provenance, tables_of, title_of
from ml_training.utils.files import write_atomically
from ml_training.utils.report import date_of, gather_versions, render_page


@dataclass(frozen=True)
class Section:
    """One result on the page."""

    id: str
    title: str
    definition: str
    provenance: str
    synthetic: bool
    tables: list[Table]
    plots: list[str]  # base64 PNG


def write_evaluation_report(results: Sequence[tuple[ProtocolResult, Sequence[Path]]], path: Path) -> None:
    """Write the page of some results, each with its plots.

    Raises MissingExtraError without jinja2, TrainingError where the file cannot be written.
    """
    sections = [
        Section(
            id=f"result{number}", title=title_of(result), definition=result.definition,
            provenance=provenance(result), synthetic=result.synthetic, tables=tables_of(result),
            plots=[base64.b64encode(plot.read_bytes()).decode() for plot in plots],
        )
        for number, (result, plots) in enumerate(results, 1)
    ]  # fmt: skip
    page = render_page(
        "evaluation_template.html",
        sections=sections,
        headline=f"{plural(len(sections), 'result')} on one page" if sections else "Nothing was evaluated",
        written=date_of(datetime.now().astimezone()),
        versions=gather_versions(),
    )
    write_atomically(path, page.encode("utf-8", errors="backslashreplace"))
