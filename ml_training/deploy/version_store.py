"""Add, promote, roll back and prune versions; digit_detector/versions.py describes the folders and reads them.

Everything is written to versions/.tmp first and renamed into place when complete. No number is used twice and no file
of a version is overwritten; only metrics and further exports are added.

A promotion (1) copies the version's files to versions/.tmp, (2) replaces promoted.json, which decides and says that
copying is unfinished, (3) renames the copies into the pipeline's folder, (4) marks promoted.json as finished. Killed
before (2), nothing has changed. Killed later, the version is promoted and read from its own folder until the next
change or `digits versions list` repeats the copying (`recover`).
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from digit_detector import versions
from digit_detector.errors import ConfigError, MissingExtraError, ModelError, TrainingError
from digit_detector.files import json_bytes, sync_folder, write_durably
from digit_detector.versions import FileRecord, Metrics, Promotion, Promotions, Provenance, Version, version_folder

LOCK = ".lock"
WORK = ".tmp"
TIMEOUT = 60.0  # seconds to wait for the lock; a change copies a few megabytes

Report = Callable[[str], None]


@dataclass(frozen=True)
class Added:
    """The version that a training became."""

    version: Version
    promoted: bool
    reason: str = ""  # the comparison with the version promoted before


def add(
    folder: Path, made: Path, provenance: Provenance, metrics: Metrics, *, promote: bool | None = None,
    again: bool = False, report: Report = lambda line: None,
) -> Added:  # fmt: skip
    """Add the files in the folder `made` as the next version of the pipeline in `folder`, and promote it.

    `promote` None does so unless the version is worse than the promoted one (`compare_with_promoted`). `again` reuses
    a version of the same weights: a run resumed after its end is not a second version. Raises TrainingError where the
    disk refuses; a version that was complete by then stays.
    """
    with contextlib.suppress(OSError):  # locking raises it
        (folder / versions.VERSIONS).mkdir(parents=True, exist_ok=True)
    with _locked(folder, report):
        version = _find_same_weights(folder, provenance.weights_hash) if again else None
        if version is None:
            version = _create(folder, made, provenance, metrics)
        better, reason = compare_with_promoted(folder, version)
        if better if promote is None else promote:
            try:
                _promote(folder, version, "training")
            except OSError as error:
                raise TrainingError(
                    f"version {version.number} was made, but not promoted: {error.strerror or error}; make room, "
                    f"then {promote_command(folder, version)}"
                ) from error
        promoted = _promotions(folder).promoted == version.number
        return Added(version, promoted, "" if promote is False else reason)


def promote(folder: Path, number: int, report: Report = lambda line: None) -> int | None:
    """Promote a version; returns the one promoted before. Raises ModelError for one that is missing or damaged."""
    with _locked(folder, report):
        return _promote(folder, versions.read_intact_version(folder, number), "promote")


def promote_command(folder: Path, version: Version) -> str:
    """The command line that promotes a version of the pipeline in `folder`."""
    words = ["digits", "versions", "promote", str(version.number), "--pipeline", version.provenance.pipeline]
    return shlex.join([*words, "--models_dir", str(folder.parent)])


def roll_back(folder: Path, report: Report = lambda line: None) -> tuple[int, int | None]:
    """Promote the version that was promoted before, skipping deleted ones; returns its number and the one it replaces.

    Raises ModelError where there is none, or where it is damaged.
    """
    with _locked(folder, report):
        promotions, existing = versions.read_promotions(folder), versions.version_numbers(folder)
        for number in promotions.before():
            if number in existing and number != promotions.promoted:
                return number, _promote(folder, versions.read_intact_version(folder, number), "rollback")
            if number not in existing:
                report(f"version {number} was promoted before, but is deleted")
    now = "no version is promoted" if promotions.promoted is None else f"version {promotions.promoted} is promoted"
    raise ModelError(f"{now} in {folder}, and none before it: digits versions promote NUMBER takes any version")


def prune(folder: Path, keep: int, *, delete: bool, report: Report = lambda line: None) -> tuple[list[int], list[int]]:
    """Delete the versions older than the newest `keep` intact ones, but never the promoted one.

    Returns the numbers to delete and to keep; without `delete` nothing is deleted. Raises ModelError where
    promoted.json is damaged.
    """
    if keep < 1:
        raise ConfigError([f"keep: expected 1 or more, got {keep}"])
    with _locked(folder, report):
        promoted, existing = versions.read_promotions(folder).promoted, versions.version_numbers(folder)
        newest: list[int] = []
        for number in reversed(existing):
            with contextlib.suppress(ModelError):
                newest.append(versions.read_intact_version(folder, number).number)
        to_delete = [n for n in existing if len(newest) >= keep and n < newest[keep - 1] and n != promoted]
        for number in to_delete if delete else ():
            version_folder(folder, number).rename(_work_folder(folder) / str(number))
    return to_delete, [n for n in existing if n not in to_delete]


def record_metrics(folder: Path, number: int, protocol: str, recordings: str, figures: Mapping[str, Any]) -> None:
    """Set the metrics of a version for one protocol and one set of recordings.

    Raises ModelError for a missing version or a damaged version.json, TrainingError where the disk refuses.
    """
    with _locked(folder):
        version = versions.read_version(folder, number)
        others = version.metrics.get(protocol, {})
        metrics = {**version.metrics, protocol: {**others, recordings: figures}}
        _write_record(folder, replace(version, metrics=metrics))


def add_file(folder: Path, number: int, name: str, content: bytes, report: Report = lambda line: None) -> bool:
    """Add a further export to a version, to be promoted with it; False, unchanged, where it has that file already.

    Raises ModelError for a version that is missing or damaged, TrainingError where the disk refuses.
    """
    with _locked(folder, report):
        version, promotions = versions.read_intact_version(folder, number), _promotions(folder)
        if name in version.files:
            return False
        if number == promotions.promoted:
            _write_promotions(folder, promotions, finished=False)
        _write(folder, version_folder(folder, number) / name, content)
        version = replace(version, files={**version.files, name: _describe(content)})
        _write_record(folder, version)
        if number == promotions.promoted:
            _copy_promoted(folder, version, promotions)
        return True


def recover(folder: Path, report: Report = lambda line: None) -> None:
    """Finish the promotion of a killed process. Raises ModelError or TrainingError where that fails."""
    if (folder / versions.VERSIONS / WORK).exists() or not _promotions(folder).finished:
        with _locked(folder, report):
            pass


def compare_with_promoted(folder: Path, version: Version) -> tuple[bool, str]:
    """Whether a new version should replace the promoted one, and why.

    The errors on the same test clips decide; a model of synthetic speech never replaces one of recordings.
    """
    number = _promotions(folder).promoted
    if number is None or number == version.number:
        return True, ""
    try:
        promoted = versions.read_intact_version(folder, number)
    except ModelError as error:
        return True, str(error)
    before = f"version {number}"
    if version.provenance.synthetic != promoted.provenance.synthetic:
        if version.provenance.synthetic:
            return False, f"it learnt from synthetic speech, {before} from recordings"
        return True, f"it learnt from recordings, {before} from synthetic speech"
    new, old = version.provenance.training, promoted.provenance.training
    if "test_hash" not in old or new.get("test_hash") != old["test_hash"]:
        return True, f"not comparable with {before}, which was tested on other clips"
    errors = f"{new['test_errors']} errors in {new['test_clips']} test clips"
    return new["test_errors"] <= old["test_errors"], f"{errors}, {before} has {old['test_errors']} in the same"


# --- steps under the lock ------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(folder: Path, report: Report = lambda line: None) -> Iterator[None]:
    """Hold the lock of a pipeline's versions, after recovery. OSError becomes TrainingError."""
    inside = folder / versions.VERSIONS
    if not inside.is_dir():
        raise ModelError(f"{folder} has no versions: train one, or name another folder with --models_dir")
    try:
        from filelock import FileLock  # here, since listing versions does without it
    except ImportError as error:
        raise MissingExtraError("changing versions", "train") from error
    try:
        with FileLock(inside / LOCK, timeout=TIMEOUT):
            try:
                shutil.rmtree(inside / WORK, ignore_errors=True)
                _recover(folder, report)
                yield
            finally:
                shutil.rmtree(inside / WORK, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or "locked by another process"  # filelock's Timeout has none
        raise TrainingError(
            f"could not change the versions in {inside}: {reason}; make room, check the rights, or wait"
        ) from error


def _recover(folder: Path, report: Report) -> None:
    promotions = _promotions(folder)
    if promotions.finished or promotions.promoted is None:
        return
    try:
        _copy_promoted(folder, versions.read_intact_version(folder, promotions.promoted), promotions)
        report(f"finished the promotion of version {promotions.promoted}, which a killed process had begun")
    except ModelError as error:
        report(f"the promotion of version {promotions.promoted} cannot be finished: {error}")


def _promotions(folder: Path) -> Promotions:
    """Those of promoted.json; a damaged one counts as none, since that must not cost a training."""
    try:
        return versions.read_promotions(folder)
    except ModelError:
        return Promotions()


def _find_same_weights(folder: Path, weights_hash: str) -> Version | None:
    for number in reversed(versions.version_numbers(folder)):
        with contextlib.suppress(ModelError):
            version = versions.read_intact_version(folder, number)
            if version.provenance.weights_hash == weights_hash:
                return version
    return None


def _create(folder: Path, made: Path, provenance: Provenance, metrics: Metrics) -> Version:
    promotions, files = _promotions(folder), {}
    number = max([*versions.version_numbers(folder), *(p.version for p in promotions.history)], default=0) + 1
    for source in sorted(made.iterdir()):
        content = source.read_bytes()
        files[source.name] = _describe(content)
        write_durably(_work_folder(folder) / source.name, content)
    version = Version(number, _now(), promotions.promoted, provenance, metrics, files)
    write_durably(_work_folder(folder) / versions.RECORD, json_bytes(version.to_dict()))
    _work_folder(folder).rename(version_folder(folder, number))
    sync_folder(folder / versions.VERSIONS)
    return versions.read_version(folder, number)


def _describe(content: bytes) -> FileRecord:
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


def _work_folder(folder: Path) -> Path:
    path = folder / versions.VERSIONS / WORK
    path.mkdir(exist_ok=True)
    return path


def _write(folder: Path, path: Path, content: bytes) -> None:
    work = _work_folder(folder) / path.name
    write_durably(work, content)
    work.replace(path)
    sync_folder(path.parent)


def _write_record(folder: Path, version: Version) -> None:
    path = version_folder(folder, version.number) / versions.RECORD
    _write(folder, path, json_bytes(version.to_dict()))


def _promote(folder: Path, version: Version, how: str) -> int | None:
    promotions = _promotions(folder)
    before, history = promotions.promoted, promotions.history
    if before != version.number:
        history = (*history, Promotion(version.number, _now(), how))
    _copy_promoted(folder, version, Promotions(history))
    return before


def _copy_promoted(folder: Path, version: Version, promotions: Promotions) -> None:
    """Replace the pipeline's own files by those of `version`, the last of `promotions`: steps 1 to 4 of a promotion."""
    for name in version.files:
        write_durably(_work_folder(folder) / name, versions.read_file(folder, version, name))
    _write_promotions(folder, promotions, finished=False)
    for name in version.files:
        (_work_folder(folder) / name).replace(folder / name)
    for number in versions.version_numbers(folder):  # e.g. an int8 export that this version does not have
        with contextlib.suppress(ModelError):
            for name in versions.read_version(folder, number).files.keys() - version.files.keys():
                (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
    _write_promotions(folder, promotions, finished=True)


def _write_promotions(folder: Path, promotions: Promotions, finished: bool) -> None:
    values = {
        "format": versions.FORMAT, "promoted": promotions.promoted, "finished": finished,
        "history": [vars(promotion) for promotion in promotions.history],
    }  # fmt: skip
    _write(folder, folder / versions.VERSIONS / versions.PROMOTED, json_bytes(values))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
