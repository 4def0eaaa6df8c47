"""Results of training and evaluation as frozen records, and their JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from digit_detector.evaluation.metrics import ReliabilityBin, wilson_interval
from digit_detector.evaluation.speech import SpeechResult
from digit_detector.evaluation.strings import StringResult
from digit_detector.labels import NUM_CLASSES
from ml_training.config import TrainConfig

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

UNSEEN_SPEAKERS, STRINGS = "unseen_speakers", "strings"  # protocols
EARLIER_NAMES = {"strangers": UNSEEN_SPEAKERS}  # of protocols, until 0.1
_EARLIER_KEYS = {"mistakes": "misclassified", "digit": "reference", "heard": "hypothesis"}  # of JSON, until 0.1


@dataclass(frozen=True)
class Count:
    """`right` of `clips`."""

    right: float  # whole, except for a mean over models
    clips: int

    @property
    def accuracy(self) -> float:
        return self.right / self.clips if self.clips else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy."""
        return wilson_interval(self.right, self.clips)


@dataclass(frozen=True)
class SkippedClip:
    """A clip left out of a data set, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class DataSummary:
    """The recordings of a run."""

    name: str
    data_hash: str
    synthetic: bool
    clips: int
    speakers: tuple[str, ...]
    hours: float
    split: str
    parts: dict[str, int]  # clips in "train", "validation", "test"
    negatives: str = ""  # which clips without a digit were added
    skipped: tuple[SkippedClip, ...] = ()


@dataclass(frozen=True)
class EpochRecord:
    """One point of the learning curves. Epochs count from 1; the learning rate is that of the last step."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Misclassified:
    """A clip whose most probable digit is not its label."""

    file: str
    reference: int
    hypothesis: int
    confidence: float


@dataclass(frozen=True)
class Evaluation:
    """The probabilities a model gives N labelled clips."""

    protocol: str  # which clips these are
    files: tuple[str, ...]  # N names
    speakers: tuple[str, ...]  # N names
    labels: Ints  # (N,)
    probabilities: Floats  # (N, 10)

    @cached_property
    def predicted(self) -> Ints:
        """(N,) most probable digits."""
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
        """(10, 10) counts: rows are labels, columns predictions."""
        counts = np.zeros((NUM_CLASSES, NUM_CLASSES), dtype=np.int64)
        np.add.at(counts, (self.labels, self.predicted), 1)
        return counts

    def accuracy_by_digit(self) -> dict[int, tuple[int, int]]:
        """digit -> (right, clips), for digits that occur."""
        return {d: (int(self.confusion[d, d]), int(n)) for d, n in enumerate(self.confusion.sum(axis=1)) if n}

    def accuracy_by_speaker(self) -> dict[str, tuple[int, int]]:
        """speaker -> (right, clips), sorted by name."""
        right, names = self.predicted == self.labels, np.asarray(self.speakers)
        return {s: (int(right[names == s].sum()), int((names == s).sum())) for s in sorted(set(self.speakers))}

    def mistakes(self) -> list[int]:
        """Positions of the misclassified clips, the most confident first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return [int(i) for i in wrong[np.argsort(-self.probabilities[wrong].max(axis=1), kind="stable")]]

    def misclassified(self) -> tuple[Misclassified, ...]:
        """The misclassified clips, the most confident first."""
        return tuple(
            Misclassified(
                self.files[i], int(self.labels[i]), int(self.predicted[i]), float(self.probabilities[i].max())
            )
            for i in self.mistakes()
        )

    def figures(self) -> dict[str, Any]:
        """Counts and accuracy for JSON."""
        return {
            "clips": self.clips, "errors": self.errors, "accuracy": self.accuracy, "interval_95": list(self.interval)
        }  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Everything but the probabilities, for JSON."""
        return {
            "protocol": self.protocol, **self.figures(), "confusion": self.confusion.tolist(),
            "by_digit": {str(d): {"right": r, "clips": n} for d, (r, n) in self.accuracy_by_digit().items()},
            "by_speaker": {s: {"right": r, "clips": n} for s, (r, n) in self.accuracy_by_speaker().items()},
            "misclassified": [dataclasses.asdict(clip) for clip in self.misclassified()],
        }  # fmt: skip


@dataclass(frozen=True)
class PipelineResult:
    """One trained pipeline, for the report and the metrics summary."""

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
    temperature: float = 1.0  # fitted on the validation part
    version: int | None = None  # of the pipeline, see deploy/version_store.py
    not_promoted: str = ""  # why this version was not promoted

    def summary(self) -> dict[str, Any]:
        """The figures for JSON."""
        left_out = ("config", "mistake_waveforms", "not_promoted", "version")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        history = [vars(record) for record in self.history]
        return {**values, "model_version": self.version, "test": self.test.summary(), "history": history}


@dataclass(frozen=True)
class ModelCard:
    """Identifies an evaluated model."""

    pipeline: str
    seed: str
    file: str
    sha256: str
    data: str  # training data
    data_hash: str
    split: str
    version: str
    git_commit: str
    temperature: float
    precision: str = "fp32"


@dataclass(frozen=True)
class ModelScore:
    """Accuracy of one model on the clips of a protocol, or of the folds of one seed."""

    pipeline: str
    seed: str
    all: Count
    by_speaker: Mapping[str, Count]
    by_digit: Mapping[str, Count]
    misclassified: tuple[Misclassified, ...] = ()


@dataclass(frozen=True)
class Point:
    """Accuracy at one severity; None stands for unchanged clips."""

    severity: float | None
    label: str
    count: Count


@dataclass(frozen=True)
class Curve:
    """Accuracy against the severity of one kind of perturbation."""

    kind: str
    title: str
    axis: str
    pipeline: str
    seed: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Reliability:
    """Calibration of one model, before or after its temperature."""

    pipeline: str
    seed: str
    when: str  # "before" or "after"
    temperature: float
    ece: float
    nll: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class Rejection:
    """How well one model's digit score separates digits from one kind of non-digit clips."""

    pipeline: str
    seed: str
    kind: str
    clips: int
    area: float  # under the ROC curve
    accepted: Mapping[str, Count]  # threshold -> non-digit clips accepted
    roc: tuple[tuple[float, float], ...]  # (share of non-digits accepted, share of digits accepted), rising


@dataclass(frozen=True)
class ProtocolResult:
    """The figures of an evaluation protocol and how they were made."""

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
    strings: tuple[StringResult, ...] = ()
    speech: tuple[SpeechResult, ...] = ()
    details: Mapping[str, Any] | None = None  # protocol-specific settings and figures

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProtocolResult:
        """The inverse of `to_dict`, for files of 0.1 too. Raises KeyError, TypeError, ValueError or AttributeError."""
        result: ProtocolResult = _decode(cls, values)
        return dataclasses.replace(result, protocol=EARLIER_NAMES.get(result.protocol, result.protocol))


_hints = cache(get_type_hints)


def _decode(kind: Any, value: Any) -> Any:
    """A JSON value as the annotated type of a record's field."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        named = {_EARLIER_KEYS.get(name, name): content for name, content in value.items()}
        return kind(**{name: _decode(hints[name], content) for name, content in named.items()})
    if get_origin(kind) is tuple:
        return tuple(_decode(get_args(kind)[0], item) for item in value)
    if get_origin(kind) is Mapping:
        return {name: _decode(get_args(kind)[1], item) for name, item in value.items()}
    return value
