"""Cross-validation: every clip is tested once by a model that did not learn from it, for each of several seeds.

K folds take their part of every speaker and digit; leaving one speaker out at a time asks about people never heard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from digit_detector.cli.live_line import LiveLine
from digit_detector.cli.signals import StopSignals
from digit_detector.errors import ConfigError, DataError, TrainingError
from ml_training.config import MAX_FOLDS, TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.data.splits import known_speakers
from ml_training.evaluation.fold_workers import suitable_jobs, train_in_processes
from ml_training.evaluation.folds import PER_FOLD, Fold, finished, fold_of, train_fold
from ml_training.evaluation.protocols import CV, KEPT, LOSO, TestClips, new_result, subset
from ml_training.pipelines import PIPELINE_REGISTRY
from ml_training.pipelines.base import Pipeline
from ml_training.results import Count, ModelScore, ProtocolResult
from ml_training.training.setup import cpu_threads

Report = Callable[[str], None]
EVERY = "every speaker"


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
    missing = [position for position, found in enumerate(done) if found is None]
    jobs = min(plan.jobs or suitable_jobs(len(missing), config), len(missing))
    foreign = [p.name for p in pipelines if PIPELINE_REGISTRY.get(p.name) is not p]
    if foreign:
        jobs = min(jobs, 1)
    name = f"{plan.folds} folds" if plan.folds else "leave one speaker out"
    several = f", {jobs} processes" if jobs > 1 else ""
    report(f"{name}: {len(folds)} trainings, {len(folds) - len(missing)} already there{several}")
    display = _Display(folds, missing, report)
    failed: dict[int, str] = {}
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        stack.callback(display.close)
        if jobs > 1:
            waiting = [folds[position] for position in missing]
            broken = train_in_processes(
                waiting, config, work, plan.models, jobs, lambda place, words: display.told(missing[place], words)
            )
            failed = {missing[place]: why for place, why in broken.items()}
        else:
            stack.enter_context(cpu_threads(config.threads))
            for position in missing:
                try:
                    epoch = partial(display.epoch, position)
                    found = train_fold(folds[position], corpus, work, signals, plan.models, display.say, epoch)
                    display.told(position, {"done": True, "share": found["test"]["accuracy"]})
                except TrainingError as error:
                    failed[position] = str(error)
                    display.say(f"{error}; going on with the others")
    if failed:
        told = "; ".join(failed.values())
        raise TrainingError(f"{len(failed)} of {len(folds)} folds failed, the same command tries them again: {told}")
    results = [found or finished(fold, work, report) for fold, found in zip(folds, done, strict=True)]
    there = [found for found in results if found is not None]
    if len(there) < len(folds):
        raise TrainingError(f"results of folds vanished from {work}: start again when nobody else writes there")
    return _gathered(corpus, plan, folds, there, report)


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


class _Display:
    """A line for each fold that is done; on a terminal also a live one that says how far all of them are."""

    def __init__(self, folds: Sequence[Fold], missing: Sequence[int], report: Report) -> None:
        self._folds, self._report = folds, report
        self._epochs = dict.fromkeys(missing, 0)
        self._done: set[int] = set()
        self._line = LiveLine()
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        self._line.clear()
        self._report(line)

    def told(self, position: int, words: Mapping[str, Any]) -> None:
        if "say" in words:
            self.say(words["say"])
        elif "done" in words:
            self._done.add(position)
            minutes = (time.monotonic() - self._began) / 60
            done = f"done, {len(self._done)} of {len(self._epochs)}, {minutes:.1f} minutes"
            self.say(f"{self._folds[position]}: {100 * words['share']:.1f} % of its clips right; {done}")
        else:
            self._epochs[position] = words["epoch"]
        self._show()

    def epoch(self, position: int, number: int, accuracy: float) -> None:
        self.told(position, {"epoch": number, "accuracy": accuracy})

    def close(self) -> None:
        self._line.clear()

    def _show(self) -> None:
        total = sum(self._folds[position].config.epochs or 0 for position in self._epochs)
        done = sum(
            (self._folds[p].config.epochs or 0) if p in self._done else epoch for p, epoch in self._epochs.items()
        )
        share = done / max(1, total)
        left = (time.monotonic() - self._began) * (1 - share) / max(share, 1e-9)
        begun = [(p, epoch) for p, epoch in self._epochs.items() if epoch and p not in self._done]
        running = [f"{self._folds[position].left_out} at {epoch}" for position, epoch in begun]
        bar = "█" * int(24 * share) + "░" * (24 - int(24 * share))
        self._line.show(
            f"{bar} {100 * share:3.0f} %  {len(self._done)} of {len(self._epochs)} folds  "
            f"{int(left) // 60}:{int(left) % 60:02} left  epochs: {', '.join(running)}"
        )


def _gathered(
    corpus: Corpus, plan: Plan, folds: Sequence[Fold], results: Sequence[Mapping[str, Any]], report: Report
) -> ProtocolResult:
    commits = sorted({str(found["git_commit"]) for found in results})
    if len(commits) > 1:
        report(f"note: these folds were trained at {len(commits)} commits: {', '.join(c[:12] for c in commits)}")
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for fold, found in zip(folds, results, strict=True):
        groups.setdefault((fold.pipeline.name, str(fold.config.seed)), []).append(found)
    scores = tuple(_sum(pipeline, seed, found) for (pipeline, seed), found in groups.items())
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
            "folds": [_told(found) for found in results],
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


def _told(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a result keeps of a fold."""
    kept = (
        "left_out", "seed", "pipeline", "git_commit", "best_epoch", "epochs", "seconds", "temperature", "ece", "nll",
    )  # fmt: skip
    clips, errors = found["test"]["clips"], found["test"]["errors"]
    sizes = {"clips": clips, "right": clips - errors, "trained_on": found["parts"]["train"]}
    return {name: found[name] for name in kept} | sizes


def _sum(pipeline: str, seed: str, folds: Sequence[Mapping[str, Any]]) -> ModelScore:
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
