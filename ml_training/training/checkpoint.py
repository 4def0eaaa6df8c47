"""Checkpoints: written beside and renamed, read without unpickling, never mixed up between runs.

A checkpoint is one torch file of plain tensors and primitives. It names its format, pipeline, settings and data, so
that `--resume` can refuse to continue another run.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from digit_detector.errors import CheckpointError
from digit_detector.files import write_durably
from digit_detector.model_file import git_commit
from ml_training import __version__
from ml_training.config import flatten_settings, rename_settings
from ml_training.deploy import checkpoints
from ml_training.utils.temporary import clear_half_written

FORMAT = "streaming-digit-detector checkpoint"
VERSION = 1
BEST = checkpoints.BEST
INTERRUPTED = "checkpoint_interrupted.pt"

# Settings that change no weight: paths, speed, and where the data come from (their hash is compared instead).
FREE_SETTINGS = frozenset(
    ("models_dir", "log_dir", "threads", "device", "keep_checkpoints", "resume", "dataset", "data_dir", "data_url",
     "non_digit_dir", "teacher_dir", "extra_digits_dir", "promote", "mlflow", "cache", "clip_storage")
)  # fmt: skip

Weights = dict[str, Tensor]
Checkpoint = dict[str, Any]


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint must have in common with the run that resumes it."""

    pipeline: str
    settings: Mapping[str, Any]  # plain values; "keep_checkpoints" says how many epochs to keep, a number or "all"
    data_hash: str
    synthetic: bool = False
    noise_hash: str = ""  # of the recorded background noise
    teachers_hash: str = ""  # of the models it is distilled from


class CheckpointStore:
    """The checkpoints of one training in one folder; the best weights go to the file `best`, by default in it too."""

    def __init__(
        self, folder: Path, identity: RunIdentity, report: Callable[[str], None] = lambda line: None,
        best: Path | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.identity, self.report = folder, identity, report
        self.best = best or folder / BEST
        self.interrupted = folder / INTERRUPTED
        self.keep = str(identity.settings.get("keep_checkpoints", 1))
        clear_half_written(folder)

    def epochs(self) -> dict[int, Path]:
        """Epoch -> file of every checkpoint_epoch_NNN.pt, in order."""
        names = ((re.fullmatch(r"checkpoint_epoch_(\d{3,})\.pt", p.name), p) for p in self.folder.glob("*.pt"))
        return dict(sorted((int(match[1]), path) for match, path in names if match))

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint to resume."""
        return bool(self.epochs()) or self.interrupted.exists()

    def save_epoch(self, epoch: int, state: Mapping[str, Any]) -> Path:
        """Write the state after a whole epoch, then remove older checkpoints as `keep_checkpoints` says."""
        path = self.folder / f"checkpoint_epoch_{epoch:03d}.pt"
        self._save(path, {"kind": "epoch", "epoch": epoch, "step": 0, "state": dict(state)})
        old = [] if self.keep == "all" else list(self.epochs().values())[: -int(self.keep)]
        for superseded in (self.interrupted, *old):
            superseded.unlink(missing_ok=True)
        return path

    def save_interrupted(self, epoch: int, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after `epoch` whole epochs and `step` steps of the next one."""
        self._save(self.interrupted, {"kind": "interrupted", "epoch": epoch, "step": step, "state": dict(state)})
        return self.interrupted

    def save_best(self, epoch: int, weights: Mapping[str, Tensor], figures: Mapping[str, float]) -> Path:
        """Write the weights that are tested, exported and shipped."""
        self._save(self.best, {"kind": "best", "epoch": epoch, "weights": dict(weights), "validation": dict(figures)})
        return self.best

    def start_anew(self) -> None:
        """Remove the checkpoints of an earlier run; best_model.pt and model.onnx stay until they are replaced."""
        self._drop([*self.epochs().values(), self.interrupted], "of an earlier run")

    def resume(self, which: str) -> Checkpoint | None:
        """The checkpoint to resume: `latest`, or that of one epoch; None if `latest` finds no file.

        A damaged newest checkpoint is reported and the one before is used. Raises CheckpointError if the requested
        epoch is missing, all files are damaged, or they belong to other settings or data.
        """
        epochs = self.epochs()
        if which == "latest":
            checkpoint = self._latest(epochs)
        elif (epoch := int(which)) not in epochs:
            raise CheckpointError(
                f"no checkpoint of epoch {epoch} in {self.folder} (available: {', '.join(map(str, epochs)) or 'none'})"
                ": choose one of these, or --resume alone for the latest; --keep_checkpoints all keeps every one"
            )
        else:
            checkpoint = _load_state(epochs[epoch])
        if checkpoint is not None:
            self._check_identity(checkpoint)
        if which != "latest":
            later = [path for number, path in epochs.items() if number > int(which)]
            self._drop([*later, self.interrupted], f"after epoch {int(which)}")
        return checkpoint

    def _latest(self, epochs: Mapping[int, Path]) -> Checkpoint | None:
        interrupted = [self.interrupted] if self.interrupted.exists() else []
        newest = [self._first_readable(paths) for paths in (interrupted, list(epochs.values())[::-1])]
        readable = [checkpoint for checkpoint in newest if checkpoint is not None]
        if not readable and (files := len(interrupted) + len(epochs)):
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read ({files} damaged): start a new training without --resume"
            )
        return max(readable, key=lambda checkpoint: (checkpoint["epoch"], checkpoint["step"]), default=None)

    def _first_readable(self, paths: Iterable[Path]) -> Checkpoint | None:
        for path in paths:
            try:
                return _load_state(path)
            except CheckpointError as error:
                self.report(f"{error} Using an earlier checkpoint instead.")
        return None

    def _check_identity(self, checkpoint: Checkpoint) -> None:
        own, faults = self.identity, []
        if checkpoint["pipeline"] != own.pipeline:
            faults.append(f"pipeline was {checkpoint['pipeline']}, is {own.pipeline}")
        for name, key in (("data", "data_hash"), ("noise_dir", "noise_hash"), ("teacher_dir", "teachers_hash")):
            before, now = checkpoint.get(key, ""), getattr(own, key)
            if before != now:
                faults.append(f"hash of {name} was {before[:12] or 'none'}, is {now[:12] or 'none'}")
        faults += _differences(checkpoint["config"], own.settings)
        if faults:
            raise CheckpointError(
                f"the checkpoints in {self.folder} belong to another run: {'; '.join(faults)}. "
                "Use the same settings and data, or start a new training without --resume"
            )
        if checkpoint["package_version"] != __version__:
            self.report(
                f"note: the checkpoint was written by version {checkpoint['package_version']}, this is {__version__}"
            )

    def _drop(self, paths: Iterable[Path], why: str) -> None:
        if existing := [path for path in paths if path.exists()]:
            for path in existing:
                path.unlink()
            names = " ... ".join(dict.fromkeys([existing[0].name, existing[-1].name]))
            count = f"{len(existing)} checkpoint{'s' * (len(existing) > 1)}"
            self.report(f"removed {count} {why} from {self.folder} ({names})")

    def _save(self, path: Path, content: Mapping[str, Any]) -> None:
        own = self.identity
        head = {
            "format": FORMAT, "version": VERSION, "package_version": __version__, "pipeline": own.pipeline,
            "config": dict(own.settings), "data_hash": own.data_hash, "synthetic": own.synthetic,
            "noise_hash": own.noise_hash, "teachers_hash": own.teachers_hash, "git_commit": git_commit(),
        }  # fmt: skip
        buffer = io.BytesIO()  # torch's own file writer turns a full disk into an unclear RuntimeError
        torch.save({**head, **content}, buffer)
        try:
            write_durably(path, buffer.getvalue())
        except OSError as error:
            last = list(self.epochs().values())[-1:]
            kept = f"; the last good one is {last[0].name}, --resume continues from it" if last else ""
            raise CheckpointError(
                f"cannot write checkpoint {path}: {error.strerror or error}. Free disk space or change --models_dir"
                f"{kept}"
            ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU and verify its checksums; nothing in it is unpickled as code.

    Raises CheckpointError for a missing, damaged or foreign file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load itself does not notice a flipped bit in a weight.
            if (entry := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {entry}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}: train first, or check --models_dir") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is not a checkpoint of this program: it has more than plain tensors") from error
    except (OSError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged or no checkpoint ({reason}).") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this program: remove it or choose another --models_dir")
    if content["version"] != VERSION:
        raise CheckpointError(f"{path} has format {content['version']}, this version reads {VERSION}: retrain")
    content["config"] = rename_settings(content.get("config", {}))
    return content


def _load_state(path: Path) -> Checkpoint:
    """A checkpoint that training can resume. Raises CheckpointError for any other file."""
    checkpoint = load_checkpoint(path)
    if "state" not in checkpoint:
        raise CheckpointError(f"{path} has weights but no training state ({checkpoint.get('kind')}): remove it.")
    return checkpoint


def load_weights(model: nn.Module, weights: Weights, where: Path | str) -> None:
    """Put trained weights into a model. Raises CheckpointError when they are of another network."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"the weights in {where} do not fit this network ({reason}): retrain") from error


def weights_hash(weights: Weights) -> str:
    """SHA-256 of all values of a model, buffers included."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that change the weights and differ."""
    free = set(FREE_SETTINGS)
    if before.get("scheduler") == now.get("scheduler") == "plateau":
        free.add("epochs")  # the only schedule that does not depend on the length of the run
    old, new = dict(flatten_settings(before)), dict(flatten_settings(now))
    return [
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if name not in free and old.get(name) != new.get(name)
    ]
