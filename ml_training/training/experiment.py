"""A whole run: recordings, then each pipeline trained, tested, exported and drawn, then the report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pickle
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from digit_detector.classifier import MODEL_FILE, load_classifier
from digit_detector.cli.signals import StopSignals
from digit_detector.errors import ConfigError, DigitError, Interrupted
from digit_detector.files import check_models_dir, write_atomically, write_json
from digit_detector.labels import LABELS, PIPELINE_TITLES, model_folder
from digit_detector.model_file import git_commit
from digit_detector.versions import Added, Origin, version_folder
from ml_training import __version__
from ml_training.config import TrainConfig, to_dict
from ml_training.data.augmentation.noise import load_backgrounds
from ml_training.data.corpus import Corpus
from ml_training.data.feature_cache import Cache, use_cache
from ml_training.deploy import version_store
from ml_training.deploy.export import export_onnx
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import DigitModel, Pipeline
from ml_training.report.page import gather_versions, write_report
from ml_training.results import DataSummary, EpochRecord, Evaluation, PipelineResult
from ml_training.training.batches import Clips
from ml_training.training.checkpoint import BEST, FREE_SETTINGS, CheckpointStore, load_weights, weights_hash
from ml_training.training.classification import build_model, predict_probabilities, run_identity, train_model
from ml_training.training.distillation import EnsembleTeacher, teachers_hash
from ml_training.training.distributed import SingleProcess
from ml_training.training.seeding import choose_device, choose_precision, cpu_threads
from ml_training.training.tracking import track, tracker_at
from ml_training.training.trainer import Training
from ml_training.training.training_data import PARITY_CLIPS, TrainingData, fitted_temperature, load_training_data
from ml_training.utils.logging_utils import RunLogger
from ml_training.utils.temporary import clear_half_written, temporary_folder
from ml_training.utils.visualization import plot_confusion_matrix, plot_model_comparison, plot_training_history

LATENCY_CLIPS = 100


@dataclass(frozen=True)
class RunOutcome:
    """What a run led to."""

    results: tuple[PipelineResult, ...]
    failures: Mapping[str, str]  # pipeline -> why it failed
    data: DataSummary
    report: Path
    log_file: Path

    @property
    def exit_code(self) -> int:
        return 1 if self.failures else 0


def run(
    config: TrainConfig,
    *,
    corpus: Corpus | None = None,
    pipelines: Sequence[Pipeline] | None = None,
    resume_command: str = "the same with resume",
    group: SingleProcess | None = None,
) -> RunOutcome:
    """Train what `config` names and leave models, logs, plots and a report behind.

    `corpus` takes the place of the recordings that `config` names, `pipelines` that of the registry's. A pipeline
    that fails is logged and named in the outcome; the others go on. Of a process `group` this is for rank 0, and
    `run_worker` for the others; there a training that fails ends all.
    Raises ConfigError for settings this machine cannot do, DataError without usable recordings, Interrupted
    after Ctrl-C, SIGTERM or a hang-up (`resume_command` is what the last line then tells to type).
    """
    choose_precision(config, choose_device(config))
    check_models_dir(config.models_dir, config.pipelines)
    chosen = [get_pipeline(name) for name in config.pipelines] if pipelines is None else list(pipelines)
    logs = Path(config.log_dir)
    with StopSignals() as signals, cpu_threads(config.threads), RunLogger(logs, config.pipeline) as logger:
        try:
            with use_cache(Cache(report=logger.warn) if config.cache else None):
                return _run(config, corpus, chosen, logger, signals, group or SingleProcess())
        except (Interrupted, KeyboardInterrupt) as stop:
            signum = stop.signum if isinstance(stop, Interrupted) else signal.SIGINT
            logger.say(f"stopped; to go on: {resume_command}", "stopped", signal=int(signum))
            raise Interrupted(signum) from None
        except DigitError as error:
            logger.record(f"error: {error}", "error", level="ERROR")
            raise


def _run(
    config: TrainConfig,
    corpus: Corpus | None,
    pipelines: Sequence[Pipeline],
    logger: RunLogger,
    signals: StopSignals,
    group: SingleProcess,
) -> RunOutcome:
    for folder in (Path(config.log_dir), _plots(config)):
        clear_half_written(folder)
    logger.record(f"version {__version__}, process {os.getpid()}", "start", config=to_dict(config))
    tracker = tracker_at(config.mlflow, Path(config.log_dir)) if config.mlflow is not None else None
    _meet_teachers(config, logger)
    _load_noise(config, pipelines, logger)
    with group.local_rank_zero_first():
        material = _load(config, corpus, logger)
    _check_same_run(group, material)
    ranks = group.world_size
    if ranks > 1:
        logger.say(f"DDP: {ranks} processes train together, each on its share of every batch", "ddp", world_size=ranks)
    results: list[PipelineResult] = []
    failures: dict[str, str] = {}
    for pipeline in pipelines:
        running = _PipelineRun(pipeline, material, logger, signals, group)
        try:
            results.append(running.result())
            if tracker is not None:
                failures |= track(tracker, results[-1], config, logger)
        except DigitError as error:
            if ranks > 1 and not running.trained:
                raise
            failures[pipeline.name] = str(error)
            logger.fail(f"{pipeline.name} failed: {error}", error, pipeline=pipeline.name)
        except Exception as error:  # a bug of one pipeline must not cost the user the other two
            if ranks > 1 and not running.trained:
                raise
            if signals.leaving is not None:  # what had to be cleared up on the way out failed
                raise Interrupted(signals.leaving) from error
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            failures[pipeline.name] = reason
            line = f"{pipeline.name} failed unexpectedly: {reason} (traceback in {logger.log_file})"
            logger.fail(line, error, pipeline=pipeline.name)
    plots = _plots(config)
    if results:
        plot_model_comparison(results, plots / "model_comparison.png")
    report = plots / "training_report.html"
    if results or not report.exists():  # where nothing was trained, an earlier run's report tells more
        write_report(results, material.summary, report, failures=failures)
    logger.record(f"report: {report}", "finished", failures=failures)
    return RunOutcome(tuple(results), failures, material.summary, report, logger.log_file)


def run_worker(
    config: TrainConfig, group: SingleProcess, corpus: Corpus | None = None, pipelines: Sequence[Pipeline] | None = None
) -> None:
    """The part of `run` that every rank but 0 takes: the same trainings, without output or files.

    Raises what loading and training raise.
    """
    chosen = [get_pipeline(name) for name in config.pipelines] if pipelines is None else list(pipelines)
    cache = Cache() if config.cache else None
    with cpu_threads(config.threads), StopSignals(unit=None) as signals, use_cache(cache):
        with group.local_rank_zero_first():
            material = load_training_data(config, corpus, lambda line: None, lambda line: None)
        _check_same_run(group, material)
        for pipeline in chosen:
            own = material.config.resolved(pipeline.name, pipeline.recipe)
            train = material.part(material.split.train, seldom=not own.augmenting.enabled)
            model = build_model(pipeline, own, train)
            validation = material.part(material.split.validation)
            with signals.deferred():
                train_model(model, train, validation, own, stop=signals, group=group)


def _check_same_run(group: SingleProcess, material: TrainingData) -> None:
    """Raise DataError where ranks have other recordings, or other settings that change the weights."""
    config = dataclasses.replace(material.config, resume=None)
    deciding = {name: value for name, value in to_dict(config).items() if name not in FREE_SETTINGS}
    described = json.dumps([material.corpus.data_hash, deciding], sort_keys=True)
    group.check_same("recordings or settings", hashlib.sha256(described.encode()).digest())


def _meet_teachers(config: TrainConfig, logger: RunLogger) -> None:
    """See that all teachers can teach before anything is trained; raises what Teachers does, and ConfigError."""
    if config.teacher_dir is None:
        return
    if Path(config.models_dir).resolve().is_relative_to(Path(config.teacher_dir).expanduser().resolve()):
        raise ConfigError(
            [f"models_dir {config.models_dir} lies in teacher_dir {config.teacher_dir}: a model would teach itself"]
        )
    teachers = EnsembleTeacher(config.teacher_dir, torch.device("cpu"))
    if config.negative_share and teachers.without_negatives:
        raise ConfigError(
            [
                f"teacher {teachers.without_negatives[0]} has heard digits alone and cannot tell whether there is one: "
                "train it with a negative_share above 0, or its student without: --negative_share 0"
            ]
        )
    count = len(teachers.models)
    told = teachers_hash(config.teacher_dir)
    line = f"teachers: {count} models, hash {told[:12]} ({config.teacher_dir})"
    logger.say(line, "teachers", folder=config.teacher_dir, models=count, data_hash=told)


def _load_noise(config: TrainConfig, pipelines: Sequence[Pipeline], logger: RunLogger) -> None:
    """Read the background noise before anything is trained; raises DataError where it cannot be read."""
    every = [config.resolved(pipeline.name, pipeline.recipe).augmenting for pipeline in pipelines]
    for folder in sorted({a.noise_dir for a in every if a.noise_dir is not None and a.enabled}):
        noise = load_backgrounds(folder)
        logger.say(
            f"background noise: {len(noise.files)} files, {noise.seconds / 60:.1f} minutes, "
            f"hash {noise.data_hash[:12]} ({folder})",
            "noise", folder=folder, files=noise.files, data_hash=noise.data_hash,
        )  # fmt: skip


def _load(config: TrainConfig, corpus: Corpus | None, logger: RunLogger) -> TrainingData:
    material = load_training_data(config, corpus, logger.say, logger.warn)
    corpus, split, summary = material.corpus, material.split, material.summary
    kind = "synthetic speech, no recordings" if corpus.synthetic else "recordings"
    told = ", ".join(f"{count} {name}" for name, count in summary.parts.items())
    tell = logger.warn if corpus.synthetic else logger.say
    tell(
        f"data: {corpus.name} ({kind}), {summary.clips} clips of {len(summary.speakers)} speakers, "
        f"split {split.name}: {told}; without a digit: {summary.negatives or 'none'}; hash {corpus.data_hash[:12]}",
        "data", summary=dataclasses.asdict(summary),
    )  # fmt: skip
    missing = [digit for digit in range(len(LABELS)) if digit not in corpus.labels]
    if missing:
        logger.warn(f"no clip says {', '.join(LABELS[digit] for digit in missing)}: the models cannot learn that")
    if corpus.skipped:
        first = corpus.skipped[0]
        logger.warn(f"{len(corpus.skipped)} files left out, listed in the report; first {first.file}: {first.reason}")
    return material


class _PipelineRun:
    """One pipeline's part of a run: training, test, export, plots, summaries."""

    def __init__(
        self, pipeline: Pipeline, material: TrainingData, logger: RunLogger, signals: StopSignals, group: SingleProcess
    ) -> None:
        config = material.config
        self.pipeline, self.name = pipeline, pipeline.name
        self.config = config.resolved(pipeline.name, pipeline.recipe)
        self.material, self.logger, self.signals, self.group = material, logger, signals, group
        self.trained = False  # until then a failure is one of all ranks
        self.folder = model_folder(config.models_dir, pipeline.name)
        self.log_dir, self.plots = Path(config.log_dir), _plots(config)
        self.title = PIPELINE_TITLES.get(self.name, self.name) + (", synthetic speech" * material.corpus.synthetic)

    def result(self) -> PipelineResult:
        self._write_config()
        version_store.settle(self.folder, self._say)
        # What answers in self.folder is the promoted version's until this training has become one itself.
        with temporary_folder() as made:
            return self._result(made)

    def _result(self, made: Path) -> PipelineResult:
        # Of clips that nothing varies, features are heard; few waveforms of them are, those to be spoiled.
        train = self.material.part(self.material.split.train, seldom=not self.config.augmenting.enabled)
        model = build_model(self.pipeline, self.config, train)
        store = self._store(made)
        before = max(store.epochs(), default=0)
        training = self._train(model, train, store)
        del train
        model = model.cpu()
        load_weights(model, training.best_weights, self.folder)
        self._calibrate(model, training, store)
        test = self.material.tested(lambda waveforms: predict_probabilities(model, torch.from_numpy(waveforms)))
        self._export(model, test, training.best_epoch, made)
        nothing_left = self.config.resume == "latest" and before == len(training.history)
        added = self._version(made, training, model, test, again=nothing_left)
        version = added.version
        folder = self.folder if added.promoted else version_folder(self.folder, version.number)
        classifier = load_classifier(self.config.models_dir, self.name, version=version.number)
        result = PipelineResult(
            pipeline=self.name,
            config=self.config,
            history=training.history,
            test=test,
            mistake_waveforms=self.material.corpus.waveforms[self.material.split.test[test.mistakes()]],
            best_epoch=training.best_epoch,
            stopped=training.stopped,
            parameters=sum(p.numel() for p in model.parameters()),
            model_bytes=version.files[MODEL_FILE].bytes,
            latency_ms=classifier.benchmark_speed(LATENCY_CLIPS)["p50_ms"],
            train_seconds=training.seconds,
            peak_memory_mb=peak_memory_mb(),
            model_file=str(folder / MODEL_FILE),
            temperature=float(model.temperature),
            version=version.number,
            not_promoted="" if added.promoted else added.reason or "promote is off",
        )
        self._write_summary(result)
        plot_confusion_matrix(test, self.plots / f"confusion_matrix_{self.name}.png", self.title)
        self.logger.say(
            f"{self.name}: {test.errors} errors in {test.clips} test clips ({100 * test.accuracy:.2f} %), "
            f"best epoch {training.best_epoch}, {training.stopped}; {result.model_file}",
            "pipeline", pipeline=self.name, errors=test.errors, clips=test.clips,
        )  # fmt: skip
        return result

    def _say(self, line: str) -> None:
        self.logger.say(f"{self.name}: {line}")

    def _store(self, made: Path) -> CheckpointStore:
        corpus = self.material.corpus
        identity = run_identity(self.name, self.config, corpus.data_hash, corpus.synthetic)
        return CheckpointStore(self.folder, identity, self._say, best=made / BEST)

    def _train(self, model: DigitModel, train: Clips, store: CheckpointStore) -> Training:
        events = self.log_dir / "tensorboard" / f"{self.name}_{self.logger.timestamp}"
        assert self.config.epochs
        self.logger.say(f"{self.name}: {self.title}, {sum(p.numel() for p in model.parameters()):,} parameters")
        with self.logger.training(self.name, self.config.epochs, events, self._draw) as view, self.signals.deferred():
            validation = self.material.part(self.material.split.validation)
            training = train_model(
                model, train, validation, self.config,
                store=store, callback=view, stop=self.signals, group=self.group,
            )  # fmt: skip
            self.trained = True
            view.catch_up(training.history)  # a resumed run may have had nothing left to train
        return training

    def _calibrate(self, model: DigitModel, training: Training, store: CheckpointStore) -> None:
        """Fit the temperature on the validation part; from here on it is part of the model and of best_model.pt."""
        temperature, clips = fitted_temperature(model, self.pipeline, self.material)
        model.temperature.fill_(temperature)
        best = training.history[training.best_epoch - 1]
        figures = {"loss": best.validation_loss, "accuracy": best.validation_accuracy}
        store.save_best(training.best_epoch, model.state_dict(), figures)
        self.logger.record(
            f"{self.name}: temperature {float(model.temperature):.3f}, fitted on {clips} validation clips",
            "temperature", pipeline=self.name, temperature=float(model.temperature),
        )  # fmt: skip

    def _draw(self, history: Sequence[EpochRecord]) -> None:
        plot_training_history(history, self.plots / f"training_history_{self.name}.png", self.title)

    def _export(self, model: DigitModel, test: Evaluation, epoch: int, made: Path) -> None:
        metadata = self.material.metadata(self.name, test, float(model.temperature), epoch=epoch)
        clips = self.material.real_clips(PARITY_CLIPS)
        difference = export_onnx(model, made / MODEL_FILE, metadata, clips)
        self.logger.record(
            f"{self.name}: exported, largest difference {difference:.1e}", "export", difference=difference
        )
        scaler = model.scaler()
        if scaler is not None:  # for people: nothing of ours reads it back
            write_atomically(made / "scaler.pkl", pickle.dumps(scaler))

    def _version(self, made: Path, training: Training, model: DigitModel, test: Evaluation, *, again: bool) -> Added:
        """Make what lies in `made` a version; `again` where nothing was left to train and it may be one already."""
        corpus, split = self.material.corpus, self.material.split
        origin = Origin(
            pipeline=self.name, data=corpus.name, data_hash=corpus.data_hash, synthetic=corpus.synthetic,
            split=split.name, git_commit=git_commit(), package_version=__version__, settings=self._settings(),
            training={
                "epochs": len(training.history), "best_epoch": training.best_epoch, "stopped": training.stopped,
                "seconds": training.seconds, "parameters": sum(p.numel() for p in model.parameters()),
                "temperature": float(model.temperature), "test_hash": self.material.test_hash,
                "test_clips": test.clips, "test_errors": test.errors,
            },
            weights_hash=weights_hash(model.state_dict()),
        )  # fmt: skip
        added = version_store.add(
            self.folder, made, origin, {split.name: {self.material.tested_on: test.figures()}},
            promote=self.config.promote, again=again, report=self._say,
        )  # fmt: skip
        number, command = added.version.number, version_store.promote_command(self.folder, added.version)
        line = f"{self.name}: version {number}, promoted" + (f": {added.reason}" if added.reason else "")
        report = self.logger.say
        if not added.promoted:
            line = f"{self.name}: version {number}, not promoted: {command}"
            if added.reason:
                report = self.logger.warn
                line = (
                    f"{self.name}: version {number} was NOT promoted: {added.reason}. It is kept; to promote: {command}"
                )
        report(line, "version", pipeline=self.name, version=number, promoted=added.promoted, reason=added.reason)
        return added

    def _settings(self) -> dict[str, Any]:
        # Without `resume`: they say how to get these weights, not how this session began.
        return to_dict(dataclasses.replace(self.config, resume=None))

    def _write_config(self) -> None:
        write_json(self.log_dir / f"config_{self.name}_{self.logger.timestamp}.json", self._settings())

    def _write_summary(self, result: PipelineResult) -> None:
        values = {
            **result.summary(), "data": dataclasses.asdict(self.material.summary),
            "config": to_dict(self.config), "versions": gather_versions(),
        }  # fmt: skip
        write_json(self.log_dir / f"metrics_summary_{self.name}_{self.logger.timestamp}.json", values)


def _plots(config: TrainConfig) -> Path:
    return Path(config.log_dir) / "plots"


def peak_memory_mb() -> float:
    """The most memory this process ever held, in MB; NaN where the system does not tell (Windows)."""
    if sys.platform == "win32":
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
