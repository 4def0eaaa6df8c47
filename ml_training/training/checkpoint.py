"""Checkpoints: written beside and renamed, read without unpickling, never mixed up between runs.

A checkpoint is one torch file of plain tensors and primitives. It names its format, pipeline,
settings and data, so that `--resume` can refuse to go on with something else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from digit_detector.errors import CheckpointError, DataError
from digit_detector.files import write_durably
from digit_detector.model_file import git_commit
from digit_detector.versions import VERSIONS
from ml_training import __version__
from ml_training.config import AugmentationConfig, TrainConfig, to_dict
from ml_training.data.augmentation.noise import load_noise_bank
from ml_training.deploy import checkpoints
from ml_training.utils.temporary import clear_half_written

FORMAT = "streaming-digit-detector checkpoint"
VERSION = 1
BEST = checkpoints.BEST
INTERRUPTED = "checkpoint_interrupted.pt"

# Settings that change no weight: places, speed, and where the data come from (their hash is compared instead).
FREE_SETTINGS = frozenset(
    {
        "models_dir",
        "log_dir",
        "threads",
        "device",
        "keep_checkpoints",
        "resume",
        "dataset",
        "data_dir",
        "data_url",
        "words_dir",
        "teacher_dir",
        "extra_dir",
        "promote",
        "mlflow",
        "cache",
        "waveforms",
    }
)

Checkpoint = dict[str, Any]


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint must have in common with the run that goes on from it."""

    pipeline: str
    config: TrainConfig  # resolved
    data_hash: str
    synthetic: bool = False

    @property
    def noise_hash(self) -> str:
        """Of the recorded backgrounds it trains with; empty without any."""
        augmentation = self.config.augmenting
        if augmentation.noise_dir is None or not augmentation.enabled:
            return ""
        return load_noise_bank(augmentation.noise_dir).data_hash

    @property
    def teachers_hash(self) -> str:
        """Of the models it learns from; empty without any."""
        return teachers_hash(self.config.teacher_dir) if self.config.teacher_dir is not None else ""


class CheckpointStore:
    """The checkpoints of one pipeline in one folder; the best weights go to the file `best`, there by default."""

    def __init__(
        self,
        folder: Path,
        identity: RunIdentity,
        report: Callable[[str], None] = lambda line: None,
        best: Path | None = None,
    ) -> None:
        self.folder = folder
        self.best = best or folder / BEST
        self.identity = identity
        self.report = report
        self.keep = identity.config.keep_checkpoints
        clear_half_written(folder)

    def epochs(self) -> dict[int, Path]:
        """Epoch -> file of every checkpoint_epoch_NNN.pt, in order."""
        found = (
            (re.fullmatch(r"checkpoint_epoch_(\d{3,})\.pt", p.name), p)
            for p in self.folder.glob("checkpoint_epoch_*.pt")
        )
        return dict(sorted((int(match[1]), path) for match, path in found if match))

    def save_epoch(self, epoch: int, state: Mapping[str, Any]) -> Path:
        """Write the state after a whole epoch; then drop what it makes superfluous."""
        path = self.folder / f"checkpoint_epoch_{epoch:03d}.pt"
        self._save(path, {"kind": "epoch", "epoch": epoch, "step": 0, "state": dict(state)})
        superfluous = [] if self.keep == "all" else list(self.epochs().values())[: -int(self.keep)]
        self._remove([self.folder / INTERRUPTED, *superfluous])
        return path

    def save_interrupted(self, epoch: int, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after `epoch` whole epochs and `step` steps of the next one."""
        path = self.folder / INTERRUPTED
        self._save(path, {"kind": "interrupted", "epoch": epoch, "step": step, "state": dict(state)})
        return path

    def save_best(self, epoch: int, weights: Mapping[str, torch.Tensor], figures: Mapping[str, float]) -> Path:
        """Write the weights that are tested, exported and shipped."""
        self._save(self.best, {"kind": "best", "epoch": epoch, "weights": dict(weights), "validation": dict(figures)})
        return self.best

    def start_anew(self) -> None:
        """Drop the checkpoints of an earlier run; best_model.pt and model.onnx stay until they are replaced."""
        self._drop([*self.epochs().values(), self.folder / INTERRUPTED], "of an earlier run")

    def resume(self, wanted: str) -> Checkpoint | None:
        """The checkpoint to go on from: `latest`, or that of one epoch. None where there is nothing to resume.

        A damaged newest checkpoint is reported and the one before is taken. Raises CheckpointError where the
        epoch asked for is not there, all are damaged, or they belong to other settings or data.
        """
        if wanted != "latest":
            checkpoint = self._named_epoch(int(wanted))
            later = [path for epoch, path in self.epochs().items() if epoch > int(wanted)]
            self._drop([*later, self.folder / INTERRUPTED], f"after epoch {int(wanted)}")
            return checkpoint
        candidates = [(epoch, 0, path) for epoch, path in self.epochs().items()]
        damaged: list[CheckpointError] = []
        found: list[tuple[int, int, Checkpoint]] = []
        if (interrupted := self.folder / INTERRUPTED).exists():
            try:
                checkpoint = _load_state(interrupted)
                found.append((checkpoint["epoch"], checkpoint["step"], checkpoint))
            except CheckpointError as error:
                damaged.append(error)
                self.report(f"{error} Going on from an earlier checkpoint instead.")
        for epoch, step, path in reversed(candidates):
            if found and found[0][:2] >= (epoch, step):
                break
            try:
                found.insert(0, (epoch, step, _load_state(path)))
                break
            except CheckpointError as error:
                damaged.append(error)
                self.report(f"{error} Going on from an earlier checkpoint instead.")
        if found:
            self._refuse_others(found[0][2])
            return found[0][2]
        if damaged:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read ({len(damaged)} damaged): start anew without --resume"
            )
        return None

    def _named_epoch(self, epoch: int) -> Checkpoint:
        there = self.epochs()
        if epoch not in there:
            names = ", ".join(map(str, there)) or "none"
            raise CheckpointError(
                f"no checkpoint of epoch {epoch} in {self.folder} (epochs there: {names}): "
                "choose one of these, or --resume alone for the latest; --keep_checkpoints all keeps every one"
            )
        checkpoint = _load_state(there[epoch])
        self._refuse_others(checkpoint)
        return checkpoint

    def _refuse_others(self, checkpoint: Checkpoint) -> None:
        faults = []
        if checkpoint["pipeline"] != self.identity.pipeline:
            faults.append(f"pipeline was {checkpoint['pipeline']}, is {self.identity.pipeline}")
        if checkpoint["data_hash"] != self.identity.data_hash:
            faults.append(f"data hash was {checkpoint['data_hash'][:12]}, is {self.identity.data_hash[:12]}")
        for folder, key in (("noise_dir", "noise_hash"), ("teacher_dir", "teachers_hash")):
            then, now = checkpoint.get(key, ""), getattr(self.identity, key)
            if then != now:
                faults.append(f"hash of {folder} was {then[:12] or 'none'}, is {now[:12] or 'none'}")
        faults += _differences(checkpoint["config"], to_dict(self.identity.config))
        if faults:
            raise CheckpointError(
                f"the checkpoints in {self.folder} belong to another run: {'; '.join(faults)}. "
                "Give the old settings and data again, or start anew without --resume"
            )
        if checkpoint["package_version"] != __version__:
            self.report(
                f"note: the checkpoint was written by version {checkpoint['package_version']}, this is {__version__}"
            )

    def _drop(self, paths: list[Path], why: str) -> None:
        there = [path for path in paths if path.exists()]
        self._remove(there)
        if there:
            names = there[0].name if len(there) == 1 else f"{there[0].name} ... {there[-1].name}"
            self.report(f"removed {len(there)} checkpoint{'s' * (len(there) > 1)} {why} from {self.folder} ({names})")

    def _remove(self, paths: list[Path]) -> None:
        try:
            for path in paths:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot remove old checkpoint {path}: {error.strerror or error}. Change --models_dir"
            ) from error

    def _save(self, path: Path, content: Mapping[str, Any]) -> None:
        head = {
            "format": FORMAT, "version": VERSION, "package_version": __version__, "pipeline": self.identity.pipeline,
            "config": to_dict(self.identity.config), "data_hash": self.identity.data_hash,
            "synthetic": self.identity.synthetic, "noise_hash": self.identity.noise_hash,
            "teachers_hash": self.identity.teachers_hash, "git_commit": git_commit(),
        }  # fmt: skip
        try:
            write_durably(path, _to_bytes({**head, **content}))
        except OSError as error:
            last = max(self.epochs().items(), default=None)
            kept = f"; the last good one is {last[1].name}, --resume goes on from it" if last else ""
            raise CheckpointError(
                f"cannot write checkpoint {path}: {error.strerror or error}. Make room or change --models_dir{kept}"
            ) from error


def teacher_files(folder: str) -> list[Path]:
    """Where the weights lie, versions that are not promoted left out. Raises DataError where there are none."""
    root = Path(os.path.expanduser(folder))
    files = sorted(root.rglob(BEST)) if root.is_dir() else []
    files = [path for path in files if not _is_of_version(path.relative_to(root))]  # the promoted one lies above
    if not files:
        raise DataError(f"teacher_dir {folder} holds no {BEST}: expected a folder of trained models")
    return files


def _is_of_version(path: Path) -> bool:
    return path.parent.name.isdecimal() and path.parent.parent.name == VERSIONS


@lru_cache(maxsize=4)
def teachers_hash(folder: str) -> str:
    """SHA-256 of all their weights."""
    digest = hashlib.sha256()
    for path in teacher_files(folder):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one of our checkpoints onto the CPU, checksums and all; nothing in it is unpickled as code.

    Raises CheckpointError for a missing, damaged or foreign file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load itself does not notice a flipped bit in a weight.
            if (entry := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {entry}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}: train first, or look at --models_dir") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of this program: it holds more than plain tensors"
        ) from error
    except (OSError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged or no checkpoint ({reason}).") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this program: remove it or choose another --models_dir")
    if content["version"] != VERSION:
        raise CheckpointError(f"{path} has format {content['version']}, this version reads {VERSION}: train anew")
    return content


def _load_state(path: Path) -> Checkpoint:
    """A checkpoint that training can go on from. Raises CheckpointError for any other file."""
    checkpoint = load_checkpoint(path)
    if "state" not in checkpoint:
        raise CheckpointError(
            f"{path} holds weights alone ({checkpoint.get('kind')}): nothing to go on from, remove it."
        )
    return checkpoint


def _to_bytes(content: Mapping[str, Any]) -> bytes:
    # Through memory: torch's own file writer turns a full disk into an unclear RuntimeError.
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that change the weights and are not the same."""
    free = set(FREE_SETTINGS)
    if then.get("scheduler") == now.get("scheduler") == "plateau":
        free.add("epochs")  # the only schedule that does not depend on how long the run will be
    # What older checkpoints do not tell.
    before, after = {"compile": False, "width": 1.0, "fold": None, **_flat(then)}, _flat(now)
    return [
        f"{name} was {before.get(name)}, is {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if name not in free and before.get(name) != after.get(name)
    ]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = {k: v for k, v in config.items() if k != "augmentation"}
    inner = config.get("augmentation") or {f.name: None for f in dataclasses.fields(AugmentationConfig)}
    return flat | {f"augmentation.{k}": tuple(v) if isinstance(v, list) else v for k, v in inner.items()}
