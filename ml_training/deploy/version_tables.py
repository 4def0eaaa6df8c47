"""What is told about versions: lines for people, plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from digit_detector.versions import FileRecord, Row, State, Version, version_folder
from ml_training.config import AugmentationConfig, TrainConfig, flat, to_dict

SHORT = 12  # signs of a hash that are shown
PROVENANCE = ("data_hash", "test_hash", "git_commit", "created")  # of figures; JSON alone tells it


def listed(pipeline: str, folder: Path, state: State) -> list[str]:
    """The versions of a pipeline, a line each, and what is wrong with them; the promoted one is marked."""
    table = [("", "version", "made (UTC)", "parent", "test", "data", "commit")]
    for row in reversed(state.rows):
        mark = "*" if row.promoted else ""
        if row.version is None:
            table.append((mark, str(row.number), "", "", "", "", "damaged"))
            continue
        version = row.version
        table.append((
            mark, str(row.number), version.created[:19].replace("T", " "), str(version.parent or "-"),
            test_figure(version), f"{version.origin.data} {version.origin.data_hash[:SHORT]}",
            version.origin.git_commit[:SHORT] + (", damaged" if row.faults else ""),
        ))  # fmt: skip
    promoted = state.promotions.promoted
    head = f"{pipeline}, {folder}: " + (f"version {promoted} is promoted" if promoted else "no version is promoted")
    wrong = [*(fault for row in state.rows for fault in row.faults), *state.faults]
    return [head, *aligned(table), *(f"! {fault}" for fault in wrong)]


def list_values(pipeline: str, folder: Path, state: State) -> dict[str, Any]:
    """The same for programs."""
    return {
        "pipeline": pipeline, "folder": str(folder), "promoted": state.promotions.promoted,
        "history": [vars(promotion) for promotion in state.promotions.history],
        "versions": [row_values(folder, row) for row in state.rows], "faults": list(state.faults),
    }  # fmt: skip


def row_values(folder: Path, row: Row) -> dict[str, Any]:
    """All of a version for programs; where its description is damaged, its number and why."""
    known = row.version.to_dict() if row.version else {"number": row.number}
    place = str(version_folder(folder, row.number))
    return {**known, "folder": place, "promoted": row.promoted, "faults": list(row.faults)}


def shown(folder: Path, version: Version, row: Row) -> list[str]:
    """All of one version."""
    origin, changed = version.origin, dict(_changed(version.origin.settings))
    training = _figures(origin.training)
    speech = "synthetic speech" if origin.synthetic else "recordings"
    table = [
        ("version", f"{version.number} of {origin.pipeline}{', promoted' if row.promoted else ''}"),
        ("lies in", str(version_folder(folder, version.number))),
        ("made", f"{version.created}, parent {version.parent or 'none'}"),
        ("by", f"version {origin.package_version} of the program, commit {origin.git_commit}"),
        ("data", f"{origin.data} ({speech}), split {origin.split}, hash {origin.data_hash}"),
        ("training", training),
        ("weights", origin.weights_hash),
        ("settings", ", ".join(f"{name} {value}" for name, value in changed.items()) or "as by default"),
    ]
    table += [(f"{protocol}, {data}", _figures(found)) for protocol, data, found in _measured(version)]
    table += [(name, _file(name, then, row.faults)) for name, then in version.files.items()]
    return [*aligned(table), *(f"! {fault}" for fault in row.faults)]


def differences(versions: Sequence[Version]) -> dict[str, list[Any]]:
    """What is not the same in all of some versions, and every figure that one of them has: name -> a value each."""
    tables = [_flat(version) for version in versions]
    names = dict.fromkeys(name for table in tables for name in table)
    found = {name: [table.get(name) for table in tables] for name in names}
    return {name: row for name, row in found.items() if _is_metric(name) or any(value != row[0] for value in row)}


def compared(versions: Sequence[Version]) -> list[str]:
    """`differences` as a table."""
    table = [("", *(f"version {version.number}" for version in versions))]
    for name, row in differences(versions).items():
        figure = name.rpartition(", ")[2]
        table.append((name, *("-" if value is None else _figure(figure, value) for value in row)))
    return aligned(table)


def test_figure(version: Version) -> str:
    """How many of its own test clips a version got right."""
    for found in version.metrics.get(version.origin.split, {}).values():
        if isinstance(found.get("accuracy"), float):
            return f"{version.origin.split} {_figure('accuracy', found['accuracy'])} of {found.get('clips')}"
    return "-"


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


# --- figures and settings ------------------------------------------------------------------------


def _measured(version: Version) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for protocol, recordings in version.metrics.items():
        for data, found in recordings.items():
            yield protocol, data, found


def _flat(version: Version) -> dict[str, Any]:
    """Everything of a version that may be compared, under one name each."""
    origin = version.origin
    told: dict[str, Any] = {
        f"{protocol}, {data}, {name}": value
        for protocol, data, found in _measured(version)
        for name, value in found.items()
        if name not in PROVENANCE
    }
    told |= {
        "made": version.created, "parent": version.parent, "commit": origin.git_commit[:SHORT],
        "program": origin.package_version, "data": origin.data, "data hash": origin.data_hash[:SHORT],
        "split": origin.split, "weights": origin.weights_hash[:SHORT],
    }  # fmt: skip
    told |= {f"training {name}": value for name, value in origin.training.items() if name not in PROVENANCE}
    told |= {f"setting {name}": value for name, value in flat(origin.settings)}
    return told | {f"{name} bytes": then.bytes for name, then in version.files.items()}


def _is_metric(name: str) -> bool:
    return name.count(", ") >= 2


def _changed(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings that are not what nobody chose; those that pipelines choose are all told."""
    usual = dict(flat({**to_dict(TrainConfig()), "augmentation": vars(AugmentationConfig())}))
    for name, value in flat(settings):
        default = usual.get(name)
        if value != (list(default) if isinstance(default, tuple) else default):
            yield name, value


def _figures(found: Mapping[str, Any]) -> str:
    told = (f"{name.replace('_', ' ')} {_figure(name, v)}" for name, v in found.items() if name not in PROVENANCE)
    return ", ".join(told)


def _figure(name: str, value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " to ".join(_figure(name, v) for v in value)
    if isinstance(value, float):
        share = name.startswith(("accuracy", "interval", "accepted"))
        return f"{100 * value:.2f} %" if share else f"{value:.4g}"
    return str(value)


def _file(name: str, then: FileRecord, faults: Sequence[str]) -> str:
    damaged = any(name in fault for fault in faults)
    return f"{then.bytes:,} bytes, SHA-256 {then.sha256}{', damaged' if damaged else ''}"
