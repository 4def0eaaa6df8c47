"""Versions written: added, promoted, rolled back, pruned. What they are and how they lie is told in versions.py.

**Nobody overwrites a version.** Its files are put together in a folder beside, flushed to the disk, and the folder
is renamed to the next number; a number is never given twice. The files of the promoted version in the folder above
are copies, not links: whoever writes into those, in place or by renaming, reaches no version. Kept twice is one
version of each pipeline, about 1 MB.

**The pipeline's own files are always those of the promoted version.** A training therefore writes none of them
while it runs: its best weights so far lie in its checkpoints, which are all that `--resume` needs. When it ends,
its files become a version, and promoting that version writes `best_model.pt`, `model.onnx` and what else it has. A
training that is killed, fails, has `promote` off or ends with more errors on the same test clips leaves them alone.

**What is exported from a version later** (int8, say) is added to it (`attach`), and lies in the folder above while the
version's files do: it comes and goes with them. A file that a version has already stays.

**Killed anywhere, nothing is left half done.** Promoting (1) copies the files beside their places, (2) names the
version in promoted.json as not finished, (3) renames the copies into place, (4) says that it is finished. Killed
before (2), it never began; killed later, the next command that writes or lists versions does it again from (1), and
whoever answers meanwhile reads the files of the version itself. Where they have been damaged in the meantime, the
promotion is taken back.

**One at a time** does any of this, by a lock that the system takes from a process that ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from digit_detector.errors import ConfigError, ModelError, TrainingError
from digit_detector.files import finite, flush_folder, json_bytes, write_durably
from digit_detector.versions import (
    FORMAT,
    PROMOTED,
    RECORD,
    VERSIONS,
    Added,
    Change,
    FileRecord,
    Metrics,
    Origin,
    Promotion,
    Promotions,
    Pruning,
    Version,
    in_place,
    numbers,
    read_file,
    read_promotions,
    read_version,
    sealed,
    version_folder,
    whole_version,
)
from ml_training.deploy.promotion import Comparison, compare_for_promotion
from ml_training.utils.locks import locked

LOCK = ".lock"
_NEW = ".new"  # the folder that becomes a version
_GONE = ".gone"  # the folder that was one
_BESIDE = ".promoting"  # what a copy is called until it is renamed: .model.onnx.promoting

Report = Callable[[str], None]


def _silent(line: str) -> None:
    pass


# --- what can be done ----------------------------------------------------------------------------


def add(
    folder: Path,
    made: Path,
    origin: Origin,
    metrics: Metrics,
    *,
    promote: bool | None = None,
    again: bool = False,
    report: Report = _silent,
) -> Added:
    """Make the files in the folder `made` the next version of the pipeline in `folder`, and promote it.

    `promote` None does so unless it is worse than the promoted one; see `compare_for_promotion`.
    With `again` a whole version of the same weights is taken where there is one: a run that was resumed after its end
    is still the same run. Raises TrainingError where the disk refuses; a version that was made by then stays, promoted
    or not.
    """
    with _disk(f"could not make {folder / VERSIONS}"):
        (folder / VERSIONS).mkdir(parents=True, exist_ok=True)
    with _alone(folder, report):
        version = _same(folder, origin) if again else None
        if version is None:
            version = _make(folder, made, origin, metrics)
        comparison = _compare_with_promoted(folder, version)
        if comparison.promote if promote is None else promote:
            try:
                _promote(folder, version, "training", report)
            except TrainingError as error:
                command = promote_command(folder, version)
                raise TrainingError(
                    f"version {version.number} was made, but not promoted: {error}; then {command}"
                ) from error
        promoted = _promotions_if_known(folder).promoted == version.number
        return Added(version, promoted, "" if promote is False else comparison.reason)


def promote(folder: Path, number: int, report: Report = _silent) -> Change:
    """Make a version the one that answers. Raises ModelError for one that is missing or damaged."""
    with _alone(folder, report):
        return _promote(folder, whole_version(folder, number), "promote", report)


def promote_command(folder: Path, version: Version) -> str:
    """What to type to promote a version of the pipeline in `folder`."""
    words = ["digits", "versions", "promote", str(version.number), "--pipeline", version.origin.pipeline]
    return shlex.join([*words, "--models_dir", str(folder.parent)])


def roll_back(folder: Path, report: Report = _silent) -> Change:
    """Promote the version that was promoted before; those deleted since are passed over.

    Raises ModelError where there was none before, or where it is damaged.
    """
    with _alone(folder, report):
        promotions, there = read_promotions(folder), numbers(folder)
        for number in promotions.before():
            if number in there and number != promotions.promoted:
                return _promote(folder, whole_version(folder, number), "rollback", report)
            if number not in there:
                report(f"version {number} was promoted before, but is gone")
    now = "no version is promoted" if promotions.promoted is None else f"version {promotions.promoted} is promoted"
    raise ModelError(f"{now} in {folder}, and none before it: digits versions promote NUMBER takes any version")


def prune(folder: Path, keep: int, *, really: bool = False, report: Report = _silent) -> Pruning:
    """Delete the versions that are older than the newest `keep` whole ones, but never the promoted one.

    Nor one whose files are the pipeline's own, be it promoted or not. Without `really` it only says which. Raises
    ModelError where nobody can tell which one is promoted.
    """
    if keep < 1:
        raise ConfigError([f"keep: expected 1 or more, got {keep}"])
    with _alone(folder, report):
        promoted = read_promotions(folder).promoted
        there = numbers(folder)
        newest = [number for number in reversed(there) if _is_whole(folder, number)][:keep]
        used = {promoted, in_place(folder)}
        goes = [n for n in there if len(newest) == keep and n < newest[-1] and n not in used]
        for number in goes if really else ():
            gone = folder / VERSIONS / f"{_GONE}-{number}"
            with _disk(f"could not delete {version_folder(folder, number)}"):
                version_folder(folder, number).rename(gone)
                shutil.rmtree(gone)
    return Pruning(tuple(goes), tuple(n for n in there if n not in goes))


def record(folder: Path, number: int, protocol: str, recordings: str, figures: Mapping[str, Any]) -> None:
    """Add figures to the metrics of a version, in the place of older ones of the same protocol and recordings.

    Raises ModelError for a version that is missing or whose description is damaged, TrainingError where the disk
    refuses.
    """
    with _alone(folder, _silent):
        version = read_version(folder, number)
        metrics = {name: dict(found) for name, found in version.metrics.items()}
        metrics.setdefault(protocol, {})[recordings] = dict(figures)
        path = version_folder(folder, number) / RECORD
        with _disk(f"could not write {path}"):
            write_durably(path, _described(replace(version, metrics=metrics)))


def attach(folder: Path, number: int, name: str, content: bytes, report: Report = _silent) -> bool:
    """Add a file that was made of a version to it; False where it has one of that name, which stays.

    Raises ModelError for a version that is missing or damaged, TrainingError where the disk refuses.
    """
    with _alone(folder, report):
        version = whole_version(folder, number)
        if name in version.files:
            return False
        used = number in (_promotions_if_known(folder).promoted, in_place(folder))
        files = {**version.files, name: FileRecord(len(content), hashlib.sha256(content).hexdigest())}
        within = version_folder(folder, number)
        with _disk(f"could not add {name} to {within}"):
            write_durably(within / name, content)
            write_durably(within / RECORD, _described(replace(version, files=files)))
            if used:
                write_durably(folder / name, content)
        return True


def settle(folder: Path, report: Report = _silent) -> None:
    """Finish what a killed process began. Raises TrainingError where the disk refuses."""
    if _is_unsettled(folder):
        with _alone(folder, report):
            pass


# --- one after another ---------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(folder: Path, report: Report) -> Iterator[None]:
    """Nobody else writes here meanwhile, and what somebody left half done is done or undone first."""
    if not (folder / VERSIONS).is_dir():
        raise ModelError(f"{folder} has no versions: train one, or name another folder with --models_dir")
    with locked(folder / VERSIONS / LOCK):
        with _disk(f"could not clear {folder / VERSIONS}"):
            for left in _leftovers(folder):
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()
        _settle(folder, report)
        yield


def _leftovers(folder: Path) -> list[Path]:
    inside = folder / VERSIONS
    half_written = (f"{PROMOTED}.*.tmp", f"[1-9]*/{RECORD}.*.tmp")
    return [
        *folder.glob(f".*{_BESIDE}*"),
        *(path for pattern in (_NEW, f"{_GONE}-*", *half_written) for path in inside.glob(pattern)),
    ]


def _is_unsettled(folder: Path) -> bool:
    if not (folder / VERSIONS).is_dir():
        return False
    with contextlib.suppress(ModelError):
        if not read_promotions(folder).finished:
            return True
    return bool(_leftovers(folder))


def _settle(folder: Path, report: Report) -> None:
    """Finish the promotion that is not finished, or take it back where its version is damaged."""
    try:
        promotions = read_promotions(folder)
    except ModelError:  # whoever needs to know which one is promoted raises it
        return
    while not promotions.finished:
        if promotions.promoted is None:
            _write_promotions(folder, Promotions())
            return
        try:
            _put_in_place(folder, whole_version(folder, promotions.promoted))
        except ModelError as error:
            report(f"version {promotions.promoted} is not promoted after all: {error}")
            promotions = replace(promotions, history=promotions.history[:-1])
            _write_promotions(folder, promotions)
            continue
        report(f"finished the promotion of version {promotions.promoted} that a killed process had begun")
        promotions = replace(promotions, finished=True)
        _write_promotions(folder, promotions)


@contextlib.contextmanager
def _disk(failed: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{failed}: {error.strerror or error}; make room, or look at the rights of the folder"
        ) from error


# --- making --------------------------------------------------------------------------------------


def _make(folder: Path, made: Path, origin: Origin, metrics: Metrics) -> Version:
    new = folder / VERSIONS / _NEW
    promotions = _promotions_if_known(folder)
    number = max([*numbers(folder), *(p.version for p in promotions.history)], default=0) + 1
    files = {}
    with _disk(f"could not write version {number} in {folder / VERSIONS}"):
        try:
            for source in sorted(made.iterdir()):
                content = source.read_bytes()
                files[source.name] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
                write_durably(new / source.name, content)
            version = Version(number, _now(), promotions.promoted, origin, metrics, files)
            write_durably(new / RECORD, _described(version))
            new.rename(version_folder(folder, number))
            flush_folder(folder / VERSIONS)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
    return read_version(folder, number)


def _promotions_if_known(folder: Path) -> Promotions:
    """A damaged promoted.json must not cost a training."""
    try:
        return read_promotions(folder)
    except ModelError:
        return Promotions()


def _compare_with_promoted(folder: Path, version: Version) -> Comparison:
    promoted = _promotions_if_known(folder).promoted
    if promoted in (None, version.number):
        return Comparison(True, "")
    try:
        return compare_for_promotion(version, whole_version(folder, promoted))
    except ModelError as error:  # a damaged one must not keep a whole one from answering
        return Comparison(True, str(error))


def _same(folder: Path, origin: Origin) -> Version | None:
    """The newest whole version with the weights of `origin`."""
    for number in reversed(numbers(folder)):
        with contextlib.suppress(ModelError):
            version = whole_version(folder, number)
            if version.origin.weights_hash == origin.weights_hash:
                return version
    return None


def _is_whole(folder: Path, number: int) -> bool:
    try:
        whole_version(folder, number)
    except ModelError:
        return False
    return True


def _described(version: Version) -> bytes:
    return json_bytes(sealed(finite(version.to_dict())))


# --- promoting -----------------------------------------------------------------------------------


def _promote(folder: Path, version: Version, how: str, report: Report) -> Change:
    try:
        promotions = read_promotions(folder)
    except ModelError as error:
        report(f"{error}: the history of promotions begins anew")
        promotions = Promotions()
    before, history = promotions.promoted, promotions.history
    if before != version.number:
        history = (*history, Promotion(version.number, _now(), how))
    _put_in_place(folder, version, Promotions(history, finished=False))
    _write_promotions(folder, Promotions(history))
    return Change(version.number, before)


def _put_in_place(folder: Path, version: Version, announced: Promotions | None = None) -> None:
    """Copy the files of a version to the pipeline's own, and remove those that only other versions have.

    `announced` is written when the copies lie beside their places and nothing but renaming is left.
    """
    beside = {name: folder / f".{name}{_BESIDE}" for name in version.files}
    try:
        with _disk(f"could not copy version {version.number} to {folder}"):
            for name, path in beside.items():
                write_durably(path, read_file(folder, version, name))
        if announced is not None:
            _write_promotions(folder, announced)
        with _disk(f"could not put the files of version {version.number} in place"):
            for name, path in beside.items():
                path.replace(folder / name)
            for name in _names_of_others(folder, version):
                (folder / name).unlink(missing_ok=True)
            flush_folder(folder)
    finally:
        for path in beside.values():
            with contextlib.suppress(OSError):
                path.unlink()


def _names_of_others(folder: Path, version: Version) -> set[str]:
    names: set[str] = set()
    for number in numbers(folder):
        with contextlib.suppress(ModelError):
            names |= read_version(folder, number).files.keys()
    return names - version.files.keys()


def _write_promotions(folder: Path, promotions: Promotions) -> None:
    values = {
        "format": FORMAT, "promoted": promotions.promoted, "finished": promotions.finished,
        "history": [vars(promotion) for promotion in promotions.history],
    }  # fmt: skip
    path = folder / VERSIONS / PROMOTED
    with _disk(f"could not write {path}"):
        write_durably(path, json_bytes(values))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
