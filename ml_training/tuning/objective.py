"""The objective function of a search: accuracy under a protocol, and what the exported model costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digit_detector.classifier import MODEL_FILE, load_classifier
from digit_detector.cli.signals import StopSignals
from digit_detector.labels import model_folder
from digit_detector.model_file import model_metadata
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.deploy.export import export_onnx
from ml_training.evaluation.cross_validation import RESULT, Plan, load_fold, plan_folds, train_fold
from ml_training.pipelines.base import DigitModel, Pipeline
from ml_training.results import EpochRecord
from ml_training.training.checkpoint import CheckpointStore, load_weights
from ml_training.training.classification import build_model, run_identity, train_model
from ml_training.training.export_job import DATA
from ml_training.training.trainer import NullCallback
from ml_training.training.training_data import PARITY_CLIPS, TrainingData, fit_temperature, load_training_data
from ml_training.utils.visualization import best_record

LATENCY_CLIPS = 300


@dataclass(frozen=True)
class TrialResult:
    """Values of the objectives that a trial reached."""

    values: tuple[float, ...]  # of the objectives, in their order
    epochs: int  # trained, of all folds together
    details: dict[str, Any]


Report = Callable[[int, float], None]  # step (epoch or fold, from 1), accuracy there; raises optuna.TrialPruned


class ObjectiveFn:
    """Trains with the settings of a trial. Trials that divide the clips alike share the prepared data."""

    def __init__(
        self, pipeline: Pipeline, corpus: Corpus, objectives: Sequence[str], folds: int, stop: StopSignals,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.pipeline, self.corpus, self.objectives = pipeline, corpus, tuple(objectives)
        self.folds, self.stop, self.say = folds, stop, say
        self._prepared: dict[tuple[Any, ...], TrainingData] = {}

    def __call__(self, config: TrainConfig, folder: Path, report: Report) -> TrialResult:
        """Train in `folder`, from its checkpoints if it has any. Raises what `report` and trainings raise."""
        if self.objectives[0] == "validation":
            return self._validate(config, folder, report)
        return self._cross_validate(config, folder, report)

    def count_epochs(self, config: TrainConfig) -> int:
        """Epochs of a trial that is not pruned."""
        steps = 1 if self.objectives[0] == "validation" else len(self._folds(config))
        return steps * self._epochs(config)

    def epochs_of_a_step(self, config: TrainConfig) -> int:
        """Epochs at most between two reports."""
        return 1 if self.objectives[0] == "validation" else self._epochs(config)

    def _epochs(self, config: TrainConfig) -> int:
        return config.resolve(self.pipeline.name, self.pipeline.recipe).epochs or 0

    def _validate(self, config: TrainConfig, folder: Path, report: Report) -> TrialResult:
        data = self._training_data(config)
        # Settings that do not affect the division of the clips are the trial's own.
        free = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in DATA}
        own = dataclasses.replace(data.config, **free).resolve(self.pipeline.name, self.pipeline.recipe)
        identity = run_identity(self.pipeline.name, own, data.corpus.data_hash, data.corpus.synthetic)
        store = CheckpointStore(folder, identity)
        if store.resumable:
            own = dataclasses.replace(own, resume="latest")
        train = data.part(data.split.train, seldom=not own.full_augmentation.enabled)
        validation = data.part(data.split.validation)
        model = build_model(self.pipeline, own, train)
        observer = _EpochReports(report)
        with self.stop.deferred():
            training = train_model(model, train, validation, own, store=store, callback=observer, stop=self.stop)
        observer.epoch(training.history, False)  # those before a restart, if none came after it
        best = best_record(training.history)
        values = [best.validation_accuracy]
        if len(self.objectives) > 1:
            load_weights(model, training.best_weights, folder)
            values.append(self._measure_cost(model.cpu(), data, folder, best))
        details = {"best_epoch": training.best_epoch, "validation_loss": best.validation_loss}
        return TrialResult(tuple(values), len(training.history), details)

    def _measure_cost(self, model: DigitModel, data: TrainingData, folder: Path, best: EpochRecord) -> float:
        temperature, _ = fit_temperature(model, self.pipeline, data)
        model.temperature.fill_(temperature)
        metadata = model_metadata(
            pipeline=self.pipeline.name, data=data.corpus.name, data_hash=data.corpus.data_hash,
            synthetic=data.corpus.synthetic, split=data.split.name, accuracy=best.validation_accuracy,
            tested_on="its validation part", epoch=best.epoch, temperature=temperature,
        )  # fmt: skip
        path = model_folder(folder, self.pipeline.name) / MODEL_FILE
        export_onnx(model, path, metadata, data.real_clips(PARITY_CLIPS))
        if self.objectives[1] == "size":
            return path.stat().st_size / 1000
        return float(load_classifier(folder, self.pipeline.name).benchmark_speed(LATENCY_CLIPS)["p50_ms"])

    def _cross_validate(self, config: TrainConfig, folder: Path, report: Report) -> TrialResult:
        correct = clips = epochs = 0
        for step, fold in enumerate(self._folds(config), 1):
            result = load_fold(fold, folder, self.say) or train_fold(
                fold, self.corpus, folder, self.stop, False, self.say, lambda number, share: None
            )
            correct += result["test"]["clips"] - result["test"]["errors"]
            clips += result["test"]["clips"]
            epochs += result["epochs"]
            report(step, correct / clips)
        return TrialResult((correct / clips,), epochs, {"folds": step, "result": RESULT})

    def _folds(self, config: TrainConfig) -> list[Any]:
        plan = Plan(self.folds if self.objectives[0] == "cv" else None, seeds=(config.seed,))
        return plan_folds(self.corpus, [self.pipeline], config, plan)

    def _training_data(self, config: TrainConfig) -> TrainingData:
        key = tuple(getattr(config, name) for name in DATA)
        if key not in self._prepared:  # one at a time: memory
            self._prepared = {key: load_training_data(config, self.corpus, self.say, self.say)}
        return self._prepared[key]


class _EpochReports(NullCallback):
    """Reports each epoch once, those before a restart too."""

    def __init__(self, report: Report) -> None:
        self._report, self._reported = report, 0

    def epoch(self, history: Sequence[EpochRecord], better: bool) -> None:
        for record in history[self._reported :]:
            self._reported += 1
            self._report(record.epoch, record.validation_accuracy)
