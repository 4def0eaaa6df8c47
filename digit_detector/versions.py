"""Read and check the versions of a trained pipeline; ml_training/deploy/version_store.py writes them.

    models/mfcc_classifier/
        best_model.pt  model.onnx  scaler.pkl   copies of the promoted version's files
        checkpoint_epoch_NNN.pt                 state of the last training; part of no version
        versions/
            1/  best_model.pt  model.onnx  scaler.pkl  version.json
            2/  ...
            promoted.json                       the promoted version and the history of promotions

There is no index: each version.json describes its own folder. Inference reads versions, so nothing heavy is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from digit_detector.errors import ModelError

VERSIONS = "versions"
RECORD = "version.json"
PROMOTED = "promoted.json"
FORMAT = 1  # of both JSON files

Metrics = Mapping[str, Mapping[str, Mapping[str, Any]]]  # protocol -> recordings -> figures


@dataclass(frozen=True)
class Provenance:
    """Data, settings and code that a version was trained with."""

    pipeline: str
    data: str  # name of the recordings
    data_hash: str
    synthetic: bool
    split: str
    git_commit: str
    package_version: str
    settings: Mapping[str, Any]  # as in config_*.json
    training: Mapping[str, Any]  # its outcome: best epoch, why it stopped, seconds, ...
    weights_hash: str  # of the weights' values, independent of the file format


@dataclass(frozen=True)
class FileRecord:
    """Size and hash of a file when it was added to the version."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Version:
    """One finished training. Only `metrics` and `files` ever grow."""

    number: int
    created: str  # UTC, ISO 8601
    parent: int | None  # the version that was promoted when this one was made
    provenance: Provenance
    metrics: Metrics
    files: Mapping[str, FileRecord]

    def to_dict(self) -> dict[str, Any]:
        """The content of version.json."""
        values = asdict(self)
        provenance = values.pop("provenance")
        return {"format": FORMAT, **values, **provenance}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Version:
        """Inverse of to_dict. Raises KeyError, TypeError, AttributeError or ValueError for other values."""
        files = {name: FileRecord(int(f["bytes"]), str(f["sha256"])) for name, f in values["files"].items()}
        for name in files:
            if not re.fullmatch(r"\w[\w.-]*", name) or name == RECORD:  # it becomes a path
                raise ValueError(f"{name!r} is not a valid file name")
        return cls(
            number=int(values["number"]), created=str(values["created"]), parent=values["parent"],
            provenance=Provenance(**{f.name: values[f.name] for f in fields(Provenance)}),
            metrics=values["metrics"], files=files,
        )  # fmt: skip


@dataclass(frozen=True)
class Promotion:
    """One entry of the history of promotions."""

    version: int
    when: str  # UTC, ISO 8601
    how: str  # training, promote or rollback


@dataclass(frozen=True)
class Promotions:
    """The content of promoted.json."""

    history: tuple[Promotion, ...] = ()
    finished: bool = True  # False while the promoted version's files are being copied

    @property
    def promoted(self) -> int | None:
        return self.history[-1].version if self.history else None

    def before(self) -> list[int]:
        """The versions that repeated rollbacks lead to, the next one first."""
        stack: list[int] = []
        for promotion in self.history:
            if promotion.how == "rollback":
                while stack and stack[-1] != promotion.version:
                    stack.pop()
            if not stack or stack[-1] != promotion.version:
                stack.append(promotion.version)
        return stack[-2::-1]


@dataclass(frozen=True)
class VersionStatus:
    """A version as found on the disk."""

    number: int
    version: Version | None  # None where version.json cannot be read
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Status:
    """All versions of a pipeline, and the faults of promoted.json and of the promoted files."""

    promotions: Promotions
    versions: tuple[VersionStatus, ...]
    faults: tuple[str, ...]

    @property
    def damaged(self) -> bool:
        return bool(self.faults) or any(version.faults for version in self.versions)


def version_folder(folder: Path, number: int) -> Path:
    """The folder of a version of the pipeline in `folder`, e.g. models/mfcc_classifier/versions/3."""
    return folder / VERSIONS / str(number)


def version_numbers(folder: Path) -> list[int]:
    """The numbers of all versions, intact or damaged, ascending."""
    paths = (folder / VERSIONS).glob("*")
    return sorted(int(path.name) for path in paths if re.fullmatch("[1-9][0-9]{0,8}", path.name))


def promoted_file(folder: Path, name: str) -> Path:
    """The promoted version's file `name`: the copy in `folder`, or the original while copying is unfinished."""
    with contextlib.suppress(ModelError):  # `digits versions list` reports a damaged promoted.json
        promotions = read_promotions(folder)
        original = version_folder(folder, promotions.promoted or 0) / name
        if not promotions.finished and original.is_file():
            return original
    return folder / name


def read_version(folder: Path, number: int) -> Version:
    """Read version.json. Raises ModelError where the version does not exist or the file is damaged."""
    path = version_folder(folder, number) / RECORD
    if not path.parent.is_dir():
        existing = ", ".join(map(str, version_numbers(folder))) or "none"
        raise ModelError(f"{folder} has no version {number}, only {existing}: see digits versions list")
    with _reading(path, "promote another version, or prune this one") as values:
        version = Version.from_dict(values)
        if version.number != number:
            raise ValueError(f"it describes version {version.number}: rename the folder")
    return version


@contextlib.contextmanager
def _reading(path: Path, hint: str) -> Iterator[Mapping[str, Any]]:
    """The content of a JSON file; every error of reading it, here or in the context, becomes ModelError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}, expected {FORMAT}: use the program that wrote it")
        yield values
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: {hint}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({type(error).__name__}: {error}): {hint}") from error


def read_file(folder: Path, version: Version, name: str) -> bytes:
    """Read a file of a version. Raises ModelError unless it has the SHA-256 of version.json."""
    path, recorded = version_folder(folder, version.number) / name, version.files.get(name)
    if recorded is None:
        raise ModelError(f"version {version.number} in {folder} has no {name}, only {', '.join(version.files)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path} ({error.strerror or error}): take another version, or retrain") from error
    if hashlib.sha256(content).hexdigest() != recorded.sha256:
        raise ModelError(f"{path} is damaged: its SHA-256 differs from {RECORD}; take another version, or retrain")
    return content


def read_intact_version(folder: Path, number: int) -> Version:
    """Read version.json and check every file. Raises ModelError where one is missing or damaged."""
    version = read_version(folder, number)
    for name in version.files:
        read_file(folder, version, name)
    return version


def read_promotions(folder: Path) -> Promotions:
    """Read promoted.json; empty without one. Raises ModelError where it is damaged."""
    path = folder / VERSIONS / PROMOTED
    if not path.exists():
        return Promotions()
    with _reading(path, "digits versions promote NUMBER writes it anew") as values:
        history = tuple(Promotion(int(p["version"]), str(p["when"]), str(p["how"])) for p in values["history"])
        promotions = Promotions(history, finished=values["finished"] is True)
        if values["promoted"] != promotions.promoted:
            raise ValueError(f"promoted is {values['promoted']}, the last of history {promotions.promoted}")
    return promotions


def find_versions(folder: Path, name: str, sha256: str) -> list[int]:
    """The numbers of the versions whose file `name` has that hash, ascending."""
    found = []
    for number in version_numbers(folder):
        with contextlib.suppress(ModelError):
            recorded = read_version(folder, number).files.get(name)
            if recorded is not None and recorded.sha256 == sha256:
                found.append(number)
    return found


def read_status(folder: Path) -> Status:
    """Read and check everything in `folder`; damage becomes `faults`."""
    promotions, faults, versions = Promotions(), [], []
    try:
        promotions = read_promotions(folder)
    except ModelError as error:
        faults.append(str(error))
    for number in version_numbers(folder):
        version, damage = None, []
        try:
            version = read_version(folder, number)
            read_intact_version(folder, number)
        except ModelError as error:
            damage.append(str(error))
        versions.append(VersionStatus(number, version, tuple(damage)))
        if number == promotions.promoted and version is not None:
            faults += _copy_faults(folder, version, promotions.finished)
    if promotions.promoted not in (None, *(version.number for version in versions)):
        faults.append(f"version {promotions.promoted} is promoted, but missing: promote another, or roll back")
    return Status(promotions, tuple(versions), tuple(faults))


def _copy_faults(folder: Path, version: Version, finished: bool) -> Iterator[str]:
    if not finished:
        yield f"the files of version {version.number} have not all been copied to {folder}"
        return
    for name, recorded in version.files.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != recorded.sha256:
            yield f"{path} is not of version {version.number}: digits versions promote {version.number} fixes it"
