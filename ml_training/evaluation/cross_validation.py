"""K-fold and leave-one-speaker-out cross-validation: every clip is tested by a model that was not trained on it.

A fold is one training and its result one JSON file, in a folder named after a hash of everything that decides its
figures (settings, recordings, version of this package). The same command continues where it was stopped: with the
missing folds, and the one that was running from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ml_training
from digit_detector.classifier import MODEL_FILE
from digit_detector.cli.signals import StopSignals
from digit_detector.errors import CheckpointError, ConfigError, DataError, TrainingError
from digit_detector.files import write_json
from digit_detector.labels import model_folder
from digit_detector.memory import available_memory
from digit_detector.model_file import git_commit
from ml_training.config import MAX_FOLDS, TrainConfig, to_dict
from ml_training.data.corpus import NOT_A_DIGIT, Corpus, select_clips
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.feature_cache import Cache, use_cache
from ml_training.data.negatives import hash_of_words
from ml_training.data.splits import known_speakers
from ml_training.data.tts import resolve_synthetic_ratio
from ml_training.deploy.export import export_onnx
from ml_training.evaluation.process_pool import JobProgress, Worker, run_jobs
from ml_training.evaluation.protocols import CV, LOSO, TestClips, new_result
from ml_training.metrics import measure_calibration
from ml_training.pipelines.base import Pipeline
from ml_training.registry import is_registered
from ml_training.results import Count, EpochRecord, Misclassified, ModelScore, ProtocolResult
from ml_training.training.checkpoint import FREE_SETTINGS, CheckpointStore, load_weights
from ml_training.training.classification import build_model, predict_probabilities, run_identity, train_model
from ml_training.training.seeding import cpu_threads
from ml_training.training.trainer import NullCallback
from ml_training.training.training_data import PARITY_CLIPS, fit_temperature, load_training_data

Report = Callable[[str], None]
RESULT = "fold.json"
PER_FOLD = ("held_out_speaker", "fold", "seed")  # settings that differ between folds
WORKER_MEMORY = 1_000_000_000  # bytes that a worker process is expected to need
_LONGEST_NAME = 150  # bytes of a speaker's name in that of a folder; file systems take 255
_KEYS = {"identity", "test", "ece", "git_commit", "parts"}  # of a complete result
_SUMMARY = (
    "left_out", "seed", "pipeline", "git_commit", "best_epoch", "epochs", "seconds", "temperature", "ece", "nll"
)  # fmt: skip


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
        """Everything that decides the figures, as it comes back from JSON."""
        run = run_identity(self.pipeline.name, self.config, self.data_hash)
        settings = {k: v for k, v in to_dict(self.config).items() if k not in FREE_SETTINGS}
        augmentation = {k: v for k, v in (settings.pop("augmentation") or {}).items() if k != "noise_dir"}
        values = {
            "pipeline": self.pipeline.name, "settings": settings, "augmentation": augmentation,
            "data_hash": self.data_hash, "noise_hash": run.noise_hash, "words_hash": hash_of_words(self.config),
            "teachers_hash": run.teachers_hash, "version": ml_training.__version__,
        }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    @property
    def folder(self) -> str:
        """Name of the folder of its checkpoints and its result."""
        key = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]
        name = "".join(c if c.isprintable() else "_" for c in self.left_out.replace("/", "_of_"))
        name = name.encode()[:_LONGEST_NAME].decode(errors="ignore")
        return f"{self.pipeline.name}_{name}_seed{self.config.seed}_{key}"

    def __str__(self) -> str:
        what = f"fold {self.config.fold}" if self.config.fold else f"without {self.config.held_out_speaker}"
        return f"{self.pipeline.name}, seed {self.config.seed}, {what}"


class _EpochLines(NullCallback):
    """Calls `on_epoch` with the number and validation accuracy of each epoch, `report` with notes."""

    def __init__(self, fold: Fold, report: Report, on_epoch: Callable[[int, float], None]) -> None:
        self._fold, self._report, self._on_epoch = fold, report, on_epoch

    def epoch(self, history: Sequence[EpochRecord], better: bool) -> None:
        self._on_epoch(history[-1].epoch, history[-1].validation_accuracy)

    def note(self, line: str) -> None:
        self._report(f"{self._fold}: {line}")


def load_fold(fold: Fold, work: Path, report: Report, with_model: bool = False) -> dict[str, Any] | None:
    """The result of a fold, or None where it, or `with_model` its model, must be trained."""
    path = work / fold.folder / RESULT
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result["identity"] != fold.identity or not result.keys() >= _KEYS or "misclassified" not in result["test"]:
            report(f"{path} is of another fold: it is retrained")
        elif with_model and not (model_folder(path.parent, fold.pipeline.name) / MODEL_FILE).is_file():
            report(f"{fold}: its model was thrown away: it is retrained to keep it")
        else:
            return result
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        report(f"{path} cannot be read ({error}): the fold is retrained")
    return None


def train_fold(
    fold: Fold, corpus: Corpus, work: Path, stop: StopSignals, keep_model: bool, report: Report,
    on_epoch: Callable[[int, float], None],
) -> dict[str, Any]:  # fmt: skip
    """Train and test a fold, write its result and return it.

    A model that is kept is best_model.pt and a folder of models beside the result. `on_epoch` gets the number of each
    epoch and its validation accuracy. Raises TrainingError, CheckpointError, or Interrupted after a stop signal.
    """
    folder = work / fold.folder
    data, pipeline = load_training_data(fold.config, corpus, report, report), fold.pipeline.name
    config, split, mixed = fold.config, data.split, data.corpus
    store = CheckpointStore(folder, run_identity(pipeline, config, mixed.data_hash, corpus.synthetic))
    if store.resumable:
        config = dataclasses.replace(config, resume="latest")
    train = data.part(split.train, seldom=not config.full_augmentation.enabled)
    model = build_model(fold.pipeline, config, train)
    observer = _EpochLines(fold, report, on_epoch)
    with stop.deferred():
        training = train_model(
            model, train, data.part(split.validation), config, store=store, callback=observer, stop=stop
        )
    model = model.cpu()
    load_weights(model, training.best_weights, folder)
    temperature, _ = fit_temperature(model, fold.pipeline, data)
    model.temperature.fill_(temperature)
    test = data.evaluate(lambda waveforms: predict_probabilities(model, torch.from_numpy(waveforms)))
    fit = measure_calibration(test.probabilities, test.labels)
    validated = {mixed.speakers[i] for i in split.validation if mixed.labels[i] != NOT_A_DIGIT}
    result = {
        "identity": fold.identity, "left_out": fold.left_out, "seed": config.seed, "pipeline": pipeline,
        "git_commit": git_commit(), "validation_speakers": sorted(validated), "parts": data.summary.parts,
        "best_epoch": training.best_epoch, "epochs": len(training.history), "stopped": training.stopped,
        "seconds": training.seconds, "temperature": temperature, "ece": fit.ece, "nll": fit.nll, "test": test.summary(),
    }  # fmt: skip
    if keep_model:
        metadata = data.metadata(pipeline, test, temperature, epoch=training.best_epoch, commit=result["git_commit"])
        export_onnx(model, model_folder(folder, pipeline) / MODEL_FILE, metadata, data.real_clips(PARITY_CLIPS))
    write_json(folder / RESULT, result)
    if not keep_model:
        for path in folder.glob("*.pt"):
            path.unlink(missing_ok=True)
    return result


@dataclass(frozen=True)
class Plan:
    """Which folds are trained: `folds` of them, or for None one without each speaker; all for every seed."""

    folds: int | None = None
    speakers: tuple[str, ...] = ()  # to leave out; empty: each
    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: int | None = None  # processes; None: as many as cores and memory allow
    keep_models: bool = True
    retrain_thrown: bool = False  # folds whose models were thrown away

    @property
    def protocol(self) -> str:
        return CV if self.folds else LOSO


def plan_folds(corpus: Corpus, pipelines: Sequence[Pipeline], config: TrainConfig, plan: Plan) -> list[Fold]:
    """The folds for each pipeline and seed. Raises ConfigError and DataError as cross_validate does."""
    if not plan.seeds:
        raise ConfigError(["seeds: expected one at least"], plan.protocol)
    if plan.folds is None:
        known = known_speakers(corpus)
        if unknown := [name for name in plan.speakers if name not in known]:
            expected = ", ".join(known[:100])
            raise DataError(f"no speaker {', '.join(unknown)} in {corpus.name}: expected some of {expected}")
        speakers = dict.fromkeys(plan.speakers or known)
        parts = [{"split": "speaker", "held_out_speaker": name} for name in speakers]
    else:
        most = min(MAX_FOLDS, len(corpus))
        if not 2 <= plan.folds <= most:
            raise ConfigError([f"expected 2 to {most} folds of {len(corpus)} clips, got {plan.folds}"], plan.protocol)
        parts = [{"split": "fold", "fold": f"{number}/{plan.folds}"} for number in range(1, plan.folds + 1)]
    folds = []
    for pipeline in pipelines:
        for seed in dict.fromkeys(plan.seeds):
            for part in parts:
                values: dict[str, Any] = {"resume": None, "keep_checkpoints": "2", "seed": seed, **part}
                own = resolve_synthetic_ratio(dataclasses.replace(config, **values), corpus)
                folds.append(Fold(pipeline, own.resolve(pipeline.name, pipeline.recipe), corpus.data_hash))
    return folds


def cross_validate(
    corpus: Corpus, pipelines: Sequence[Pipeline], config: TrainConfig, work: Path, plan: Plan,
    report: Report = lambda line: None,
) -> ProtocolResult:  # fmt: skip
    """Train and test every fold that has no result in `work` yet; returns the result of all.

    Validation clips, for early stopping and the temperature, come from those that are not left out. Several processes
    are for the recordings that `config` names and pipelines of the registry; their results have the same bits as those
    of one. Raises DataError for unknown speakers or too few clips, ConfigError for an impossible plan, TrainingError
    for folds that failed (the others are trained all the same), Interrupted after Ctrl-C or SIGTERM.
    """
    folds = plan_folds(corpus, pipelines, config, plan)
    results = [load_fold(fold, work, report, plan.retrain_thrown) for fold in folds]
    missing = [fold for fold, result in zip(folds, results, strict=True) if result is None]
    jobs = min(plan.jobs or _suggest_jobs(len(missing), config), len(missing))
    if not all(map(is_registered, pipelines)):
        jobs = min(jobs, 1)
    name = f"{plan.folds} folds" if plan.folds else "leave one speaker out"
    processes = f", {jobs} processes" if jobs > 1 else ""
    report(f"{name}: {len(folds)} trainings, {len(folds) - len(missing)} already done{processes}")
    if failures := _train_missing(missing, corpus, config, work, plan.keep_models, jobs, report):
        count = f"{len(failures)} of {len(folds)}"
        raise TrainingError(f"{count} folds failed, the same command tries them again: {'; '.join(failures)}")
    loaded = [result or load_fold(fold, work, report) for fold, result in zip(folds, results, strict=True)]
    if None in loaded:
        raise TrainingError(f"results of folds vanished from {work}: start again while no other program writes there")
    return _aggregate(corpus, plan, folds, [result for result in loaded if result], report)


def _suggest_jobs(folds: int, config: TrainConfig) -> int:
    """The number of processes that have a core and enough memory each."""
    if config.device == "cuda" or not config.threads:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = available_memory()
    most = cores // config.threads if memory is None else min(cores // config.threads, memory // WORKER_MEMORY)
    return max(1, min(folds, most))


_Job = tuple[int, Fold, TrainConfig, Path, bool]  # position, fold, recordings, folder, whether its model is kept


def _train_missing(
    folds: Sequence[Fold], corpus: Corpus, config: TrainConfig, work: Path, keep: bool, jobs: int, report: Report
) -> list[str]:
    """Train `folds`, in this process if `jobs` is 1; returns why some failed. Raises Interrupted."""
    failures: list[str] = []
    epochs, began = [0] * len(folds), time.monotonic()
    with StopSignals() as signals, JobProgress(sum(fold.config.epochs or 0 for fold in folds), report) as progress:
        ended = 0

        def show_epoch(position: int, epoch: int) -> None:
            progress.update(position, f"{folds[position].left_out} at {epoch}", epoch - epochs[position])
            epochs[position] = epoch

        def end(position: int, accuracy: float, error: str | None = None) -> None:
            nonlocal ended
            fold = folds[position]
            progress.update(position, None, (fold.config.epochs or 0) - epochs[position])
            if error is not None:
                failures.append(f"{fold}: {error}")
                report(f"{failures[-1]}; continuing with the others")
                return
            ended += 1
            minutes = (time.monotonic() - began) / 60
            done = f"done, {ended} of {len(folds)}, {minutes:.1f} minutes"
            report(f"{fold}: {100 * accuracy:.1f} % of its clips right; {done}")

        if jobs > 1:
            run_jobs(
                _train_in_worker,
                [(position, fold, config, work, keep) for position, fold in enumerate(folds)], jobs, signals,
                lambda message: report(message) if isinstance(message, str) else show_epoch(*message),
                lambda done: None if signals.signum else end(done.job[0], done.result, done.error),
            )  # fmt: skip
            return failures
        with cpu_threads(config.threads):
            for position, fold in enumerate(folds):
                try:
                    result = train_fold(
                        fold, corpus, work, signals, keep, report,
                        lambda epoch, accuracy, position=position: show_epoch(position, epoch),  # type: ignore[misc]
                    )  # fmt: skip
                    end(position, result["test"]["accuracy"])
                except (TrainingError, CheckpointError) as error:
                    end(position, 0.0, str(error))
    return failures


def _train_in_worker(worker: Worker, job: _Job) -> float:
    """Train a fold; returns the accuracy on its test clips. Sends (position, epoch) and lines to show."""
    position, fold, config, work, keep = job
    with use_cache(Cache() if config.cache else None), cpu_threads(config.threads):
        corpus = load_unchanged(worker, config, fold.data_hash)
        result = train_fold(
            fold, corpus, work, worker.stop, keep, worker.send, lambda epoch, accuracy: worker.send((position, epoch))
        )
    accuracy: float = result["test"]["accuracy"]
    return accuracy


def load_unchanged(worker: Worker, config: TrainConfig, data_hash: str) -> Corpus:
    """The corpus of `config`, loaded once by each worker. Raises TrainingError for another hash than `data_hash`."""
    corpus: Corpus | None = worker.kept.get("corpus")
    if corpus is None:
        corpus = worker.kept["corpus"] = load_corpus(config, report=lambda line: None)
    if corpus.data_hash != data_hash:
        raise TrainingError(f"{corpus.name} changed: start again while no other program writes there")
    return corpus


def _aggregate(
    corpus: Corpus, plan: Plan, folds: Sequence[Fold], results: Sequence[Mapping[str, Any]], report: Report
) -> ProtocolResult:
    commits = sorted({str(result["git_commit"]) for result in results})
    if len(commits) > 1:
        report(f"note: these folds were trained at {len(commits)} commits: {', '.join(c[:12] for c in commits)}")
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for fold, result in zip(folds, results, strict=True):
        groups.setdefault((fold.pipeline.name, str(fold.config.seed)), []).append(result)
    everyone = sorted(set(corpus.speakers))
    speakers = everyone if plan.folds else sorted({fold.left_out for fold in folds})
    definition = (
        f"{plan.folds} folds, each with its part of every speaker and digit; tested on one, trained on the others, "
        "validation drawn from these. The speakers are those of the training"
        if plan.folds
        else f"One speaker left out of the training at a time, "
        f"{'every speaker' if speakers == everyone else ', '.join(speakers)}; "
        "validation drawn from the remaining speakers"
    )
    tested = select_clips(corpus, np.flatnonzero(np.isin(np.asarray(corpus.speakers), speakers)))
    trainings = {}
    for fold in folds:
        settings = {k: v for k, v in fold.identity["settings"].items() if k not in PER_FOLD}
        others = {name: fold.identity[name] for name in ("augmentation", "noise_hash")}
        trainings[fold.pipeline.name] = {"settings": settings, **others}
    return new_result(
        plan.protocol, definition, TestClips(tested, official=False), seeds=list(dict.fromkeys(plan.seeds)),
        scores=tuple(_sum_folds(pipeline, seed, group) for (pipeline, seed), group in groups.items()),
        details={
            "commits": commits,
            "left_out": [] if speakers == everyone else speakers,
            "folds": [
                {name: result[name] for name in _SUMMARY}
                | {"clips": result["test"]["clips"], "right": result["test"]["clips"] - result["test"]["errors"]}
                | {"trained_on": result["parts"]["train"]}
                for result in results
            ],
            "confusion": {
                name: np.sum([r["test"]["confusion"] for r in results if r["pipeline"] == name], axis=0).tolist()
                for name in trainings
            },
            "trainings": trainings,
        },
    )  # fmt: skip


def _sum_folds(pipeline: str, seed: str, results: Sequence[Mapping[str, Any]]) -> ModelScore:
    tests = [result["test"] for result in results]

    def add(field: str) -> dict[str, Count]:
        counts: dict[str, list[Mapping[str, int]]] = {}
        for test in tests:
            for name, count in test[field].items():
                counts.setdefault(name, []).append(count)
        return {
            n: Count(sum(c["right"] for c in own), sum(c["clips"] for c in own)) for n, own in sorted(counts.items())
        }

    clips, errors = (sum(test[name] for test in tests) for name in ("clips", "errors"))
    misclassified = tuple(Misclassified(**clip) for test in tests for clip in test["misclassified"])
    return ModelScore(pipeline, seed, Count(clips - errors, clips), add("by_speaker"), add("by_digit"), misclassified)
