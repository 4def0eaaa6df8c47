"""Leave one speaker out: train on all others, test on the one, for every speaker and several seeds.

A fold is one training. What it found is a JSON file of its own, named after a hash of everything that decides it
(settings, recordings, version of this package), so a command that was stopped goes on at the fold that is missing, and
folds of other settings are never mistaken for these. A fold that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ml_training
from ml_training.config import TrainConfig, to_dict
from ml_training.data.corpus import NOT_A_DIGIT, Corpus
from ml_training.data.negatives import hash_of_words, with_negatives
from ml_training.data.splits import split_corpus
from ml_training.data.synthetic_share import settled, with_synthetic_voices
from ml_training.deploy.metadata import git_commit
from ml_training.errors import CheckpointError, ConfigError, DataError, TrainingError
from ml_training.evaluation.calibration import calibration, temperature_for_other_voices
from ml_training.evaluation.protocols import LOSO, TestClips, new_result, subset
from ml_training.pipelines.base import Pipeline
from ml_training.results import Count, EpochRecord, Evaluation, Ints, ModelScore, ProtocolResult
from ml_training.training.checkpoint import FREE_SETTINGS, INTERRUPTED, CheckpointStore, RunIdentity
from ml_training.training.observer import Unobserved
from ml_training.training.ready import build_model
from ml_training.training.setup import (
    Clips,
    cpu_threads,
    load_weights,
    predict,
    predict_probabilities,
)
from ml_training.training.trainer import train_model
from ml_training.utils.files import write_json
from ml_training.utils.signals import StopSignals

Report = Callable[[str], None]
EVERY = "every speaker"
PER_FOLD = ("held_out_speaker", "seed")


@dataclass(frozen=True)
class Fold:
    """One training of the protocol."""

    pipeline: Pipeline
    config: TrainConfig  # resolved: split 'speaker', its speaker and its seed
    data_hash: str

    @property
    def speaker(self) -> str:
        return str(self.config.held_out_speaker)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the fold's figures, as JSON gives it back."""
        run = RunIdentity(self.pipeline.name, self.config, self.data_hash)
        deciding = {k: v for k, v in to_dict(self.config).items() if k not in FREE_SETTINGS}
        augmentation = {k: v for k, v in (deciding.pop("augmentation") or {}).items() if k != "noise_dir"}
        words_hash = hash_of_words(self.config)
        values = {
            "pipeline": self.pipeline.name, "settings": deciding, "augmentation": augmentation,
            "data_hash": self.data_hash, "noise_hash": run.noise_hash, "words_hash": words_hash,
            "teachers_hash": run.teachers_hash,
            "version": ml_training.__version__,
        }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    @property
    def folder(self) -> str:
        """Name of the folder of its checkpoints and its result."""
        key = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.pipeline.name}_{self.speaker}_seed{self.config.seed}_{key}"

    def __str__(self) -> str:
        return f"{self.pipeline.name}, seed {self.config.seed}, without {self.speaker}"


class _Progress(Unobserved):
    """One line for each epoch."""

    def __init__(self, report: Report, what: str, epochs: int) -> None:
        self.report, self.what, self.epochs = report, what, epochs

    def epoch(self, history: Sequence[EpochRecord], better: bool) -> None:
        last = history[-1]
        self.report(
            f"{self.what}: epoch {last.epoch} of {self.epochs}, validation {100 * last.validation_accuracy:.1f} %"
            f"{', better' * better}"
        )

    def note(self, line: str) -> None:
        self.report(f"{self.what}: {line}")


def leave_one_speaker_out(
    corpus: Corpus,
    pipelines: Sequence[Pipeline],
    config: TrainConfig,
    work: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    speakers: Sequence[str] = (),
    report: Report = lambda line: None,
) -> ProtocolResult:
    """Train and test every fold that has no result in `work` yet; returns what all of them found.

    `config` gives the settings of the trainings, `speakers` the ones to leave out (all when empty). Validation, for
    early stopping and the temperature, is drawn from the remaining speakers.
    Raises DataError for unknown speakers, ConfigError without seeds, TrainingError when a fold fails, Interrupted
    after Ctrl-C or SIGTERM.
    """
    names = _speakers(corpus, speakers)
    if not seeds:
        raise ConfigError(["seeds: expected one at least"], "loso")
    folds = [
        _fold(pipeline, config, speaker, seed, corpus)
        for pipeline in pipelines
        for seed in dict.fromkeys(seeds)
        for speaker in names
    ]
    done = [_finished(fold, work, report) for fold in folds]
    report(f"leave one speaker out: {len(folds)} folds, {sum(found is not None for found in done)} already there")
    results: list[dict[str, Any]] = []
    with cpu_threads(config.threads), StopSignals() as signals:
        for number, (fold, found) in enumerate(zip(folds, done, strict=True), 1):
            if found is None:
                found = _train(fold, corpus, work, signals, f"fold {number} of {len(folds)}, {fold}", report)
                write_json(work / fold.folder / "fold.json", found)
            results.append(found)
    return _gathered(corpus, names, seeds, folds, results, report)


def _speakers(corpus: Corpus, wanted: Sequence[str]) -> list[str]:
    there = sorted(set(corpus.speakers))
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise DataError(f"no speaker {', '.join(unknown)} in {corpus.name}: expected some of {', '.join(there[:100])}")
    if len(there) < 2:
        raise DataError(f"{corpus.name} has one speaker: leaving one out needs two at least")
    return list(dict.fromkeys(wanted)) or there


def _fold(pipeline: Pipeline, config: TrainConfig, speaker: str, seed: int, corpus: Corpus) -> Fold:
    own = dataclasses.replace(
        config, split="speaker", held_out_speaker=speaker, seed=seed, resume=None, keep_checkpoints="2"
    )
    return Fold(pipeline, settled(own, corpus).resolved(pipeline.name, pipeline.recipe), corpus.data_hash)


def _finished(fold: Fold, work: Path, report: Report) -> dict[str, Any] | None:
    """The fold's result, if it is there, whole and its own."""
    path = work / fold.folder / "fold.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["identity"] == fold.identity and {"test", "ece", "git_commit"} <= found.keys():
            return found
        report(f"{path} is of another fold: it is trained anew")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        report(f"{path} cannot be read ({error}): the fold is trained anew")
    return None


def _train(fold: Fold, corpus: Corpus, work: Path, signals: StopSignals, what: str, report: Report) -> dict[str, Any]:
    config, split = fold.config, split_corpus(corpus, fold.config, report=report)
    corpus, split = with_synthetic_voices(corpus, split, config, report=report)
    parts = split.parts
    corpus, split, _ = with_negatives(corpus, split, config)
    train, validation = _part(corpus, split.train), _part(corpus, split.validation)
    folder = work / fold.folder
    store = CheckpointStore(folder, RunIdentity(fold.pipeline.name, config, corpus.data_hash, corpus.synthetic))
    if store.epochs() or (folder / INTERRUPTED).exists():
        config = dataclasses.replace(config, resume="latest")
    model = build_model(fold.pipeline, config, train)
    observer = _Progress(report, what, config.epochs or 0)
    try:
        with signals.deferred():
            training = train_model(model, train, validation, config, store=store, observer=observer, stop=signals)
    except CheckpointError as error:
        raise TrainingError(f"{what}: {error} (a fold starts anew without its folder {folder})") from error
    except TrainingError as error:
        raise TrainingError(f"{what}: {error}") from error
    model = model.cpu()
    load_weights(model, training.best_weights, folder)
    judges = sorted({corpus.speakers[i] for i in split.validation if corpus.labels[i] != NOT_A_DIGIT})
    validation = validation.of(validation.labels != NOT_A_DIGIT)
    scores, power = predict(model, validation.waveforms).scores.numpy(), fold.pipeline.temperature_power
    model.temperature.fill_(temperature_for_other_voices(scores, validation.labels.numpy(), power))
    test = Evaluation(
        protocol=f"{LOSO}: {fold.speaker} of {corpus.name} left out",
        files=tuple(corpus.files[i] for i in split.test), speakers=tuple(corpus.speakers[i] for i in split.test),
        labels=corpus.labels[split.test],
        probabilities=predict_probabilities(model, torch.from_numpy(corpus.waveforms[split.test])),
    )  # fmt: skip
    fit = calibration(test.probabilities, test.labels)
    report(f"{what}: {100 * test.accuracy:.1f} % of {test.clips} clips right")
    return {
        "identity": fold.identity, "speaker": fold.speaker, "seed": config.seed, "pipeline": fold.pipeline.name,
        "git_commit": git_commit(), "validation_speakers": judges,
        "parts": parts, "best_epoch": training.best_epoch, "epochs": len(training.history),
        "stopped": training.stopped, "seconds": training.seconds, "temperature": float(model.temperature),
        "ece": fit.ece, "nll": fit.nll, "test": test.summary(),
    }  # fmt: skip


def _part(corpus: Corpus, chosen: Ints) -> Clips:
    columns = (corpus.waveforms, corpus.lengths, corpus.labels)
    waveforms, lengths, labels = (torch.from_numpy(column[chosen]) for column in columns)
    return Clips(waveforms, lengths, labels)


def _gathered(
    corpus: Corpus, speakers: Sequence[str], seeds: Sequence[int], folds: Sequence[Fold],
    results: Sequence[Mapping[str, Any]], report: Report,
) -> ProtocolResult:  # fmt: skip
    commits = sorted({str(found["git_commit"]) for found in results})
    if len(commits) > 1:
        report(f"note: these folds were trained at {len(commits)} commits: {', '.join(c[:12] for c in commits)}")
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for fold, found in zip(folds, results, strict=True):
        groups.setdefault((fold.pipeline.name, str(fold.config.seed)), []).append(found)
    scores = tuple(_sum(pipeline, seed, found) for (pipeline, seed), found in groups.items())
    chosen = np.isin(np.asarray(corpus.speakers), speakers)
    spared = EVERY if len(speakers) == len(set(corpus.speakers)) else ", ".join(speakers)
    kept = ("speaker", "seed", "pipeline", "git_commit", "best_epoch", "epochs", "seconds", "temperature", "ece", "nll")
    settings = {
        fold.pipeline.name: {k: fold.identity[k] for k in ("settings", "augmentation", "noise_hash")} for fold in folds
    }
    clips = TestClips(subset(corpus, np.flatnonzero(chosen)), official=False)
    return new_result(
        LOSO,
        f"One speaker left out of the training at a time, {spared}; validation drawn from the remaining speakers",
        clips,
        seeds=list(dict.fromkeys(seeds)),
        scores=scores,
        details={
            "commits": commits,
            "left_out": [] if spared == EVERY else list(speakers),
            "folds": [{k: found[k] for k in kept} for found in results],
            "trainings": {  # but for what differs from fold to fold
                name: {**how, "settings": {k: v for k, v in how["settings"].items() if k not in PER_FOLD}}
                for name, how in settings.items()
            },
        },
    )


def _sum(pipeline: str, seed: str, folds: Sequence[Mapping[str, Any]]) -> ModelScore:
    by_speaker: dict[str, Count] = {}
    digits: dict[str, Count] = {}
    for found in folds:
        test = found["test"]
        by_speaker[found["speaker"]] = Count(test["clips"] - test["errors"], test["clips"])
        for digit, n in test["by_digit"].items():
            before = digits.get(digit, Count(0, 0))
            digits[digit] = Count(before.right + n["right"], before.clips + n["clips"])
    counts = by_speaker.values()
    return ModelScore(
        pipeline, seed, Count(sum(c.right for c in counts), sum(c.clips for c in counts)), by_speaker,
        dict(sorted(digits.items())), tuple(m for found in folds for m in found["test"]["mistakes"]),
    )  # fmt: skip
