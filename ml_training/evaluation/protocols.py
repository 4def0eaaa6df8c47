"""Named protocols for trained models: official, strangers, noise, calibration, rejection. (cv and loso train.)

Each takes loaded models and clips and gives a ProtocolResult that says with which clips, seeds, code and models its
figures were made. No protocol scores a model on digits that it was trained on; of clips without one nobody can tell.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import ml_training
from digit_detector.audio import SAMPLE_RATE
from digit_detector.classifier import DigitClassifier, load_classifier, model_file
from digit_detector.errors import DataError
from digit_detector.labels import FP32, trained_pipelines
from digit_detector.model_file import git_commit
from ml_training.calibration import BINS, calibration, tempered
from ml_training.data.corpus import OFFICIAL_TEST_INDICES, Corpus
from ml_training.evaluation.perturbations import CLEAN, FRAME, WORD_DB, Condition, Recordings, perturbed
from ml_training.results import (
    Count,
    Curve,
    Evaluation,
    Floats,
    ModelCard,
    ModelScore,
    Point,
    ProtocolResult,
    Reliability,
)

PROTOCOLS = ("official", "cv", "loso", "strangers", "noise", "calibration", "rejection")
OFFICIAL, CV, LOSO, STRANGERS, NOISE, CALIBRATION, REJECTION = PROTOCOLS
TRAINED_BY_FOLDS = (CV, LOSO)
THROWN, KEPT = MODELS = ("thrown away", "kept")  # what becomes of the models of folds
BATCH = 100

Report = Callable[[str], None]


def _silent(line: str) -> None:
    pass


@dataclass(frozen=True)
class TrainedModel:
    """A model that answers, and who it is."""

    classifier: DigitClassifier
    card: ModelCard

    def answers(self, waveforms: Floats) -> Floats:
        """(N, 8000) -> (N, 10) probabilities."""
        return self.predict_proba(waveforms)[0]

    def predict_proba(self, waveforms: Floats) -> tuple[Floats, Floats]:
        """(N, 8000) -> (N, 10) probabilities and (N,) digit scores."""
        parts = [self.classifier.predict_proba(waveforms[i : i + BATCH]) for i in range(0, len(waveforms), BATCH)]
        probabilities, digit_scores = zip(*parts, strict=True)
        return np.concatenate(probabilities), np.concatenate(digit_scores)


@dataclass(frozen=True)
class TestClips:
    """Clips that models are scored on: a whole corpus or its official test part."""

    __test__ = False  # no test case, whatever pytest thinks of the name

    corpus: Corpus  # only the clips to score
    official: bool  # FSDD's meaning: recordings 0 to 4 of each speaker and digit

    @property
    def description(self) -> str:
        corpus, speakers = self.corpus, len(set(self.corpus.speakers))
        numbers = f"recordings 0 to {OFFICIAL_TEST_INDICES - 1} of each speaker and digit"
        own = "the test part" if corpus.parts else numbers
        part = own if self.official else "all clips"
        return f"{part} of {corpus.name}: {len(corpus)} clips, {speakers} speakers"


def load_models(
    folders: Sequence[str | Path],
    pipeline: str,
    report: Report = _silent,
    precision: str = FP32,
    version: int | None = None,
) -> list[TrainedModel]:
    """The trained models of some folders: one pipeline, or of "all" those that are there; None is the promoted version.

    Raises ModelError for a folder without any, and for damaged or foreign files.
    """
    models = []
    for folder in folders:
        names = trained_pipelines(folder) if pipeline == "all" else (pipeline,)
        there = [name for name in names if model_file(folder, name, precision, version).is_file()]
        missing = [name for name in names if name not in there]
        if there and missing:
            which = "" if version is None else f" of version {version}"
            report(f"{folder} holds no trained {' and no '.join(missing)}{which}: left out")
        models += [
            _load(folder, name, precision, version) for name in there or names[:1]
        ]  # of none, the first says what is missing
    keys = [(m.card.pipeline, m.card.seed) for m in models]
    return [
        TrainedModel(m.classifier, dataclasses.replace(m.card, seed=f"{m.card.seed} {m.card.sha256[:6]}"))
        if keys.count(key) > 1  # two of one seed, or of seeds that nobody noted down
        else m
        for m, key in zip(models, keys, strict=True)
    ]


def _load(folder: str | Path, pipeline: str, precision: str, version: int | None) -> TrainedModel:
    classifier = load_classifier(folder, pipeline, precision=precision, version=version)
    said, parts = classifier.metadata, 3 if version is None else 5  # models/mfcc_classifier, perhaps versions/2, file
    which = "" if precision == FP32 else f" {precision}"  # tables and logs tell models apart by their seeds
    card = ModelCard(
        pipeline=pipeline, seed=said.get("seed", "unknown") + which,
        file="/".join(classifier.model_file.parts[-parts:]),
        sha256=hashlib.sha256(classifier.model_file.read_bytes()).hexdigest(), data=said.get("data", "unknown"),
        data_hash=said.get("data_hash", "unknown"), split=said.get("split", "unknown"),
        version=said.get("version", "unknown"), git_commit=said.get("git_commit", "unknown"),
        temperature=float(said.get("temperature", "1")), precision=precision,
    )  # fmt: skip
    return TrainedModel(classifier, card)


def official_part(corpus: Corpus) -> TestClips:
    """FSDD's test part, or that of a corpus numbered like it. Raises DataError for any other corpus."""
    if not corpus.official_split:
        raise DataError(
            f"{corpus.name} has no official test part, which needs recordings on both sides of number "
            f"{OFFICIAL_TEST_INDICES} for every speaker and digit: score it whole with --folder"
        )
    chosen = np.flatnonzero(corpus.official_test)
    return TestClips(subset(corpus, chosen), official=True)


def subset(corpus: Corpus, chosen: np.ndarray[Any, np.dtype[np.int64]]) -> Corpus:
    """The clips of a corpus at the given positions; its name and hash stay those of the whole."""
    return dataclasses.replace(
        corpus, waveforms=corpus.waveforms[chosen], lengths=corpus.lengths[chosen], labels=corpus.labels[chosen],
        speakers=tuple(corpus.speakers[i] for i in chosen), indices=corpus.indices[chosen],
        files=tuple(corpus.files[i] for i in chosen),
        parts=tuple(corpus.parts[i] for i in chosen) if corpus.parts else (),
    )  # fmt: skip


def refuse_known(models: Sequence[TrainedModel], clips: TestClips) -> None:
    """Raise DataError where a model was trained on some of the clips, as far as the hash of its data tells."""
    for model in models:
        card, file = model.card, model.classifier.model_file
        if not set(clips.corpus.recordings) & set(said_hashes(model)):
            continue
        if not clips.official:
            raise DataError(
                f"{file} was trained on these very recordings ({card.data}, hash {clips.corpus.data_hash[:12]}): its "
                "figures would say nothing about people it never heard; score other recordings, or the official test "
                "part with --protocol official"
            )
        if card.split != "official":
            raise DataError(
                f"{file} was trained on {card.data} with split {card.split!r}, so it has heard clips of the "
                "official test part: train with --split official"
            )


def said_hashes(model: TrainedModel) -> list[str]:
    """The hashes of the recordings a model was trained on, synthetic voices among them left out."""
    return model.classifier.metadata.get("recordings_hash", model.card.data_hash).split()


# --- protocols -----------------------------------------------------------------------------------


def official(models: Sequence[TrainedModel], clips: TestClips) -> ProtocolResult:
    """Errors and accuracy on the official test part."""
    return _scored(OFFICIAL, "Official test part, same speakers as in training", models, clips)


def strangers(models: Sequence[TrainedModel], clips: TestClips) -> ProtocolResult:
    """Errors and accuracy, by speaker and digit, on recordings that no model was trained on."""
    return _scored(STRANGERS, "Recordings and speakers never trained on", models, clips)


def _scored(protocol: str, definition: str, models: Sequence[TrainedModel], clips: TestClips) -> ProtocolResult:
    refuse_known(models, clips)
    scores = [score(m.card, m.answers(clips.corpus.waveforms), clips.corpus) for m in models]
    return new_result(protocol, definition, clips, models, scores=tuple(scores))


def noise(
    models: Sequence[TrainedModel],
    clips: TestClips,
    seed: int = 0,
    recordings: Recordings | None = None,
    report: Report = _silent,
) -> ProtocolResult:
    """Accuracy against the severity of noises, band limits, clipping, rooms, speeds, levels and places."""
    refuse_known(models, clips)
    labels = clips.corpus.labels
    drawn: list[dict[str, Any]] = []
    points: dict[str, tuple[Condition, list[list[Point]]]] = {}
    clean: list[Point] = []
    scores: tuple[ModelScore, ...] = ()
    for condition, waveforms in perturbed(clips.corpus.waveforms, seed, recordings, drawn):
        if condition.kind not in points:
            points[condition.kind] = (condition, [[point] for point in clean] or [[] for _ in models])
            report(condition.title)
        answers = [model.answers(waveforms) for model in models]
        found = [
            Point(condition.severity, condition.label, Count(int((a.argmax(axis=1) == labels).sum()), len(labels)))
            for a in answers
        ]
        for row, point in zip(points[condition.kind][1], found, strict=True):
            row.append(point)
        if condition == CLEAN:
            clean = found
            scores = tuple(score(m.card, a, clips.corpus) for m, a in zip(models, answers, strict=True))
    curves = tuple(
        Curve(kind, condition.title, condition.axis, model.card.pipeline, model.card.seed, tuple(row))
        for kind, (condition, rows) in points.items()
        if kind != CLEAN.kind
        for model, row in zip(models, rows, strict=True)
    )
    definition = (
        f"Clips changed one way at a time; signal-to-noise ratios over the word, which is its frames of "
        f"{1000 * FRAME // SAMPLE_RATE} ms at most {WORD_DB:g} dB below the loudest"
    )
    details: dict[str, Any] = {"noise_seed": seed, "frame_samples": FRAME, "word_db": WORD_DB}
    if recordings is not None:
        details["noise_folder"] = recordings.name
        details["noise_files_left_out"] = list(recordings.skipped)
        details["noise_drawn"] = [
            {"clip": clip, **which} for clip, which in zip(clips.corpus.files, drawn, strict=True)
        ]
    return new_result(NOISE, definition, clips, models, scores=scores, curves=curves, details=details)


def calibrated(models: Sequence[TrainedModel], clips: TestClips) -> ProtocolResult:
    """Reliability and expected calibration error, before and after the temperature in the exported graph."""
    refuse_known(models, clips)
    scores, found = [], []
    for model in models:
        after = model.answers(clips.corpus.waveforms)
        scores.append(score(model.card, after, clips.corpus))
        before = tempered(after, 1.0 / model.card.temperature)  # takes back the graph's division
        for when, probabilities, temperature in (("before", before, 1.0), ("after", after, model.card.temperature)):
            fit = calibration(probabilities, clips.corpus.labels)
            who = (model.card.pipeline, model.card.seed)
            found.append(Reliability(*who, when, temperature, fit.ece, fit.nll, fit.bins))
    definition = (
        f"Expected calibration error over {BINS} bins of equal width, before and after the temperature that was "
        "fitted on the validation part of the training and is part of the exported graph"
    )
    return new_result(CALIBRATION, definition, clips, models, scores=tuple(scores), reliability=tuple(found))


# --- records -------------------------------------------------------------------------------------


def score(card: ModelCard, probabilities: Floats, corpus: Corpus) -> ModelScore:
    """One model's answers to a corpus."""
    evaluation = Evaluation("", corpus.files, corpus.speakers, corpus.labels, probabilities)
    return ModelScore(
        pipeline=card.pipeline, seed=card.seed, all=Count(evaluation.clips - evaluation.errors, evaluation.clips),
        by_speaker={name: Count(*n) for name, n in evaluation.accuracy_by_speaker().items()},
        by_digit={str(digit): Count(*n) for digit, n in evaluation.accuracy_by_digit().items()},
        mistakes=tuple(evaluation.summary()["mistakes"]),
    )  # fmt: skip


def new_result(
    protocol: str,
    definition: str,
    clips: TestClips,
    models: Sequence[TrainedModel] = (),
    *,
    seeds: Sequence[int] = (),
    details: Mapping[str, Any] | None = None,
    **found: Any,
) -> ProtocolResult:
    """A result that says with what it was made. `found`: scores, curves, reliability."""
    corpus = clips.corpus
    left_out = {"clips_left_out": [dataclasses.asdict(clip) for clip in corpus.skipped]} if corpus.skipped else {}
    return ProtocolResult(
        protocol=protocol, definition=f"{definition} ({clips.description})", data=corpus.name,
        data_hash=corpus.data_hash, synthetic=corpus.synthetic, clips=len(corpus), speakers=len(set(corpus.speakers)),
        seeds=tuple(map(str, seeds)) or tuple(sorted({m.card.seed for m in models})),
        version=ml_training.__version__, git_commit=git_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"), models=tuple(m.card for m in models),
        details={**(details or {}), **left_out}, **found,
    )  # fmt: skip
