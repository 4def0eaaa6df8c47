"""Versions of a trained pipeline: what each finished training left, read and checked. version_store.py writes them.

    models/mfcc_classifier/
        best_model.pt  model.onnx  scaler.pkl   the files of the promoted version, copied
        checkpoint_epoch_NNN.pt                 where the last training stands; part of no version
        versions/
            1/  best_model.pt  model.onnx  scaler.pkl  version.json
            2/  ...
            promoted.json                       which version is promoted, and which were before

No index can be damaged, because there is none: each version describes itself, and is put in its place whole, by
renaming its folder. `promoted.json` alone says which one is promoted.

Inference reads it too, so it imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from digit_detector.errors import ModelError

VERSIONS = "versions"
RECORD = "version.json"
PROMOTED = "promoted.json"
FORMAT = 1  # of both files
_SEAL = "sha256"

Metrics = Mapping[str, Mapping[str, Mapping[str, Any]]]  # protocol -> recordings -> figures


@dataclass(frozen=True)
class Origin:
    """What a version was made of, and how."""

    pipeline: str
    data: str  # name of the recordings
    data_hash: str
    synthetic: bool
    split: str
    git_commit: str
    package_version: str
    settings: Mapping[str, Any]  # as in config_*.json
    training: Mapping[str, Any]  # what it came to: best epoch, why it stopped, seconds, ...
    weights_hash: str  # of the numbers themselves, however they are stored


@dataclass(frozen=True)
class FileRecord:
    """What a file was when the version was made."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Version:
    """One finished training. It changes by addition alone: evaluations add to `metrics`, exports to `files`."""

    number: int
    created: str  # UTC, ISO 8601
    parent: int | None  # the version that was promoted when this one was made; None for none
    origin: Origin
    metrics: Metrics
    files: Mapping[str, FileRecord]  # name -> what it was

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; those of `origin` beside the others."""
        values = asdict(self)
        return {"format": FORMAT, **{k: v for k, v in values.items() if k != "origin"}, **values["origin"]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Version:
        """What `to_dict` wrote. Raises KeyError, TypeError, AttributeError or ValueError for anything else."""
        files = {name: FileRecord(int(f["bytes"]), str(f["sha256"])) for name, f in values["files"].items()}
        for name in files:
            if not re.fullmatch(r"\w[\w.-]*", name) or name == RECORD:  # it is copied to where it says
                raise ValueError(f"{name!r} is no name of a file of a version")
        if not all(isinstance(figures, Mapping) for found in values["metrics"].values() for figures in found.values()):
            raise TypeError("metrics are no figures by protocol and recordings")
        parent = values["parent"]
        return cls(
            number=int(values["number"]), created=str(values["created"]),
            parent=None if parent is None else int(parent), metrics=values["metrics"], files=files,
            origin=Origin(**{f.name: values[f.name] for f in fields(Origin)}),
        )  # fmt: skip


@dataclass(frozen=True)
class Promotion:
    """That a version was promoted, when (UTC, ISO 8601), and by what: training, promote or rollback."""

    version: int
    when: str
    how: str


@dataclass(frozen=True)
class Promotions:
    """Every promotion so far, and whether the files of the last one have all been copied."""

    history: tuple[Promotion, ...] = ()
    finished: bool = True

    @property
    def promoted(self) -> int | None:
        return self.history[-1].version if self.history else None

    def before(self) -> list[int]:
        """The versions that rollbacks lead back to, the next one first."""
        stack: list[int] = []
        for promotion in self.history:
            if promotion.how == "rollback":
                while stack and stack[-1] != promotion.version:
                    stack.pop()
            if not stack or stack[-1] != promotion.version:
                stack.append(promotion.version)
        return stack[-2::-1]


@dataclass(frozen=True)
class Row:
    """A version as it lies on the disk."""

    number: int
    version: Version | None  # None where its own description cannot be read
    faults: tuple[str, ...]
    promoted: bool


@dataclass(frozen=True)
class State:
    """All versions of a pipeline, and what is wrong with their promotion."""

    promotions: Promotions
    rows: tuple[Row, ...]
    faults: tuple[str, ...]

    @property
    def damaged(self) -> bool:
        return bool(self.faults) or any(row.faults for row in self.rows)


@dataclass(frozen=True)
class Added:
    """The version that a training became, and whether it is the promoted one."""

    version: Version
    promoted: bool
    reason: str = ""  # why it was not promoted, or how it compares with the version that was


@dataclass(frozen=True)
class Change:
    """Which version is promoted now, and which was before."""

    promoted: int
    before: int | None


@dataclass(frozen=True)
class Pruning:
    """Which versions go, and which stay."""

    goes: tuple[int, ...]
    stays: tuple[int, ...]


# --- places --------------------------------------------------------------------------------------


def version_folder(folder: Path, number: int) -> Path:
    """Where a version of the pipeline in `folder` (models/mfcc_classifier, say) lies."""
    return folder / VERSIONS / str(number)


def numbers(folder: Path) -> list[int]:
    """The numbers of all versions of a pipeline, whole and damaged ones, in order."""
    try:
        found = [p.name for p in (folder / VERSIONS).iterdir() if re.fullmatch("[1-9][0-9]{0,8}", p.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(map(int, found))


def any_there(folder: Path) -> bool:
    """Whether a pipeline has versions, or had some."""
    return bool(numbers(folder)) or (folder / VERSIONS / PROMOTED).exists()


def answering_file(folder: Path, name: str) -> Path:
    """The file `name` of the promoted version: in `folder`, or among the versions while it has not been copied yet."""
    try:
        promotions = read_promotions(folder)
    except ModelError:  # the copy is whole all the same; `digits versions list` tells what is wrong
        return folder / name
    if promotions.promoted is None or promotions.finished:
        return folder / name
    file = version_folder(folder, promotions.promoted) / name
    return file if file.is_file() else folder / name


# --- reading -------------------------------------------------------------------------------------


def read_version(folder: Path, number: int) -> Version:
    """What a version says of itself. Raises ModelError where it is not there or its description is damaged."""
    path = version_folder(folder, number) / RECORD
    if not path.parent.is_dir():
        raise ModelError(f"{folder} has no version {number}, {_those_there(folder)}: see digits versions list")
    values = _read_json(path, "promote another version, or prune this one")
    if values.get(_SEAL) != seal_of(values):
        raise ModelError(f"{path} is not as it was written: promote another version, or prune this one")
    try:
        version = Version.from_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} describes no version ({type(error).__name__}: {error}): prune it") from error
    if version.number != number:
        raise ModelError(f"{path} is of version {version.number}, not {number}: put the folder back where it was")
    return version


def _those_there(folder: Path) -> str:
    there = numbers(folder)
    if not there:
        return "none at all"
    return (
        f"only {', '.join(map(str, there))}" if len(there) < 8 else f"only {len(there)} from {there[0]} to {there[-1]}"
    )


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: {otherwise}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({type(error).__name__}: {error}): {otherwise}") from error
    if not isinstance(values, dict) or "format" not in values:
        raise ModelError(f"{path} is no file of this program: {otherwise}")
    if values["format"] != FORMAT:
        raise ModelError(
            f"{path} has format {values['format']!r}, this program reads {FORMAT}: use the one that wrote it"
        )
    return values


def seal_of(values: Mapping[str, Any]) -> str:
    """SHA-256 of a description without its seal: an edit by hand is found like any other damage."""
    rest = {name: value for name, value in values.items() if name != _SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A description as it is written."""
    return {**values, _SEAL: seal_of(values)}


def read_file(folder: Path, version: Version, name: str) -> bytes:
    """A file of a version. Raises ModelError unless it is what it was when the version was made."""
    path, then = version_folder(folder, version.number) / name, version.files.get(name)
    if then is None:
        raise ModelError(f"version {version.number} in {folder} has no {name}, only {', '.join(version.files)}")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: take another version, or train again") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    if len(content) != then.bytes or hashlib.sha256(content).hexdigest() != then.sha256:
        raise ModelError(
            f"{path} is damaged: it has not the SHA-256 that {RECORD} names; take another version, or train again"
        )
    return content


def faults(folder: Path, version: Version) -> list[str]:
    """What is wrong with the files of a version."""
    found = []
    for name in version.files:
        try:
            read_file(folder, version, name)
        except ModelError as error:
            found.append(str(error))
    return found


def whole_version(folder: Path, number: int) -> Version:
    """A version every file of which is as it was. Raises ModelError otherwise."""
    version = read_version(folder, number)
    if found := faults(folder, version):
        raise ModelError("; ".join(found))
    return version


def read_promotions(folder: Path) -> Promotions:
    """Which version is promoted and which were before. Raises ModelError where the file that says so is damaged."""
    path = folder / VERSIONS / PROMOTED
    if not path.exists():
        return Promotions()
    again = "digits versions promote NUMBER writes it anew"
    values = _read_json(path, again)
    try:
        history = tuple(Promotion(int(p["version"]), str(p["when"]), str(p["how"])) for p in values["history"])
        promotions = Promotions(history, finished=values["finished"] is True)
        if values["promoted"] != promotions.promoted:
            raise ValueError(f"version {values['promoted']} is promoted, but the last promotion was another")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} is damaged ({type(error).__name__}: {error}): {again}") from error
    return promotions


def find(folder: Path, name: str, sha256: str) -> list[int]:
    """The versions whose file `name` has that hash by their own description, in order."""
    found = []
    for number in numbers(folder):
        try:
            version = read_version(folder, number)
        except ModelError:
            continue
        if name in version.files and version.files[name].sha256 == sha256:
            found.append(number)
    return found


def in_place(folder: Path) -> int | None:
    """The newest version whose files are the pipeline's own, promoted or not; None where they are of none."""
    own: dict[str, str | None] = {}
    for number in reversed(numbers(folder)):
        try:
            files = read_version(folder, number).files
        except ModelError:
            continue
        own |= {name: _sha256(folder / name) for name in files.keys() - own.keys()}
        if files and all(own[name] == then.sha256 for name, then in files.items()):
            return number
    return None


def state_of(folder: Path) -> State:
    """Everything that lies there, whatever is damaged."""
    wrong: list[str] = []
    try:
        promotions = read_promotions(folder)
    except ModelError as error:
        promotions, wrong = Promotions(), [str(error)]
    there = []
    for number in numbers(folder):
        version = None
        try:
            version = read_version(folder, number)
            found = faults(folder, version)
        except ModelError as error:
            found = [str(error)]
        there.append(Row(number, version, tuple(found), number == promotions.promoted))
    return State(promotions, tuple(there), (*wrong, *_wrong_in_place(folder, promotions, there)))


def _wrong_in_place(folder: Path, promotions: Promotions, there: Sequence[Row]) -> list[str]:
    """What is wrong with the promotion itself: a version that is gone, files that are not its own."""
    if promotions.promoted is None:
        lies = in_place(folder)
        return [f"the files in {folder} are of version {lies}, which is not promoted"] if lies is not None else []
    row = next((row for row in there if row.promoted), None)
    if row is None:
        return [f"version {promotions.promoted} is promoted, but gone: promote another, or roll back"]
    if row.version is None:
        return []
    if not promotions.finished:
        return [f"the files of version {row.number} have not all been copied to {folder}"]
    wrong = [name for name, then in row.version.files.items() if _sha256(folder / name) != then.sha256]
    if not wrong:
        return []
    return [
        f"{', '.join(wrong)} in {folder} is not of version {row.number}: digits versions promote {row.number} mends it"
    ]


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
