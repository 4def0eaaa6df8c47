"""The table that a training ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_training.training.experiment import RunOutcome


def summary_table(outcome: RunOutcome) -> str:
    """A line of test figures for each pipeline, warnings and failures, and the paths of the report and the log."""
    rows = [("pipeline", "test errors", "accuracy", "95 % interval", "best epoch", "time", "model")]
    for r in outcome.results:
        low, high = r.test.interval
        rows.append((
            r.pipeline, f"{r.test.errors} of {r.test.clips}", f"{100 * r.test.accuracy:.2f} %",
            f"{100 * low:.1f} to {100 * high:.1f}", f"{r.best_epoch} of {len(r.history)}",
            f"{r.train_seconds:.0f} s", r.model_file,
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if not outcome.results:
        lines = []
    lines += [
        f"{r.pipeline}: version {r.version} was not promoted: {r.not_promoted}"
        for r in outcome.results
        if r.not_promoted
    ]
    if outcome.data.synthetic and outcome.results:
        lines.append("These figures are of synthetic speech: they say little about people.")
    lines += [f"failed: {name}: {reason}" for name, reason in outcome.failures.items()]
    return "\n".join(["", *lines, f"report: {outcome.report}", f"log: {outcome.log_file}"])
