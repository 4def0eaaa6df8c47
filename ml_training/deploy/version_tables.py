"""Versions as lines of text and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from digit_detector.versions import Status, Version, VersionStatus, version_folder
from ml_training.config import rename_settings

SHORT = 12  # characters of a hash that are shown
HASHES = ("hash", "sha256", "git_commit")
PROVENANCE = ("data_hash", "git_commit", "created")  # of metrics; not compared


def format_list(pipeline: str, folder: Path, status: Status) -> list[str]:
    """One line per version, newest first, then the faults."""
    promoted = status.promotions.promoted
    table: list[Sequence[str]] = [("", "version", "made (UTC)", "parent", "test", "data", "commit")]
    for entry in reversed(status.versions):
        cells = ["", "", "", "", "damaged"]
        if (version := entry.version) is not None:
            origin, damaged = version.provenance, ", damaged" if entry.faults else ""
            cells = [version.created[:19].replace("T", " "), str(version.parent or "-"), _test_figure(version),
                     f"{origin.data} {origin.data_hash[:SHORT]}", origin.git_commit[:SHORT] + damaged]  # fmt: skip
        table.append(("*" if entry.number == promoted else "", str(entry.number), *cells))
    head = f"{pipeline}, {folder}: " + (f"version {promoted} is promoted" if promoted else "no version is promoted")
    faults = [*(fault for entry in status.versions for fault in entry.faults), *status.faults]
    return [head, *align(table), *(f"! {fault}" for fault in faults)]


def list_values(pipeline: str, folder: Path, status: Status) -> dict[str, Any]:
    """The same for JSON."""
    promoted = status.promotions.promoted
    return {
        "pipeline": pipeline, "folder": str(folder), "promoted": promoted,
        "history": [vars(promotion) for promotion in status.promotions.history],
        "versions": [version_values(folder, entry, promoted) for entry in status.versions],
        "faults": list(status.faults),
    }  # fmt: skip


def version_values(folder: Path, entry: VersionStatus, promoted: int | None) -> dict[str, Any]:
    """One version for JSON; of a damaged version.json only number and faults."""
    values = entry.version.to_dict() if entry.version else {"number": entry.number}
    place = str(version_folder(folder, entry.number))
    return {**values, "folder": place, "promoted": entry.number == promoted, "faults": list(entry.faults)}


def format_version(values: Mapping[str, Any]) -> list[str]:
    """All of `version_values`, a line each, then its faults."""
    rows = [(name, _format_figure(name, value)) for name, value in _flatten(values) if name != "faults"]
    return [*align(rows), *(f"! {fault}" for fault in values["faults"])]


def find_differences(versions: Sequence[Version]) -> dict[str, list[Any]]:
    """Dotted name -> a value per version (None without one): every metric, and whatever else differs."""
    tables = []
    for version in versions:
        values = version.to_dict()
        tables.append(dict(_flatten({**values, "settings": rename_settings(values["settings"])})))
    names = dict.fromkeys(name for table in tables for name in table)
    rows = {}
    for name in names:
        row = [table.get(name) for table in tables]
        is_metric = name.startswith("metrics.")
        if (is_metric and not name.endswith(PROVENANCE)) or (not is_metric and any(v != row[0] for v in row)):
            rows[name] = row
    return rows


def format_comparison(versions: Sequence[Version]) -> list[str]:
    """`find_differences` as a table; hashes are shortened."""
    table = [("", *(f"version {version.number}" for version in versions))]
    for name, row in find_differences(versions).items():
        cells = ["-" if value is None else _format_figure(name, value) for value in row]
        table.append((name, *(cell[:SHORT] if name.endswith(HASHES) else cell for cell in cells)))
    return align(table)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def align(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _test_figure(version: Version) -> str:
    for figures in version.metrics.get(version.provenance.split, {}).values():
        if isinstance(figures.get("accuracy"), float):
            accuracy = _format_figure("accuracy", figures["accuracy"])
            return f"{version.provenance.split} {accuracy} of {figures.get('clips')}"
    return "-"


def _format_figure(name: str, value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " to ".join(_format_figure(name, v) for v in value) or "-"
    if isinstance(value, float):
        is_share = name.rpartition(".")[2].startswith(("accuracy", "interval", "accepted"))
        return f"{100 * value:.2f} %" if is_share else f"{value:.4g}"
    return str(value)
