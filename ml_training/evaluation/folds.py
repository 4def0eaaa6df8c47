"""Folds: trainings that each leave some clips out and are tested on these.

What a fold found is a JSON file in a folder of its own, named after a hash of everything that decides it (settings,
recordings, version of this package): a command that was stopped goes on at the fold that is missing, and folds of other
settings are never mistaken for these. A fold that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ml_training
from digit_detector.classifier import MODEL_FILE
from digit_detector.cli.signals import StopSignals
from digit_detector.errors import CheckpointError, TrainingError
from digit_detector.files import write_json
from digit_detector.labels import model_folder
from digit_detector.model_file import git_commit
from ml_training.calibration import calibration
from ml_training.config import TrainConfig, to_dict
from ml_training.data.corpus import NOT_A_DIGIT, Corpus
from ml_training.data.negatives import hash_of_words
from ml_training.data.synthetic_voices import settled
from ml_training.deploy.export import export_onnx
from ml_training.evaluation.protocols import KEPT, THROWN
from ml_training.pipelines.base import Pipeline
from ml_training.results import EpochRecord
from ml_training.training.checkpoint import FREE_SETTINGS, CheckpointStore, load_weights
from ml_training.training.classification import build_model, predict_probabilities, run_identity, train_model
from ml_training.training.trainer import NullCallback
from ml_training.training.training_data import PARITY_CLIPS, fitted_temperature, load_training_data

Report = Callable[[str], None]
PER_FOLD = ("held_out_speaker", "fold", "seed")  # settings that differ from fold to fold
RESULT = "fold.json"
LONGEST_NAME = 150  # bytes of what is left out in the name of a folder; file systems take 255 in all
_TOLD = {"identity", "test", "ece", "git_commit", "parts"}


@dataclass(frozen=True)
class Fold:
    """One training: `config` is resolved and names its split, fold or speaker, and seed."""

    pipeline: Pipeline
    config: TrainConfig
    data_hash: str

    @property
    def left_out(self) -> str:
        """A speaker, or a fold as 3/10."""
        return str(self.config.held_out_speaker or self.config.fold)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the fold's figures, as JSON gives it back."""
        run = run_identity(self.pipeline.name, self.config, self.data_hash)
        deciding = {k: v for k, v in to_dict(self.config).items() if k not in FREE_SETTINGS}
        augmentation = {k: v for k, v in (deciding.pop("augmentation") or {}).items() if k != "noise_dir"}
        values = {
            "pipeline": self.pipeline.name, "settings": deciding, "augmentation": augmentation,
            "data_hash": self.data_hash, "noise_hash": run.noise_hash, "words_hash": hash_of_words(self.config),
            "teachers_hash": run.teachers_hash,
            "version": ml_training.__version__,
        }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    @property
    def folder(self) -> str:
        """Name of the folder of its checkpoints and its result."""
        key = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]
        told = self.left_out.replace("/", "_of_")
        shown = "".join(sign if sign.isprintable() else "_" for sign in told).encode()[:LONGEST_NAME]
        return f"{self.pipeline.name}_{shown.decode(errors='ignore')}_seed{self.config.seed}_{key}"

    def __str__(self) -> str:
        what = f"fold {self.config.fold}" if self.config.fold else f"without {self.config.held_out_speaker}"
        return f"{self.pipeline.name}, seed {self.config.seed}, {what}"


def fold_of(pipeline: Pipeline, config: TrainConfig, corpus: Corpus, **which: Any) -> Fold:
    """The fold of a pipeline that `which` names: its split, fold or held_out_speaker, and seed."""
    own = dataclasses.replace(config, resume=None, keep_checkpoints="2", **which)
    return Fold(pipeline, settled(own, corpus).resolved(pipeline.name, pipeline.recipe), corpus.data_hash)


def finished(fold: Fold, work: Path, report: Report, with_model: bool = False) -> dict[str, Any] | None:
    """The fold's result, if it is there, whole and its own; `with_model` only if its model is there too."""
    path = work / fold.folder / RESULT
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["identity"] != fold.identity or not found.keys() >= _TOLD:
            report(f"{path} is of another fold: it is trained anew")
        elif with_model and not (model_folder(path.parent, fold.pipeline.name) / MODEL_FILE).is_file():
            report(f"{fold}: its model was thrown away: it is trained anew to keep it")
        else:
            return found
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        report(f"{path} cannot be read ({error}): the fold is trained anew")
    return None


class EpochLines(NullCallback):
    """An observer that tells `epoch` of each epoch's number, and `report` what is to be noted."""

    def __init__(self, what: str, report: Report, epoch: Callable[[int, float], None]) -> None:
        self._what, self._report, self._epoch = what, report, epoch

    def epoch(self, history: Sequence[EpochRecord], better: bool) -> None:
        self._epoch(history[-1].epoch, history[-1].validation_accuracy)

    def note(self, line: str) -> None:
        self._report(f"{self._what}: {line}")


def train_fold(
    fold: Fold, corpus: Corpus, work: Path, stop: StopSignals, models: str, report: Report,
    epoch: Callable[[int, float], None],
) -> dict[str, Any]:  # fmt: skip
    """Train and test a fold, write what it found and return it.

    `epoch` is told the number of each epoch and its share of validation clips right. Of `models` that are kept, the
    folder holds best_model.pt and a folder of models that answers; of those thrown away nothing.
    Raises TrainingError where it fails, Interrupted when `stop` says so.
    """
    try:
        return _train_fold(fold, corpus, work / fold.folder, stop, models, report, epoch)
    except CheckpointError as error:
        folder = work / fold.folder
        raise TrainingError(f"{fold}: {error} (a fold starts anew without its folder {folder})") from error
    except TrainingError as error:
        raise TrainingError(f"{fold}: {error}") from error


def _train_fold(
    fold: Fold, corpus: Corpus, folder: Path, stop: StopSignals, models: str, report: Report,
    epoch: Callable[[int, float], None],
) -> dict[str, Any]:  # fmt: skip
    material = load_training_data(fold.config, corpus, report, report)
    config, split = fold.config, material.split
    identity = run_identity(fold.pipeline.name, config, material.corpus.data_hash, corpus.synthetic)
    store = CheckpointStore(folder, identity)
    if store.resumable:
        config = dataclasses.replace(config, resume="latest")
    train = material.part(split.train, seldom=not config.augmenting.enabled)
    model = build_model(fold.pipeline, config, train)
    observer = EpochLines(str(fold), report, epoch)
    with stop.deferred():
        training = train_model(
            model, train, material.part(split.validation), config, store=store, callback=observer, stop=stop
        )
    model = model.cpu()
    load_weights(model, training.best_weights, folder)
    temperature, _ = fitted_temperature(model, fold.pipeline, material)
    model.temperature.fill_(temperature)
    test = material.tested(lambda waveforms: predict_probabilities(model, torch.from_numpy(waveforms)))
    fit = calibration(test.probabilities, test.labels)
    mixed = material.corpus
    found = {
        "identity": fold.identity, "left_out": fold.left_out, "seed": config.seed, "pipeline": fold.pipeline.name,
        "git_commit": git_commit(),
        "validation_speakers": sorted({mixed.speakers[i] for i in split.validation if mixed.labels[i] != NOT_A_DIGIT}),
        "parts": material.summary.parts, "best_epoch": training.best_epoch, "epochs": len(training.history),
        "stopped": training.stopped, "seconds": training.seconds, "temperature": temperature,
        "ece": fit.ece, "nll": fit.nll, "test": test.summary(),
    }  # fmt: skip
    if models == KEPT:
        metadata = material.metadata(
            fold.pipeline.name, test, temperature, epoch=training.best_epoch, commit=found["git_commit"]
        )
        place = model_folder(folder, fold.pipeline.name) / MODEL_FILE
        export_onnx(model, place, metadata, material.real_clips(PARITY_CLIPS))
    write_json(folder / RESULT, found)
    if models == THROWN:
        for path in folder.glob("*.pt"):
            path.unlink(missing_ok=True)
    return found
