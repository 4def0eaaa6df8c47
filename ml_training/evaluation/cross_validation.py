"""K-fold and leave-one-speaker-out cross-validation: every clip is tested by a model not trained on it.

Folds are stratified by speaker and digit. Missing folds are trained in one process or in several.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from digit_detector.cli.signals import StopSignals
from digit_detector.errors import ConfigError, DataError, TrainingError
from digit_detector.memory import available_memory
from ml_training.config import MAX_FOLDS, TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.feature_cache import Cache, use_cache
from ml_training.data.splits import known_speakers
from ml_training.evaluation.folds import PER_FOLD, Fold, finished, fold_of, train_fold
from ml_training.evaluation.job_progress import JobProgress
from ml_training.evaluation.process_pool import Worker, run_jobs
from ml_training.evaluation.protocols import CV, KEPT, LOSO, TestClips, new_result, subset
from ml_training.pipelines import PIPELINE_REGISTRY
from ml_training.pipelines.base import Pipeline
from ml_training.results import Count, ModelScore, ProtocolResult
from ml_training.training.seeding import cpu_threads

Report = Callable[[str], None]
EVERY = "every speaker"
WORKER_MEMORY = 1_000_000_000  # bytes that a worker process is expected to want


@dataclass(frozen=True)
class Plan:
    """Which folds: `folds` of them, or None to leave one speaker out at a time, each for every seed."""

    folds: int | None = None
    speakers: tuple[str, ...] = ()  # to leave out; all where none is named
    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: int | None = None  # processes; None for as many as suit the machine
    models: str = KEPT  # what becomes of them, of protocols.MODELS
    models_wanted: bool = False  # a fold whose model was thrown away earlier is trained anew

    @property
    def protocol(self) -> str:
        return CV if self.folds else LOSO


def cross_validate(
    corpus: Corpus, pipelines: Sequence[Pipeline], config: TrainConfig, work: Path, plan: Plan,
    report: Report = lambda line: None,
) -> ProtocolResult:  # fmt: skip
    """Train and test every fold that has no result in `work` yet; returns what all of them found.

    `config` gives the settings of the trainings. Validation, for early stopping and the temperature, is drawn from the
    clips that are not left out. Several processes are for the recordings that `config` names and pipelines of the
    registry; their results have the same bits as those of one.
    Raises DataError for unknown speakers or too few clips, ConfigError for a plan that cannot be, TrainingError when
    folds failed (the others are trained all the same), Interrupted after Ctrl-C or SIGTERM.
    """
    folds = planned_folds(corpus, pipelines, config, plan)
    done = [finished(fold, work, report, plan.models_wanted) for fold in folds]
    missing = [fold for fold, result in zip(folds, done, strict=True) if result is None]
    jobs = min(plan.jobs or suggest_jobs(len(missing), config), len(missing))
    if any(PIPELINE_REGISTRY.get(pipeline.name) is not pipeline for pipeline in pipelines):
        jobs = min(jobs, 1)
    name = f"{plan.folds} folds" if plan.folds else "leave one speaker out"
    several = f", {jobs} processes" if jobs > 1 else ""
    report(f"{name}: {len(folds)} trainings, {len(folds) - len(missing)} already there{several}")
    failures = _train_missing(missing, corpus, config, work, plan.models, jobs, report)
    if failures:
        reasons = "; ".join(failures)
        raise TrainingError(
            f"{len(failures)} of {len(folds)} folds failed, the same command tries them again: {reasons}"
        )
    results = [result or finished(fold, work, report) for fold, result in zip(folds, done, strict=True)]
    complete = [result for result in results if result is not None]
    if len(complete) < len(folds):
        raise TrainingError(f"results of folds vanished from {work}: start again when nobody else writes there")
    return _aggregate(corpus, plan, folds, complete, report)


def suggest_jobs(folds: int, config: TrainConfig) -> int:
    """The number of processes that neither share a core nor want more memory than there is."""
    if config.device == "cuda" or not config.threads:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = available_memory()
    most = cores // config.threads if memory is None else min(cores // config.threads, memory // WORKER_MEMORY)
    return max(1, min(folds, most))


def _train_missing(
    folds: Sequence[Fold], corpus: Corpus, config: TrainConfig, work: Path, models: str, jobs: int, report: Report
) -> list[str]:
    """Train `folds`, in this process if `jobs` is 1; returns why some failed. Raises Interrupted."""
    failures: list[str] = []
    epochs = [0] * len(folds)
    began = time.monotonic()
    done = 0
    total = sum(fold.config.epochs or 0 for fold in folds)
    with StopSignals() as signals, JobProgress(total, report) as progress:

        def show_epoch(position: int, epoch: int) -> None:
            progress.update(position, f"{folds[position].left_out} at {epoch}", epoch - epochs[position])
            epochs[position] = epoch

        def end(position: int, accuracy: float | None, error: str | None) -> None:
            nonlocal done
            progress.update(position, None, (folds[position].config.epochs or 0) - epochs[position])
            if error is not None:
                prefix = "" if error.startswith(str(folds[position])) else f"{folds[position]}: "
                failures.append(prefix + error)
                report(f"{failures[-1]}; going on with the others")
                return
            done += 1
            minutes = (time.monotonic() - began) / 60
            ended = f"done, {done} of {len(folds)}, {minutes:.1f} minutes"
            report(f"{folds[position]}: {100 * (accuracy or 0.0):.1f} % of its clips right; {ended}")

        if jobs > 1:
            run_jobs(
                _train_in_worker,
                [FoldJob(position, fold, config, work, models) for position, fold in enumerate(folds)],
                jobs, signals,
                on_message=lambda message: (
                    report(message) if isinstance(message, str) else show_epoch(*message)
                ),
                on_end=lambda outcome: (
                    None if signals.signum else end(outcome.job.position, outcome.result, outcome.error)
                ),
            )  # fmt: skip
            return failures
        with cpu_threads(config.threads):
            for position, fold in enumerate(folds):
                try:
                    result = train_fold(
                        fold, corpus, work, signals, models, report,
                        lambda epoch, accuracy, position=position: show_epoch(position, epoch),  # type: ignore[misc]
                    )  # fmt: skip
                    end(position, result["test"]["accuracy"], None)
                except TrainingError as error:
                    end(position, None, str(error))
    return failures


@dataclass(frozen=True)
class FoldJob:
    """A fold for a worker process, which loads the recordings that `config` names."""

    position: int
    fold: Fold
    config: TrainConfig
    work: Path
    models: str


def _train_in_worker(worker: Worker, job: FoldJob) -> float:
    """Train a fold; returns the accuracy on its test clips. Sends (position, epoch) and lines to show."""
    with use_cache(Cache() if job.config.cache else None), cpu_threads(job.config.threads):
        corpus = load_unchanged(worker, job.config, job.fold.data_hash)
        result = train_fold(
            job.fold, corpus, job.work, worker.stop, job.models, worker.send,
            lambda epoch, accuracy: worker.send((job.position, epoch)),
        )  # fmt: skip
    accuracy: float = result["test"]["accuracy"]
    return accuracy


def load_unchanged(worker: Worker, config: TrainConfig, data_hash: str) -> Corpus:
    """The corpus of `config`, loaded once by each worker. Raises TrainingError if it is not that of `data_hash`."""
    corpus: Corpus | None = worker.kept.get("corpus")
    if corpus is None:
        corpus = worker.kept["corpus"] = load_corpus(config, report=lambda line: None)
    if corpus.data_hash != data_hash:
        raise TrainingError(f"{corpus.name} changed: start again when nobody writes there")
    return corpus


def planned_folds(corpus: Corpus, pipelines: Sequence[Pipeline], config: TrainConfig, plan: Plan) -> list[Fold]:
    """The folds of a plan, for each pipeline and seed. Raises ConfigError and DataError as cross_validate does."""
    if not plan.seeds:
        raise ConfigError(["seeds: expected one at least"], plan.protocol)
    if plan.folds is None:
        left_out = [{"split": "speaker", "held_out_speaker": name} for name in _speakers(corpus, plan.speakers)]
    else:
        if not 2 <= plan.folds <= min(MAX_FOLDS, len(corpus)):
            most = min(MAX_FOLDS, len(corpus))
            raise ConfigError([f"expected 2 to {most} folds of {len(corpus)} clips, got {plan.folds}"], plan.protocol)
        left_out = [{"split": "fold", "fold": f"{number}/{plan.folds}"} for number in range(1, plan.folds + 1)]
    return [
        fold_of(pipeline, config, corpus, seed=seed, **which)
        for pipeline in pipelines
        for seed in dict.fromkeys(plan.seeds)
        for which in left_out
    ]


def _speakers(corpus: Corpus, wanted: Sequence[str]) -> list[str]:
    there = known_speakers(corpus)
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise DataError(f"no speaker {', '.join(unknown)} in {corpus.name}: expected some of {', '.join(there[:100])}")
    return list(dict.fromkeys(wanted)) or there


def _aggregate(
    corpus: Corpus, plan: Plan, folds: Sequence[Fold], results: Sequence[Mapping[str, Any]], report: Report
) -> ProtocolResult:
    commits = sorted({str(found["git_commit"]) for found in results})
    if len(commits) > 1:
        report(f"note: these folds were trained at {len(commits)} commits: {', '.join(c[:12] for c in commits)}")
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for fold, found in zip(folds, results, strict=True):
        groups.setdefault((fold.pipeline.name, str(fold.config.seed)), []).append(found)
    scores = tuple(_sum_folds(pipeline, seed, found) for (pipeline, seed), found in groups.items())
    speakers = sorted({fold.left_out for fold in folds}) if plan.folds is None else sorted(set(corpus.speakers))
    spared = EVERY if len(speakers) == len(set(corpus.speakers)) else ", ".join(speakers)
    settings = {
        fold.pipeline.name: {k: fold.identity[k] for k in ("settings", "augmentation", "noise_hash")} for fold in folds
    }
    if plan.folds is None:
        definition = (
            f"One speaker left out of the training at a time, {spared}; validation drawn from the remaining speakers"
        )
    else:
        definition = (
            f"{plan.folds} folds, each with its part of every speaker and digit; tested on one, trained on the others, "
            "validation drawn from these. The speakers are those of the training"
        )
    clips = TestClips(subset(corpus, np.flatnonzero(np.isin(np.asarray(corpus.speakers), speakers))), official=False)
    return new_result(
        plan.protocol, definition, clips, seeds=list(dict.fromkeys(plan.seeds)), scores=scores,
        details={
            "commits": commits,
            "left_out": [] if spared == EVERY else list(speakers),
            "folds": [_summarise_fold(found) for found in results],
            "confusion": {
                name: np.sum([r["test"]["confusion"] for r in results if r["pipeline"] == name], axis=0).tolist()
                for name in dict.fromkeys(fold.pipeline.name for fold in folds)
            },
            "trainings": {  # but for what differs from fold to fold
                name: {**how, "settings": {k: v for k, v in how["settings"].items() if k not in PER_FOLD}}
                for name, how in settings.items()
            },
        },
    )  # fmt: skip


def _summarise_fold(found: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a fold's result that the result of the protocol keeps."""
    kept = (
        "left_out", "seed", "pipeline", "git_commit", "best_epoch", "epochs", "seconds", "temperature", "ece", "nll",
    )  # fmt: skip
    clips, errors = found["test"]["clips"], found["test"]["errors"]
    sizes = {"clips": clips, "right": clips - errors, "trained_on": found["parts"]["train"]}
    return {name: found[name] for name in kept} | sizes


def _sum_folds(pipeline: str, seed: str, folds: Sequence[Mapping[str, Any]]) -> ModelScore:
    def summed(field: str) -> dict[str, Count]:
        sums: dict[str, Count] = {}
        for found in folds:
            for name, n in found["test"][field].items():
                before = sums.get(name, Count(0, 0))
                sums[name] = Count(before.right + n["right"], before.clips + n["clips"])
        return dict(sorted(sums.items()))

    speakers = summed("by_speaker")
    return ModelScore(
        pipeline, seed, Count(sum(c.right for c in speakers.values()), sum(c.clips for c in speakers.values())),
        speakers, summed("by_digit"), tuple(m for found in folds for m in found["test"]["mistakes"]),
    )  # fmt: skip
