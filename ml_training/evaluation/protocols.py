"""Evaluation protocols for trained models: official, unseen speakers, noise, calibration, rejection. (cv, loso train.)

Each scores loaded models on clips and returns a ProtocolResult. Clips that a model was trained on are refused by
their data hash; clips without a digit are not checked.
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
from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, decode_sound, pad_or_trim
from digit_detector.classifier import DigitClassifier, load_classifier, model_file
from digit_detector.errors import AudioError, DataError
from digit_detector.evaluation.metrics import BINS
from digit_detector.evaluation.streams import audio_files
from digit_detector.labels import FP32, IS_DIGIT, trained_pipelines
from digit_detector.model_file import git_commit
from ml_training.data.corpus import OFFICIAL_TEST_INDICES, Corpus, select_clips
from ml_training.evaluation.corruption import CORRUPTIONS, corrupt_digits
from ml_training.evaluation.perturbations import CLEAN, FRAME, WORD_DB, Recordings, perturb
from ml_training.metrics import apply_temperature, measure_calibration
from ml_training.results import (
    STRINGS,
    UNSEEN_SPEAKERS,
    Count,
    Curve,
    Evaluation,
    Floats,
    ModelCard,
    ModelScore,
    Point,
    ProtocolResult,
    Rejection,
    Reliability,
)

PROTOCOLS = ("official", "cv", "loso", UNSEEN_SPEAKERS, "noise", "calibration", "rejection", STRINGS)
OFFICIAL, CV, LOSO, _, NOISE, CALIBRATION, REJECTION, _ = PROTOCOLS
TRAINED_BY_FOLDS = (CV, LOSO)
GENERATED_KINDS = ("digits", *CORRUPTIONS, "silence")  # of clips, in rejection without recordings of them
_BATCH = 100
_ACCEPTED = (0.95, 0.9)  # shares of digits accepted at the thresholds of rejection
_LONGEST = 1.5  # seconds; longer recordings are cut into windows of a second
_HOP = SAMPLE_RATE // 2
_PAUSE_DB = -40.0  # windows further below the loudest are pauses
_ROC_POINTS = 101
_HISS_DB = -60.0  # dBFS of silence

Report = Callable[[str], None]


@dataclass(frozen=True)
class TrainedModel:
    """A loaded model and its identity."""

    classifier: DigitClassifier
    card: ModelCard

    def predict_proba(self, waveforms: Floats) -> tuple[Floats, Floats]:
        """(N, 8000) -> (N, 10) probabilities and (N,) digit scores."""
        parts = [self.classifier.predict_proba(waveforms[i : i + _BATCH]) for i in range(0, len(waveforms), _BATCH)]
        probabilities, digit_scores = zip(*parts, strict=True)
        return np.concatenate(probabilities), np.concatenate(digit_scores)


@dataclass(frozen=True)
class TestClips:
    """The clips that models are scored on."""

    __test__ = False  # no test case of pytest

    corpus: Corpus
    official: bool  # the official test part of a corpus, rather than all of its clips

    @property
    def description(self) -> str:
        corpus = self.corpus
        numbers = f"recordings 0 to {OFFICIAL_TEST_INDICES - 1} of each speaker and digit"
        part = "all clips" if not self.official else "the test part" if corpus.parts else numbers
        return f"{part} of {corpus.name}: {len(corpus)} clips, {len(set(corpus.speakers))} speakers"


@dataclass(frozen=True)
class NonDigitSet:
    """Clips of one kind in which no digit is spoken."""

    kind: str
    waveforms: Floats  # (N, 8000)
    source: str


def load_models(
    folders: Sequence[str | Path], pipeline: str, report: Report = lambda line: None, precision: str = FP32,
    version: int | None = None,
) -> list[TrainedModel]:  # fmt: skip
    """The models of one pipeline, or of "all", in some folders; version None is the promoted one.

    Raises ModelError for a folder without models and for files that are damaged or no models.
    """
    models: list[TrainedModel] = []
    for folder in folders:
        names = trained_pipelines(folder) if pipeline == "all" else (pipeline,)
        existing = [name for name in names if model_file(folder, name, precision, version).is_file()]
        if existing and (missing := [name for name in names if name not in existing]):
            which = "" if version is None else f" of version {version}"
            report(f"{folder} holds no trained {' and no '.join(missing)}{which}: left out")
        models += [_load(folder, name, precision, version) for name in existing or names[:1]]  # or its error
    keys = [(model.card.pipeline, model.card.seed) for model in models]
    return [
        dataclasses.replace(m, card=dataclasses.replace(m.card, seed=f"{m.card.seed} {m.card.sha256[:6]}"))
        if keys.count(key) > 1
        else m
        for m, key in zip(models, keys, strict=True)
    ]


def _load(folder: str | Path, pipeline: str, precision: str, version: int | None) -> TrainedModel:
    classifier = load_classifier(folder, pipeline, precision=precision, version=version)
    file, metadata = classifier.model_file, classifier.metadata
    names = ("data", "data_hash", "split", "version", "git_commit")
    card = ModelCard(
        pipeline=pipeline, file="/".join(file.parts[-3 if version is None else -5 :]),
        seed=metadata.get("seed", "unknown") + ("" if precision == FP32 else f" {precision}"),
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(), temperature=float(metadata.get("temperature", "1")),
        precision=precision, **{name: metadata.get(name, "unknown") for name in names},
    )  # fmt: skip
    return TrainedModel(classifier, card)


def official_part(corpus: Corpus) -> TestClips:
    """FSDD's test part, or that of a corpus with its own. Raises DataError for other corpora."""
    if not corpus.official_split:
        raise DataError(
            f"{corpus.name} has no official test part, which needs recordings on both sides of number "
            f"{OFFICIAL_TEST_INDICES} for every speaker and digit: score it whole with --folder"
        )
    return TestClips(select_clips(corpus, np.flatnonzero(corpus.official_test)), official=True)


def refuse_known(models: Sequence[TrainedModel], clips: TestClips) -> None:
    """Raise DataError for a model that was trained on some of the clips, by the hashes of its training data."""
    for model in models:
        card, file = model.card, model.classifier.model_file
        trained_on = model.classifier.metadata.get("recordings_hash", card.data_hash).split()
        if not set(clips.corpus.recordings) & set(trained_on):
            continue
        if not clips.official:
            raise DataError(
                f"{file} was trained on these very recordings ({card.data}, hash {clips.corpus.data_hash[:12]}), so "
                "scores on them say nothing about unseen speakers: score other recordings, or the official test part "
                "with --protocol official"
            )
        if card.split != "official":
            raise DataError(
                f"{file} was trained on {card.data} with split {card.split!r}, which contains clips of the official "
                "test part: retrain with --split official"
            )


def load_non_digits(kind: str, folder: str | Path) -> NonDigitSet:
    """The recordings in and below a folder: up to 1.5 s as one clip, longer ones in windows without the pauses.

    Raises DataError for an unreadable file or a folder without recordings.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"{folder} is not a folder: expected one with recordings of {kind}")
    files = audio_files(root)
    clips: list[Floats] = []
    for path in files:
        try:
            clips += _windows(decode_sound(path))
        except AudioError as error:
            raise DataError(f"{folder}: {path.name}: {error}; fix or remove it") from error
    return NonDigitSet(kind, np.stack(clips), f"{len(clips)} clips of {len(files)} recordings in {root.resolve().name}")


def _windows(samples: Floats) -> list[Floats]:
    if len(samples) <= _LONGEST * SAMPLE_RATE:
        return [pad_or_trim(samples)]
    seconds = [samples[i : i + NUM_SAMPLES] for i in range(0, len(samples) - NUM_SAMPLES + 1, _HOP)]
    power = np.array([np.square(second, dtype=np.float64).mean() for second in seconds])
    return [seconds[i] for i in np.flatnonzero(power > power.max() * 10 ** (_PAUSE_DB / 10))]


def generate_non_digits(corpus: Corpus, seed: int) -> list[NonDigitSet]:
    """Digits cut off, two digits in one second, and the hiss of an open microphone, as many as there are digits."""
    corrupted = corrupt_digits(corpus.waveforms, corpus.lengths, seed)
    hiss = np.random.default_rng(seed).standard_normal((len(corpus), NUM_SAMPLES), dtype=np.float32)
    sets = {**corrupted, "silence": hiss * np.float32(10 ** (_HISS_DB / 20))}
    return [NonDigitSet(kind, waveforms, f"seed {seed}") for kind, waveforms in sets.items()]


def score_official(models: Sequence[TrainedModel], clips: TestClips) -> ProtocolResult:
    """Accuracy on the official test part."""
    return _score(OFFICIAL, "Official test part, same speakers as in training", models, clips)


def score_unseen_speakers(models: Sequence[TrainedModel], clips: TestClips) -> ProtocolResult:
    """Accuracy, by speaker and digit, on recordings of speakers that no model was trained on."""
    return _score(UNSEEN_SPEAKERS, "Recordings and speakers never trained on", models, clips)


def _score(protocol: str, definition: str, models: Sequence[TrainedModel], clips: TestClips) -> ProtocolResult:
    refuse_known(models, clips)
    scores = [score_model(m.card, m.predict_proba(clips.corpus.waveforms)[0], clips.corpus) for m in models]
    return new_result(protocol, definition, clips, models, scores=tuple(scores))


def score_noise(
    models: Sequence[TrainedModel], clips: TestClips, seed: int = 0, recordings: Recordings | None = None,
    report: Report = lambda line: None,
) -> ProtocolResult:  # fmt: skip
    """Accuracy against the severity of every perturbation."""
    refuse_known(models, clips)
    labels = clips.corpus.labels
    drawn: list[dict[str, Any]] = []
    curves: dict[tuple[str, int], Curve] = {}
    clean: list[Point] = []
    scores: tuple[ModelScore, ...] = ()
    kind = ""
    for condition, waveforms in perturb(clips.corpus.waveforms, seed, recordings, drawn):
        if condition.kind != kind:
            kind = condition.kind
            report(condition.title)
        answers = [model.predict_proba(waveforms)[0] for model in models]
        right = [int((probabilities.argmax(axis=1) == labels).sum()) for probabilities in answers]
        points = [Point(condition.severity, condition.label, Count(n, len(labels))) for n in right]
        if condition == CLEAN:
            clean = points
            scores = tuple(score_model(m.card, p, clips.corpus) for m, p in zip(models, answers, strict=True))
            continue
        for number, (model, point) in enumerate(zip(models, points, strict=True)):
            new = Curve(kind, condition.title, condition.axis, model.card.pipeline, model.card.seed, (clean[number],))
            curve = curves.get((kind, number), new)
            curves[kind, number] = dataclasses.replace(curve, points=(*curve.points, point))
    definition = (
        f"Clips changed one way at a time; signal-to-noise ratios over the word, which is its frames of "
        f"{1000 * FRAME // SAMPLE_RATE} ms at most {WORD_DB:g} dB below the loudest"
    )
    details: dict[str, Any] = {"noise_seed": seed, "frame_samples": FRAME, "word_db": WORD_DB}
    if recordings is not None:
        details["noise_folder"] = recordings.name
        details["noise_files_left_out"] = list(recordings.skipped)
        details["noise_drawn"] = [
            {"clip": clip, **noise} for clip, noise in zip(clips.corpus.files, drawn, strict=True)
        ]
    return new_result(NOISE, definition, clips, models, scores=scores, curves=tuple(curves.values()), details=details)


def score_calibration(models: Sequence[TrainedModel], clips: TestClips) -> ProtocolResult:
    """Reliability and expected calibration error, before and after the temperature in the exported graph."""
    refuse_known(models, clips)
    scores, reliability = [], []
    for model in models:
        card = model.card
        after = model.predict_proba(clips.corpus.waveforms)[0]
        scores.append(score_model(card, after, clips.corpus))
        before = apply_temperature(after, 1.0 / card.temperature)  # undoes the division in the graph
        for when, probabilities, temperature in (("before", before, 1.0), ("after", after, card.temperature)):
            fit = measure_calibration(probabilities, clips.corpus.labels)
            reliability.append(Reliability(card.pipeline, card.seed, when, temperature, fit.ece, fit.nll, fit.bins))
    definition = (
        f"Expected calibration error over {BINS} bins of equal width, before and after the temperature that was "
        "fitted on the validation part of the training and is part of the exported graph"
    )
    return new_result(CALIBRATION, definition, clips, models, scores=tuple(scores), reliability=tuple(reliability))


def score_rejection(
    models: Sequence[TrainedModel], clips: TestClips, non_digits: Sequence[NonDigitSet], seed: int = 0
) -> ProtocolResult:
    """ROC of the digit score for each kind of non-digit clips, and how many are accepted at three thresholds."""
    refuse_known(models, clips)
    sets = [*non_digits, *generate_non_digits(clips.corpus, seed)]
    scores, rejections = [], []
    for model in models:
        probabilities, digits = model.predict_proba(clips.corpus.waveforms)
        scores.append(score_model(model.card, probabilities, clips.corpus))
        kinds = {"digits": digits} | {s.kind: model.predict_proba(s.waveforms)[1] for s in sets}
        rejections += [measure_rejection(model.card, kind, others, digits) for kind, others in kinds.items()]
    definition = (
        "Digits against clips without one, separated by the digit score: the share of each kind that is accepted where "
        f"95 and 90 % of these digits are, and at a score of {IS_DIGIT:g}, the threshold of the models"
    )
    details = {"noise_seed": seed, "others": {s.kind: s.source for s in sets}}
    return new_result(
        REJECTION, definition, clips, models, scores=tuple(scores), rejections=tuple(rejections), details=details
    )


def measure_rejection(card: ModelCard, kind: str, scores: Floats, digits: Floats) -> Rejection:
    ranked = np.sort(digits)
    below = np.searchsorted(ranked, scores, "left") + np.searchsorted(ranked, scores, "right")
    thresholds = {f"{share:.0%}": float(np.quantile(digits, 1 - share)) for share in _ACCEPTED}
    thresholds[f"score {IS_DIGIT:g}"] = IS_DIGIT
    points = np.quantile(digits, np.linspace(1, 0, _ROC_POINTS))
    return Rejection(
        card.pipeline, card.seed, kind, len(scores), area=float(1 - below.mean() / (2 * len(digits))),
        accepted={name: Count(int((scores >= least).sum()), len(scores)) for name, least in thresholds.items()},
        roc=tuple((float((scores >= least).mean()), float((digits >= least).mean())) for least in points),
    )  # fmt: skip


def score_model(card: ModelCard, probabilities: Floats, corpus: Corpus) -> ModelScore:
    """The accuracy of one model, given its (N, 10) probabilities of a corpus."""
    evaluation = Evaluation("", corpus.files, corpus.speakers, corpus.labels, probabilities)
    return ModelScore(
        card.pipeline, card.seed, Count(evaluation.clips - evaluation.errors, evaluation.clips),
        {name: Count(*n) for name, n in evaluation.accuracy_by_speaker().items()},
        {str(digit): Count(*n) for digit, n in evaluation.accuracy_by_digit().items()}, evaluation.misclassified(),
    )  # fmt: skip


def new_result(
    protocol: str, definition: str, clips: TestClips, models: Sequence[TrainedModel] = (), *,
    seeds: Sequence[int] = (), details: Mapping[str, Any] | None = None, **figures: Any,
) -> ProtocolResult:  # fmt: skip
    """A result with its provenance. `figures`: scores, curves, reliability, rejections."""
    corpus = clips.corpus
    left_out = {"clips_left_out": [dataclasses.asdict(clip) for clip in corpus.skipped]} if corpus.skipped else {}
    return ProtocolResult(
        protocol=protocol, definition=f"{definition} ({clips.description})", data=corpus.name,
        data_hash=corpus.data_hash, synthetic=corpus.synthetic, clips=len(corpus), speakers=len(set(corpus.speakers)),
        seeds=tuple(map(str, seeds)) or tuple(sorted({m.card.seed for m in models})),
        version=ml_training.__version__, git_commit=git_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"), models=tuple(m.card for m in models),
        details={**(details or {}), **left_out}, **figures,
    )  # fmt: skip
