"""What a trial is judged by: how many clips are right under a protocol, and what the model that answers costs."""

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
from ml_training.evaluation.cross_validation import Plan as FoldPlan
from ml_training.evaluation.cross_validation import planned_folds
from ml_training.evaluation.folds import RESULT, finished, train_fold
from ml_training.evaluation.protocols import THROWN
from ml_training.pipelines.base import DigitModel, Pipeline
from ml_training.results import EpochRecord
from ml_training.training.checkpoint import INTERRUPTED, CheckpointStore, RunIdentity
from ml_training.training.exporting import DATA
from ml_training.training.material import PARITY_CLIPS, Material, fitted_temperature, load_material
from ml_training.training.observer import Unobserved
from ml_training.training.precomputed_features import build_model
from ml_training.training.setup import load_weights
from ml_training.training.trainer import train_model
from ml_training.utils.visualization import best_record

_LATENCY_CLIPS = 300


class Pruned(Exception):  # noqa: N818 (no error: it is how a trial ends early)
    """A trial that was given up."""


@dataclass(frozen=True)
class Judged:
    """What came of a trial."""

    values: tuple[float, ...]  # of the objectives, in their order
    epochs: int  # trained, of all folds together
    details: dict[str, Any]


# Told of a step (epoch or fold, from 1) and the share of clips right there; raises Pruned.
Report = Callable[[int, float], None]


class Judge:
    """Trains what a trial proposes. Clips are divided once for all trials that divide them alike."""

    def __init__(
        self, pipeline: Pipeline, corpus: Corpus, objectives: Sequence[str], folds: int, seeds: Sequence[int],
        stop: StopSignals, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.pipeline, self.corpus, self.objectives = pipeline, corpus, tuple(objectives)
        self.folds, self.seeds, self.stop, self.say = folds, tuple(seeds), stop, say
        self._known: dict[tuple[Any, ...], Material] = {}

    def epochs(self, config: TrainConfig) -> int:
        """How many epochs a trial takes that nobody gives up."""
        own = config.resolved(self.pipeline.name, self.pipeline.recipe)
        assert own.epochs is not None
        return own.epochs * (1 if self.objectives[0] == "validation" else len(self._folds(config)))

    def judge(self, config: TrainConfig, folder: Path, report: Report) -> Judged:
        """Train in `folder`, from its checkpoints where there are some. Raises what `report` and trainings raise."""
        if self.objectives[0] == "validation":
            return self._validation(config, folder, report)
        return self._by_folds(config, folder, report)

    def _validation(self, config: TrainConfig, folder: Path, report: Report) -> Judged:
        material = self._material(config)
        own = dataclasses.replace(material.config, **_changing(config)).resolved(
            self.pipeline.name, self.pipeline.recipe
        )
        identity = RunIdentity(self.pipeline.name, own, material.corpus.data_hash, material.corpus.synthetic)
        store = CheckpointStore(folder, identity)
        if store.epochs() or (folder / INTERRUPTED).exists():
            own = dataclasses.replace(own, resume="latest")
        train = material.part(material.split.train, seldom=not own.augmenting.enabled)
        model = build_model(self.pipeline, own, train)
        watch = _Watch(report)
        with self.stop.deferred():
            training = train_model(
                model, train, material.part(material.split.validation), own, store=store, observer=watch, stop=self.stop
            )
        watch.epoch(training.history, False)  # what ended before a restart, and was not told
        best = best_record(training.history)
        values = [best.validation_accuracy]
        details: dict[str, Any] = {"best_epoch": training.best_epoch, "validation_loss": best.validation_loss}
        if len(self.objectives) > 1:
            load_weights(model, training.best_weights, folder)
            values.append(self._cost(model.cpu(), material, folder, best))
        return Judged(tuple(values), len(training.history), details)

    def _cost(self, model: DigitModel, material: Material, folder: Path, best: EpochRecord) -> float:
        temperature, _ = fitted_temperature(model, self.pipeline, material)
        model.temperature.fill_(temperature)
        metadata = model_metadata(
            pipeline=self.pipeline.name, data=material.corpus.name, data_hash=material.corpus.data_hash,
            synthetic=material.corpus.synthetic, split=material.split.name, accuracy=best.validation_accuracy,
            tested_on="its validation part", epoch=best.epoch, temperature=temperature,
        )  # fmt: skip
        place = model_folder(folder, self.pipeline.name) / MODEL_FILE
        export_onnx(model, place, metadata, material.real_clips(PARITY_CLIPS))
        if self.objectives[1] == "size":
            return place.stat().st_size / 1000
        return float(load_classifier(folder, self.pipeline.name).benchmark_speed(_LATENCY_CLIPS)["p50_ms"])

    def _by_folds(self, config: TrainConfig, folder: Path, report: Report) -> Judged:
        right = clips = epochs = 0
        for step, fold in enumerate(self._folds(config), 1):
            found = finished(fold, folder, self.say) or train_fold(
                fold, self.corpus, folder, self.stop, THROWN, self.say, lambda number, share: None
            )
            right += found["test"]["clips"] - found["test"]["errors"]
            clips += found["test"]["clips"]
            epochs += found["epochs"]
            report(step, right / clips)
        return Judged((right / clips,), epochs, {"folds": step, "result": RESULT})

    def _folds(self, config: TrainConfig) -> list[Any]:
        plan = FoldPlan(self.folds if self.objectives[0] == "cv" else None, seeds=self.seeds)
        return planned_folds(self.corpus, [self.pipeline], config, plan)

    def _material(self, config: TrainConfig) -> Material:
        key = tuple(getattr(config, name) for name in DATA)
        if key not in self._known:
            self._known = {key: load_material(config, self.corpus, self.say, self.say)}  # one takes enough memory
        return self._known[key]


def _changing(config: TrainConfig) -> dict[str, Any]:
    """Settings that do not decide how clips are divided."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in DATA}


class _Watch(Unobserved):
    """Reports each epoch once, those before a restart too."""

    def __init__(self, report: Report) -> None:
        self._report, self._told = report, 0

    def epoch(self, history: Sequence[EpochRecord], better: bool) -> None:
        for record in history[self._told :]:
            self._told += 1
            self._report(record.epoch, record.validation_accuracy)
