"""A whole run: load the recordings, train, test, export and plot each pipeline, write the report."""

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
from digit_detector.versions import Provenance, version_folder
from ml_training import __version__
from ml_training.config import TrainConfig, to_dict
from ml_training.data.augmentation.noise import load_noise_bank
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
from ml_training.training.seeding import CPU, choose_device, choose_precision, cpu_threads
from ml_training.training.tracking import Tracker, track, tracker_at
from ml_training.training.trainer import Training
from ml_training.training.training_data import PARITY_CLIPS, TrainingData, fit_temperature, load_training_data
from ml_training.utils.logging_utils import RunLogger
from ml_training.utils.temporary import clear_half_written, temporary_folder
from ml_training.utils.visualization import plot_confusion_matrix, plot_model_comparison, plot_training_history

LATENCY_CLIPS = 100


@dataclass(frozen=True)
class RunOutcome:
    """The results of a run."""

    results: tuple[PipelineResult, ...]
    failures: Mapping[str, str]  # pipeline -> why it failed
    data: DataSummary
    report: Path
    log_file: Path

    @property
    def exit_code(self) -> int:
        return 1 if self.failures else 0


def run(
    config: TrainConfig, *, corpus: Corpus | None = None, pipelines: Sequence[Pipeline] | None = None,
    resume_command: str = "the same with resume", group: SingleProcess | None = None,
) -> RunOutcome:  # fmt: skip
    """Train the pipelines of `config` and write models, logs, plots and a report.

    `corpus` replaces the recordings named by `config`, `pipelines` those of the registry. A pipeline that fails is
    logged and named in the outcome; the others go on. In a process `group` this is for rank 0 and `run_worker` for the
    others; there a training that fails ends all.
    Raises ConfigError for settings this machine does not support, DataError without usable recordings, Interrupted
    after Ctrl-C, SIGTERM or a hang-up (the last line then prints `resume_command`).
    """
    choose_precision(config, choose_device(config))
    check_models_dir(config.models_dir, config.pipelines)
    chosen = [get_pipeline(name) for name in config.pipelines] if pipelines is None else list(pipelines)
    log_dir, name = Path(config.log_dir), config.pipelines[0] if ":" in config.pipeline else config.pipeline
    with StopSignals() as signals, cpu_threads(config.threads), RunLogger(log_dir, name) as logger:
        try:
            with use_cache(Cache() if config.cache else None):
                return _Run(config, chosen, logger, signals, group or SingleProcess()).run(corpus)
        except (Interrupted, KeyboardInterrupt) as stop:
            signum = stop.signum if isinstance(stop, Interrupted) else signal.SIGINT
            logger.say(f"stopped; to go on: {resume_command}", "stopped", signal=int(signum))
            raise Interrupted(signum) from None
        except DigitError as error:
            logger.record(f"error: {error}", "error", level="ERROR")
            raise


def run_worker(
    config: TrainConfig, group: SingleProcess, corpus: Corpus | None = None, pipelines: Sequence[Pipeline] | None = None
) -> None:
    """The part of `run` for every rank but 0: the same trainings, without output or files."""
    chosen = [get_pipeline(name) for name in config.pipelines] if pipelines is None else list(pipelines)
    cache = Cache() if config.cache else None
    with cpu_threads(config.threads), StopSignals(unit=None) as signals, use_cache(cache):
        with group.local_rank_zero_first():
            data = load_training_data(config, corpus, lambda line: None, lambda line: None)
        _check_same_run(group, data)
        for pipeline in chosen:
            own = data.config.resolve(pipeline.name, pipeline.recipe)
            train = data.part(data.split.train, seldom=not own.full_augmentation.enabled)
            model = build_model(pipeline, own, train)
            validation = data.part(data.split.validation)
            with signals.deferred():
                train_model(model, train, validation, own, stop=signals, group=group)


def _check_same_run(group: SingleProcess, data: TrainingData) -> None:
    """Raise DataError if ranks have different recordings, or different settings that change the weights."""
    settings = {name: value for name, value in to_dict(data.config).items() if name not in FREE_SETTINGS}
    described = json.dumps([data.corpus.data_hash, settings], sort_keys=True)
    group.check_same("recordings or settings", hashlib.sha256(described.encode()).digest())


class _Run:
    """All pipelines of one run."""

    def __init__(
        self, config: TrainConfig, pipelines: Sequence[Pipeline], logger: RunLogger, signals: StopSignals,
        group: SingleProcess,
    ) -> None:  # fmt: skip
        self.config, self.pipelines, self.logger, self.signals, self.group = config, pipelines, logger, signals, group
        self.plots = Path(config.log_dir) / "plots"
        self.results: list[PipelineResult] = []
        self.failures: dict[str, str] = {}

    def run(self, corpus: Corpus | None) -> RunOutcome:
        config, logger, group = self.config, self.logger, self.group
        for folder in (Path(config.log_dir), self.plots):
            clear_half_written(folder)
        logger.record(f"version {__version__}, process {os.getpid()}", "start", config=to_dict(config))
        tracker = tracker_at(config.mlflow, Path(config.log_dir)) if config.mlflow is not None else None
        self._check_teachers()
        self._load_noise()
        with group.local_rank_zero_first():
            data = self._load(corpus)
        _check_same_run(group, data)
        if (ranks := group.world_size) > 1:
            line = f"DDP: {ranks} processes train together, each on its share of every batch"
            logger.say(line, "ddp", world_size=ranks)
        for pipeline in self.pipelines:
            self._run_pipeline(_PipelineRun(pipeline, data, self), tracker)
        if self.results:
            plot_model_comparison(self.results, self.plots / "model_comparison.png")
        report = self.plots / "training_report.html"
        if self.results or not report.exists():  # if nothing was trained, an earlier run's report is worth more
            write_report(self.results, data.summary, report, failures=self.failures)
        logger.record(f"report: {report}", "finished", failures=self.failures)
        return RunOutcome(tuple(self.results), self.failures, data.summary, report, logger.log_file)

    def _run_pipeline(self, pipeline: _PipelineRun, tracker: Tracker | None) -> None:
        name, logger = pipeline.name, self.logger
        try:
            result = pipeline.run()
            self.results.append(result)
            if tracker is not None:
                self.failures |= track(tracker, result, self.config, logger)
        except Exception as error:  # a bug in one pipeline must not cost the user the others
            if self.group.world_size > 1 and not pipeline.trained:
                raise
            if isinstance(error, DigitError):
                self.failures[name] = str(error)
                logger.fail(f"{name} failed: {error}", error, pipeline=name)
                return
            if self.signals.leaving is not None:  # cleaning up after a stop signal failed
                raise Interrupted(self.signals.leaving) from error
            self.failures[name] = reason = f"{type(error).__name__}: {error}".splitlines()[0]
            line = f"{name} failed unexpectedly: {reason} (traceback in {logger.log_file})"
            logger.fail(line, error, pipeline=name)

    def _check_teachers(self) -> None:
        """Load all teachers before anything is trained; raises what EnsembleTeacher raises, and ConfigError."""
        config, folder = self.config, self.config.teacher_dir
        if folder is None:
            return
        if Path(config.models_dir).resolve().is_relative_to(Path(folder).expanduser().resolve()):
            raise ConfigError([f"models_dir {config.models_dir} is in teacher_dir {folder}: it would teach itself"])
        teacher = EnsembleTeacher(folder, CPU)
        if config.negative_ratio and teacher.without_negatives:
            fault = (
                f"teacher {teacher.without_negatives[0]} was trained on digits alone and cannot tell whether there is "
                "one: retrain it with a negative_ratio above 0, or train its student with --negative_ratio 0"
            )
            raise ConfigError([fault])
        count, data_hash = len(teacher.models), teachers_hash(folder)
        line = f"teachers: {count} models, hash {data_hash[:12]} ({folder})"
        self.logger.say(line, "teachers", folder=folder, models=count, data_hash=data_hash)

    def _load_noise(self) -> None:
        """Read the background noise before anything is trained; raises DataError if it cannot be read."""
        every = [self.config.resolve(p.name, p.recipe).full_augmentation for p in self.pipelines]
        for folder in sorted({a.noise_dir for a in every if a.noise_dir is not None and a.enabled}):
            noise = load_noise_bank(folder)
            self.logger.say(
                f"background noise: {len(noise.files)} files, {noise.seconds / 60:.1f} minutes, "
                f"hash {noise.data_hash[:12]} ({folder})",
                "noise", folder=folder, files=noise.files, data_hash=noise.data_hash,
            )  # fmt: skip

    def _load(self, corpus: Corpus | None) -> TrainingData:
        logger = self.logger
        data = load_training_data(self.config, corpus, logger.say, logger.warn)
        corpus, summary = data.corpus, data.summary
        kind = "synthetic speech, no recordings" if corpus.synthetic else "recordings"
        parts = ", ".join(f"{count} {name}" for name, count in summary.parts.items())
        (logger.warn if corpus.synthetic else logger.say)(
            f"data: {corpus.name} ({kind}), {summary.clips} clips of {len(summary.speakers)} speakers, split "
            f"{summary.split}: {parts}; without a digit: {summary.negatives or 'none'}; hash {corpus.data_hash[:12]}",
            "data", summary=dataclasses.asdict(summary),
        )  # fmt: skip
        missing = [label for digit, label in enumerate(LABELS) if digit not in corpus.labels]
        if missing:
            logger.warn(f"no clip says {', '.join(missing)}: the models cannot learn that")
        if skipped := corpus.skipped:
            example = f"{skipped[0].file}: {skipped[0].reason}"
            logger.warn(f"{len(skipped)} files left out, listed in the report; first {example}")
        return data


class _PipelineRun:
    """One pipeline of a run: training, test, export, version, plots, summaries."""

    def __init__(self, pipeline: Pipeline, data: TrainingData, run: _Run) -> None:
        self.pipeline, self.name, self.data = pipeline, pipeline.name, data
        self.config = data.config.resolve(pipeline.name, pipeline.recipe)
        self.logger, self.signals, self.group, self.plots = run.logger, run.signals, run.group, run.plots
        self.trained = False  # until then a failure is one of all ranks
        self.folder, self.log_dir = model_folder(self.config.models_dir, self.name), Path(self.config.log_dir)
        self.title = PIPELINE_TITLES.get(self.name, self.name) + (", synthetic speech" * data.corpus.synthetic)

    def run(self) -> PipelineResult:
        write_json(self.log_dir / f"config_{self.name}_{self.logger.timestamp}.json", self._settings())
        version_store.recover(self.folder, self._report)
        # The files in self.folder are the promoted version's until this training has become one itself.
        with temporary_folder() as work:
            return self._run(work)

    def _run(self, work: Path) -> PipelineResult:
        data, split = self.data, self.data.split
        train = data.part(split.train, seldom=not self.config.full_augmentation.enabled)
        model = build_model(self.pipeline, self.config, train)
        identity = run_identity(self.name, self.config, data.corpus.data_hash, data.corpus.synthetic)
        store = CheckpointStore(self.folder, identity, self._report, best=work / BEST)
        before = max(store.epochs(), default=0)
        training = self._train(model, train, store)
        del train
        model = model.cpu()
        load_weights(model, training.best_weights, self.folder)
        self._calibrate(model, training, store)
        test = data.evaluate(lambda waveforms: predict_probabilities(model, torch.from_numpy(waveforms)))
        self._export(model, test, training.best_epoch, work)
        nothing_left = self.config.resume == "latest" and before == len(training.history)
        added = self._add_version(work, training, model, test, again=nothing_left)
        version = added.version
        folder = self.folder if added.promoted else version_folder(self.folder, version.number)
        classifier = load_classifier(self.config.models_dir, self.name, version=version.number)
        result = PipelineResult(
            pipeline=self.name, config=self.config, history=training.history, test=test,
            mistake_waveforms=data.corpus.waveforms[split.test[test.mistakes()]], best_epoch=training.best_epoch,
            stopped=training.stopped, parameters=count_parameters(model), model_bytes=version.files[MODEL_FILE].bytes,
            latency_ms=classifier.benchmark_speed(LATENCY_CLIPS)["p50_ms"], train_seconds=training.seconds,
            peak_memory_mb=peak_memory_mb(), model_file=str(folder / MODEL_FILE),
            temperature=float(model.temperature), version=version.number,
            not_promoted="" if added.promoted else added.reason or "promote is off",
        )  # fmt: skip
        values = {
            **result.summary(), "data": dataclasses.asdict(data.summary), "config": to_dict(self.config),
            "versions": gather_versions(),
        }  # fmt: skip
        write_json(self.log_dir / f"metrics_summary_{self.name}_{self.logger.timestamp}.json", values)
        plot_confusion_matrix(test, self.plots / f"confusion_matrix_{self.name}.png", self.title)
        self._report(
            f"{test.errors} errors in {test.clips} test clips ({100 * test.accuracy:.2f} %), "
            f"best epoch {training.best_epoch}, {training.stopped}; {result.model_file}",
            "pipeline", errors=test.errors, clips=test.clips,
        )  # fmt: skip
        return result

    def _report(self, line: str, event: str = "note", **fields: Any) -> None:
        self.logger.say(f"{self.name}: {line}", event, pipeline=self.name, **fields)

    def _settings(self) -> dict[str, Any]:
        # Without `resume`: the settings lead to these weights, however this session began.
        return to_dict(dataclasses.replace(self.config, resume=None))

    def _train(self, model: DigitModel, train: Clips, store: CheckpointStore) -> Training:
        assert self.config.epochs
        events = self.log_dir / "tensorboard" / f"{self.name}_{self.logger.timestamp}"
        picture = self.plots / f"training_history_{self.name}.png"
        self._report(f"{self.title}, {count_parameters(model):,} parameters")

        def draw(history: Sequence[EpochRecord]) -> None:
            plot_training_history(history, picture, self.title)

        with self.logger.training(self.name, self.config.epochs, events, draw) as view, self.signals.deferred():
            training = train_model(
                model, train, self.data.part(self.data.split.validation), self.config,
                store=store, callback=view, stop=self.signals, group=self.group,
            )  # fmt: skip
            self.trained = True
            view.catch_up(training.history)  # a resumed run may have had nothing left to train
        return training

    def _calibrate(self, model: DigitModel, training: Training, store: CheckpointStore) -> None:
        """Fit the temperature on the validation part; it becomes part of the model and of best_model.pt."""
        temperature, clips = fit_temperature(model, self.pipeline, self.data)
        model.temperature.fill_(temperature)
        best = training.history[training.best_epoch - 1]
        figures = {"loss": best.validation_loss, "accuracy": best.validation_accuracy}
        store.save_best(training.best_epoch, model.state_dict(), figures)
        temperature = float(model.temperature)
        line = f"{self.name}: temperature {temperature:.3f}, fitted on {clips} validation clips"
        self.logger.record(line, "temperature", pipeline=self.name, temperature=temperature)

    def _export(self, model: DigitModel, test: Evaluation, epoch: int, work: Path) -> None:
        metadata = self.data.metadata(self.name, test, float(model.temperature), epoch=epoch)
        difference = export_onnx(model, work / MODEL_FILE, metadata, self.data.real_clips(PARITY_CLIPS))
        line = f"{self.name}: exported, largest difference {difference:.1e}"
        self.logger.record(line, "export", difference=difference)
        if (scaler := model.scaler()) is not None:  # for people: this program never reads it
            write_atomically(work / "scaler.pkl", pickle.dumps(scaler))

    def _add_version(
        self, work: Path, training: Training, model: DigitModel, test: Evaluation, again: bool
    ) -> version_store.Added:
        """Make the files in `work` a version; `again` if nothing was left to train and it may be one already."""
        corpus, split = self.data.corpus, self.data.split
        provenance = Provenance(
            pipeline=self.name, data=corpus.name, data_hash=corpus.data_hash, synthetic=corpus.synthetic,
            split=split.name, git_commit=git_commit(), package_version=__version__, settings=self._settings(),
            training={
                "epochs": len(training.history), "best_epoch": training.best_epoch, "stopped": training.stopped,
                "seconds": training.seconds, "parameters": count_parameters(model),
                "temperature": float(model.temperature), "test_hash": self.data.test_hash,
                "test_clips": test.clips, "test_errors": test.errors,
            },
            weights_hash=weights_hash(model.state_dict()),
        )  # fmt: skip
        added = version_store.add(
            self.folder, work, provenance, {split.name: {self.data.tested_on: test.figures()}},
            promote=self.config.promote, again=again, report=self._report,
        )  # fmt: skip
        number, command = added.version.number, version_store.promote_command(self.folder, added.version)
        fields = {"pipeline": self.name, "version": number, "promoted": added.promoted, "reason": added.reason}
        line, report = f"version {number}, not promoted: {command}", self.logger.say
        if added.promoted:
            line = f"version {number}, promoted" + (f": {added.reason}" if added.reason else "")
        elif added.reason:
            line = f"version {number} was NOT promoted: {added.reason}. It is kept; to promote: {command}"
            report = self.logger.warn
        report(f"{self.name}: {line}", "version", **fields)
        return added


def summary_table(outcome: RunOutcome) -> str:
    """A line of test figures for each pipeline, warnings and failures, and the paths of the report and the log."""
    rows = [("pipeline", "test errors", "accuracy", "95 % interval", "best epoch", "time", "model")]
    for r in outcome.results:
        low, high = r.test.interval
        rows.append((
            r.pipeline, f"{r.test.errors} of {r.test.clips}", f"{100 * r.test.accuracy:.2f} %",
            f"{100 * low:.1f} to {100 * high:.1f}", f"{r.best_epoch} of {len(r.history)}",
            f"{r.train_seconds:.0f} s", r.model_file,
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = lines if outcome.results else []
    for r in outcome.results:
        if r.not_promoted:
            lines.append(f"{r.pipeline}: version {r.version} was not promoted: {r.not_promoted}")
    if outcome.data.synthetic and outcome.results:
        lines.append("These figures are of synthetic speech: they say little about people.")
    lines += [f"failed: {name}: {reason}" for name, reason in outcome.failures.items()]
    return "\n".join(["", *lines, f"report: {outcome.report}", f"log: {outcome.log_file}"])


def count_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def peak_memory_mb() -> float:
    """The peak memory of this process in MB; NaN on Windows."""
    if sys.platform == "win32":
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
