"""What training and scoring leave behind, as plain frozen records.

The trainer makes them, the plots and the report draw them, the summaries write them as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digit_detector.labels import LABELS
from ml_training.config import TrainConfig

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SkippedClip:
    """A clip left out of a data set, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class DataSummary:
    """The recordings a run used."""

    name: str
    data_hash: str
    synthetic: bool
    clips: int
    speakers: tuple[str, ...]
    hours: float
    split: str
    parts: dict[str, int]  # clips in "train", "validation", "test"
    negatives: str = ""  # what clips without a digit were trained with, beside them
    skipped: tuple[SkippedClip, ...] = ()


@dataclass(frozen=True)
class EpochRecord:
    """One line of a learning curve. Epochs count from 1; rates are of the epoch's last step."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """A model's answers to N labelled clips under a named protocol."""

    protocol: str
    files: tuple[str, ...]  # N names
    speakers: tuple[str, ...]  # N names
    labels: Ints  # (N,)
    probabilities: Floats  # (N, 10)

    @cached_property
    def predicted(self) -> Ints:
        """(N,) digits."""
        digits: Ints = self.probabilities.argmax(axis=1).astype(np.int64)
        return digits

    @property
    def clips(self) -> int:
        return len(self.labels)

    @property
    def errors(self) -> int:
        return int((self.predicted != self.labels).sum())

    @property
    def accuracy(self) -> float:
        return 1.0 - self.errors / self.clips if self.clips else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy."""
        return wilson_interval(self.clips - self.errors, self.clips)

    @cached_property
    def confusion(self) -> Ints:
        """(10, 10) counts: row the digit said, column the digit heard."""
        counts = np.zeros((len(LABELS), len(LABELS)), dtype=np.int64)
        np.add.at(counts, (self.labels, self.predicted), 1)
        return counts

    def accuracy_by_digit(self) -> dict[int, tuple[int, int]]:
        """digit -> (right, clips), for digits that occur."""
        return {d: (int(self.confusion[d, d]), int(n)) for d, n in enumerate(self.confusion.sum(axis=1)) if n}

    def accuracy_by_speaker(self) -> dict[str, tuple[int, int]]:
        """speaker -> (right, clips), sorted by name."""
        right = self.predicted == self.labels
        names = np.asarray(self.speakers)
        return {s: (int(right[names == s].sum()), int((names == s).sum())) for s in sorted(set(self.speakers))}

    def mistakes(self) -> list[int]:
        """Positions of the clips it got wrong, the most confident first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return [int(i) for i in wrong[np.argsort(-self.probabilities[wrong].max(axis=1), kind="stable")]]

    def figures(self) -> dict[str, Any]:
        """How many it got right, ready for JSON."""
        return {
            "clips": self.clips, "errors": self.errors, "accuracy": self.accuracy, "interval_95": list(self.interval)
        }  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        return {
            "protocol": self.protocol, **self.figures(), "confusion": self.confusion.tolist(),
            "by_digit": {str(d): {"right": r, "clips": n} for d, (r, n) in self.accuracy_by_digit().items()},
            "by_speaker": {s: {"right": r, "clips": n} for s, (r, n) in self.accuracy_by_speaker().items()},
            "mistakes": [
                {"file": self.files[i], "digit": int(self.labels[i]), "heard": int(self.predicted[i]),
                 "confidence": float(self.probabilities[i].max())} for i in self.mistakes()
            ],
        }  # fmt: skip


def wilson_interval(right: float, clips: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson, 1927, J. Am. Stat. Assoc. 22)."""
    if clips == 0:
        return 0.0, 1.0
    share = right / clips
    middle = share + z * z / (2 * clips)
    half = z * math.sqrt(share * (1 - share) / clips + z * z / (4 * clips * clips))
    scale = 1 + z * z / clips
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


@dataclass(frozen=True)
class PipelineResult:
    """Everything the report tells about one trained pipeline."""

    pipeline: str
    config: TrainConfig
    history: tuple[EpochRecord, ...]
    test: Evaluation
    mistake_waveforms: Floats  # (number of mistakes, 8000), in the order of test.mistakes()
    best_epoch: int
    stopped: str  # why it ended: "all epochs done" or "no better validation loss for 20 epochs"
    parameters: int
    model_bytes: int
    latency_ms: float  # one clip, one thread, median
    train_seconds: float
    peak_memory_mb: float
    model_file: str
    temperature: float = 1.0  # that the scores are divided by; fitted on the validation part
    version: int | None = None  # of the pipeline, see deploy/versions.py
    not_promoted: str = ""  # why this version does not answer; empty where it does

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "pipeline": self.pipeline, "best_epoch": self.best_epoch, "stopped": self.stopped,
            "parameters": self.parameters, "model_bytes": self.model_bytes, "latency_ms": self.latency_ms,
            "train_seconds": self.train_seconds, "peak_memory_mb": self.peak_memory_mb,
            "model_file": self.model_file, "model_version": self.version, "temperature": self.temperature,
            "test": self.test.summary(),
            "history": [vars(record) for record in self.history],
        }  # fmt: skip


# --- evaluation protocols ------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """`right` of `clips`."""

    right: float  # whole, but for a mean of several models
    clips: int

    @property
    def accuracy(self) -> float:
        return self.right / self.clips if self.clips else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy."""
        return wilson_interval(self.right, self.clips)


@dataclass(frozen=True)
class ModelCard:
    """Which model a figure is of."""

    pipeline: str
    seed: str
    file: str
    sha256: str
    data: str  # what it learnt from
    data_hash: str
    split: str
    version: str
    git_commit: str
    temperature: float
    precision: str = "fp32"


@dataclass(frozen=True)
class ModelScore:
    """One model's answers to all clips of a protocol, or to one fold of it."""

    pipeline: str
    seed: str
    all: Count
    by_speaker: Mapping[str, Count]
    by_digit: Mapping[str, Count]
    mistakes: tuple[Mapping[str, Any], ...] = ()  # file, digit, heard, confidence


@dataclass(frozen=True)
class Point:
    """The clips of a protocol changed by one severity; None stands for clips as they are."""

    severity: float | None
    label: str
    count: Count


@dataclass(frozen=True)
class Curve:
    """Accuracy against the severity of one kind of change."""

    kind: str
    title: str
    axis: str
    pipeline: str
    seed: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers whose confidence lies between two bounds."""

    low: float
    high: float
    count: int
    confidence: float  # their mean confidence
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """How one model's confidence fits what happened, before or after its temperature."""

    pipeline: str
    seed: str
    when: str  # "before" or "after"
    temperature: float
    ece: float
    nll: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class Rejection:
    """How one model's digit score tells one kind of clips without a digit from digits."""

    pipeline: str
    seed: str
    kind: str
    clips: int
    area: float  # under the ROC curve: how often a digit scores higher than one of these clips
    accepted: Mapping[str, Count]  # where a threshold lies -> how many clips still pass for digits
    roc: tuple[tuple[float, float], ...]  # (share of these clips accepted, share of digits accepted), rising


@dataclass(frozen=True)
class ProtocolResult:
    """What a named protocol found, and everything that says how; its JSON is the whole of it."""

    protocol: str
    definition: str
    data: str
    data_hash: str
    synthetic: bool
    clips: int
    speakers: int
    seeds: tuple[str, ...]  # of the trainings
    version: str
    git_commit: str
    created: str  # UTC, ISO 8601
    models: tuple[ModelCard, ...] = ()
    scores: tuple[ModelScore, ...] = ()
    curves: tuple[Curve, ...] = ()
    reliability: tuple[Reliability, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    details: Mapping[str, Any] | None = None  # further settings: seeds and files of noises, folds, ...

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProtocolResult:
        """The result that `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""

        def count(v: Mapping[str, Any]) -> Count:
            return Count(int(v["right"]), int(v["clips"]))

        def counts(table: Mapping[str, Any]) -> dict[str, Count]:
            return {name: count(v) for name, v in table.items()}

        scores = tuple(
            ModelScore(
                s["pipeline"], s["seed"], count(s["all"]), counts(s["by_speaker"]), counts(s["by_digit"]),
                tuple(s["mistakes"]),
            )
            for s in values["scores"]
        )  # fmt: skip
        curves = tuple(
            Curve(**{**c, "points": tuple(Point(p["severity"], p["label"], count(p["count"])) for p in c["points"])})
            for c in values["curves"]
        )
        reliability = tuple(
            Reliability(**{**r, "bins": tuple(ReliabilityBin(**b) for b in r["bins"])}) for r in values["reliability"]
        )
        rejections = tuple(
            Rejection(**{**r, "accepted": counts(r["accepted"]), "roc": tuple(tuple(point) for point in r["roc"])})
            for r in values.get("rejections", ())
        )
        plain = {**values, "seeds": tuple(values["seeds"]), "models": tuple(ModelCard(**m) for m in values["models"])}
        return cls(
            **{**plain, "scores": scores, "curves": curves, "reliability": reliability, "rejections": rejections}
        )
