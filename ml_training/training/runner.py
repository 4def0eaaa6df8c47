"""A whole run: recordings, then each pipeline trained, tested, exported and drawn, then the report."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ml_training import __version__
from ml_training.config import LABELS, PIPELINE_TITLES, TrainConfig, model_folder, to_dict
from ml_training.data.backgrounds import load_backgrounds
from ml_training.data.corpus import NOT_A_DIGIT, Corpus
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.negatives import with_negatives
from ml_training.data.splits import Split, split_corpus
from ml_training.data.synthetic_share import settled, with_synthetic_voices
from ml_training.deploy.export import export_onnx, model_metadata
from ml_training.errors import ConfigError, DigitError, Interrupted
from ml_training.evaluation.calibration import temperature_for_other_voices
from ml_training.inference import MODEL_FILE, load_classifier
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import DigitModel, Pipeline
from ml_training.results import DataSummary, EpochRecord, Evaluation, Ints, PipelineResult
from ml_training.training.checkpoint import CheckpointStore, RunIdentity, teachers_hash
from ml_training.training.setup import (
    Clips,
    build_model,
    choose_device,
    choose_precision,
    cpu_threads,
    load_weights,
    predict,
    predict_probabilities,
)
from ml_training.training.teachers import Teachers
from ml_training.training.trainer import Training, train_model
from ml_training.utils.files import write_atomically, write_json
from ml_training.utils.logging_utils import RunLogger
from ml_training.utils.report import gather_versions, write_report
from ml_training.utils.signals import StopSignals
from ml_training.utils.visualization import plot_confusion_matrix, plot_model_comparison, plot_training_history

PARITY_CLIPS = 300
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


@dataclass(frozen=True)
class _Material:
    """The recordings of a run, divided."""

    config: TrainConfig  # with what only the recordings could settle
    corpus: Corpus
    split: Split
    summary: DataSummary
    recordings_hash: str  # of the recordings, without synthetic voices among them
    tested_on: str  # what the test part is of: the recordings, without synthetic voices among the training clips

    def part(self, chosen: Ints) -> Clips:
        corpus = self.corpus
        return Clips(
            *(torch.from_numpy(column[chosen]) for column in (corpus.waveforms, corpus.lengths, corpus.labels))
        )


def run(
    config: TrainConfig,
    *,
    corpus: Corpus | None = None,
    pipelines: Sequence[Pipeline] | None = None,
    resume_command: str = "the same with resume",
) -> RunOutcome:
    """Train what `config` names and leave models, logs, plots and a report behind.

    `corpus` takes the place of the recordings that `config` names, `pipelines` that of the registry's. A pipeline
    that fails is logged and named in the outcome; the others go on.
    Raises ConfigError for settings this machine cannot do, DataError without usable recordings, Interrupted
    after Ctrl-C or SIGTERM (`resume_command` is what the last line then tells to type).
    """
    choose_precision(config, choose_device(config))
    chosen = [get_pipeline(name) for name in config.pipelines] if pipelines is None else list(pipelines)
    with cpu_threads(config.threads), RunLogger(Path(config.log_dir), config.pipeline) as logger:
        try:
            with StopSignals() as signals:
                return _run(config, corpus, chosen, logger, signals)
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
) -> RunOutcome:
    logger.record(f"version {__version__}, process {os.getpid()}", "start", config=to_dict(config))
    _meet_teachers(config, logger)
    _load_noise(config, pipelines, logger)
    material = _load(config, corpus, logger)
    results: list[PipelineResult] = []
    failures: dict[str, str] = {}
    for pipeline in pipelines:
        try:
            results.append(_PipelineRun(pipeline, material, logger, signals).result())
        except DigitError as error:
            failures[pipeline.name] = str(error)
            logger.fail(f"{pipeline.name} failed: {error}", error, pipeline=pipeline.name)
        except Exception as error:  # a bug of one pipeline must not cost the user the other two
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


def _meet_teachers(config: TrainConfig, logger: RunLogger) -> None:
    """See that all teachers can teach before anything is trained; raises what Teachers does, and ConfigError."""
    if config.teacher_dir is None:
        return
    if Path(config.models_dir).resolve().is_relative_to(Path(config.teacher_dir).expanduser().resolve()):
        raise ConfigError(
            [f"models_dir {config.models_dir} lies in teacher_dir {config.teacher_dir}: a model would teach itself"]
        )
    teachers = Teachers(config.teacher_dir, torch.device("cpu"))
    if config.negative_share and teachers.of_digits_alone:
        raise ConfigError(
            [
                f"teacher {teachers.of_digits_alone[0]} has heard digits alone and cannot tell whether there is one: "
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


def _load(config: TrainConfig, corpus: Corpus | None, logger: RunLogger) -> _Material:
    if corpus is None:
        corpus = load_corpus(
            config, report=lambda line: logger.warn(line) if line.startswith("!!!") else logger.say(line)
        )
    config = settled(config, corpus)
    split = split_corpus(corpus, config, report=logger.warn)
    tested_on, recordings_hash = corpus.name, " ".join(corpus.recordings)
    corpus, split = with_synthetic_voices(corpus, split, config, report=logger.warn)
    digits, parts = corpus, split.parts
    corpus, split, negatives = with_negatives(corpus, split, config)
    summary = DataSummary(
        name=corpus.name, data_hash=corpus.data_hash, synthetic=corpus.synthetic, clips=len(digits),
        speakers=tuple(sorted(set(digits.speakers))), hours=digits.hours, split=split.name, parts=parts,
        negatives=negatives, skipped=corpus.skipped,
    )  # fmt: skip
    kind = "synthetic speech, no recordings" if corpus.synthetic else "recordings"
    told = ", ".join(f"{count} {name}" for name, count in parts.items())
    tell = logger.warn if corpus.synthetic else logger.say
    tell(
        f"data: {corpus.name} ({kind}), {len(digits)} clips of {len(summary.speakers)} speakers, "
        f"split {split.name}: {told}; without a digit: {negatives or 'none'}; hash {corpus.data_hash[:12]}",
        "data", summary=dataclasses.asdict(summary),
    )  # fmt: skip
    missing = [digit for digit in range(len(LABELS)) if digit not in digits.labels]
    if missing:
        logger.warn(f"no clip says {', '.join(LABELS[digit] for digit in missing)}: the models cannot learn that")
    if corpus.skipped:
        first = corpus.skipped[0]
        logger.warn(f"{len(corpus.skipped)} files left out, listed in the report; first {first.file}: {first.reason}")
    return _Material(config, corpus, split, summary, recordings_hash, tested_on)


class _PipelineRun:
    """One pipeline's part of a run: training, test, export, plots, summaries."""

    def __init__(self, pipeline: Pipeline, material: _Material, logger: RunLogger, signals: StopSignals) -> None:
        config = material.config
        self.pipeline, self.name = pipeline, pipeline.name
        self.config = config.resolved(pipeline.name, pipeline.recipe)
        self.material, self.logger, self.signals = material, logger, signals
        self.folder = model_folder(config.models_dir, pipeline.name)
        self.log_dir, self.plots = Path(config.log_dir), _plots(config)
        self.title = PIPELINE_TITLES.get(self.name, self.name) + (", synthetic speech" * material.corpus.synthetic)

    def result(self) -> PipelineResult:
        self._write_config()
        train = self.material.part(self.material.split.train)
        model = build_model(self.pipeline, self.config, train)
        store = self._store()
        training = self._train(model, train, store)
        del train
        model = model.cpu()
        load_weights(model, training.best_weights, self.folder)
        self._calibrate(model, training, store)
        test, waveforms = self._test(model)
        self._export(model, test)
        result = PipelineResult(
            pipeline=self.name,
            config=self.config,
            history=training.history,
            test=test,
            mistake_waveforms=waveforms[test.mistakes()],
            best_epoch=training.best_epoch,
            stopped=training.stopped,
            parameters=sum(p.numel() for p in model.parameters()),
            model_bytes=(self.folder / MODEL_FILE).stat().st_size,
            latency_ms=load_classifier(self.config.models_dir, self.name).benchmark_speed(LATENCY_CLIPS)["p50_ms"],
            train_seconds=training.seconds,
            peak_memory_mb=peak_memory_mb(),
            model_file=str(self.folder / MODEL_FILE),
            temperature=float(model.temperature),
        )
        self._write_summary(result)
        plot_confusion_matrix(test, self.plots / f"confusion_matrix_{self.name}.png", self.title)
        self.logger.say(
            f"{self.name}: {test.errors} errors in {test.clips} test clips ({100 * test.accuracy:.2f} %), "
            f"best epoch {training.best_epoch}, {training.stopped}; {result.model_file}",
            "pipeline", pipeline=self.name, errors=test.errors, clips=test.clips,
        )  # fmt: skip
        return result

    def _store(self) -> CheckpointStore:
        corpus = self.material.corpus
        identity = RunIdentity(self.name, self.config, corpus.data_hash, corpus.synthetic)
        return CheckpointStore(self.folder, identity, lambda line: self.logger.say(f"{self.name}: {line}"))

    def _train(self, model: DigitModel, train: Clips, store: CheckpointStore) -> Training:
        events = self.log_dir / "tensorboard" / f"{self.name}_{self.logger.timestamp}"
        assert self.config.epochs
        self.logger.say(f"{self.name}: {self.title}, {sum(p.numel() for p in model.parameters()):,} parameters")
        with self.logger.training(self.name, self.config.epochs, events, self._draw) as view, self.signals.deferred():
            validation = self.material.part(self.material.split.validation)
            training = train_model(model, train, validation, self.config, store=store, observer=view, stop=self.signals)
            view.catch_up(training.history)  # a resumed run may have had nothing left to train
        return training

    def _calibrate(self, model: DigitModel, training: Training, store: CheckpointStore) -> None:
        """Fit the temperature on the validation part; from here on it is part of the model and of best_model.pt."""
        validation = self.material.part(self.material.split.validation)
        validation = validation.of(validation.labels != NOT_A_DIGIT)
        scores = predict(model, validation.waveforms).scores.numpy()
        power = self.pipeline.temperature_power
        model.temperature.fill_(temperature_for_other_voices(scores, validation.labels.numpy(), power))
        best = training.history[training.best_epoch - 1]
        figures = {"loss": best.validation_loss, "accuracy": best.validation_accuracy}
        store.save_best(training.best_epoch, model.state_dict(), figures)
        self.logger.record(
            f"{self.name}: temperature {float(model.temperature):.3f}, fitted on {len(validation)} validation clips",
            "temperature", pipeline=self.name, temperature=float(model.temperature),
        )  # fmt: skip

    def _draw(self, history: Sequence[EpochRecord]) -> None:
        plot_training_history(history, self.plots / f"training_history_{self.name}.png", self.title)

    def _test(self, model: DigitModel) -> tuple[Evaluation, np.ndarray[Any, np.dtype[np.float32]]]:
        corpus, chosen = self.material.corpus, self.material.split.test
        waveforms = corpus.waveforms[chosen]
        evaluation = Evaluation(
            protocol=f"the {self.material.split.name} split of {self.material.tested_on}",
            files=tuple(corpus.files[i] for i in chosen),
            speakers=tuple(corpus.speakers[i] for i in chosen),
            labels=corpus.labels[chosen],
            probabilities=predict_probabilities(model, torch.from_numpy(waveforms)),
        )
        return evaluation, waveforms

    def _export(self, model: DigitModel, test: Evaluation) -> None:
        corpus, split = self.material.corpus, self.material.split
        metadata = model_metadata(
            pipeline=self.name, data=corpus.name, data_hash=corpus.data_hash, synthetic=corpus.synthetic,
            negatives=self.material.summary.negatives, split=split.name, accuracy=test.accuracy,
            recordings_hash=self.material.recordings_hash,
            seed=self.config.seed, temperature=float(model.temperature),
        )  # fmt: skip
        clips = np.concatenate([split.test, split.validation, split.train])[:PARITY_CLIPS]
        difference = export_onnx(model, self.folder / MODEL_FILE, metadata, corpus.waveforms[clips])
        self.logger.record(
            f"{self.name}: exported, largest difference {difference:.1e}", "export", difference=difference
        )
        scaler = model.scaler()
        if scaler is not None:  # for people: nothing of ours reads it back
            write_atomically(self.folder / "scaler.pkl", pickle.dumps(scaler))

    def _write_config(self) -> None:
        # Without `resume`: the file says how to get these weights, not how this session began.
        values = to_dict(dataclasses.replace(self.config, resume=None))
        write_json(self.log_dir / f"config_{self.name}_{self.logger.timestamp}.json", values)

    def _write_summary(self, result: PipelineResult) -> None:
        values = {
            **result.summary(), "data": dataclasses.asdict(self.material.summary),
            "config": to_dict(self.config), "versions": gather_versions(),
        }  # fmt: skip
        write_json(self.log_dir / f"metrics_summary_{self.name}_{self.logger.timestamp}.json", values)


def peak_memory_mb() -> float:
    """The most memory this process ever held, in MB; NaN where the system does not tell (Windows)."""
    if sys.platform == "win32":
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _plots(config: TrainConfig) -> Path:
    return Path(config.log_dir) / "plots"
