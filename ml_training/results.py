"""What training and scoring leave behind, as plain frozen records.

The trainer makes them, the plots and the report draw them, the summaries write them as JSON.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_training.config import LABELS, TrainConfig

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

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        low, high = self.interval
        return {
            "protocol": self.protocol, "clips": self.clips, "errors": self.errors, "accuracy": self.accuracy,
            "interval_95": [low, high], "confusion": self.confusion.tolist(),
            "by_digit": {str(d): {"right": r, "clips": n} for d, (r, n) in self.accuracy_by_digit().items()},
            "by_speaker": {s: {"right": r, "clips": n} for s, (r, n) in self.accuracy_by_speaker().items()},
            "mistakes": [
                {"file": self.files[i], "digit": int(self.labels[i]), "heard": int(self.predicted[i]),
                 "confidence": float(self.probabilities[i].max())} for i in self.mistakes()
            ],
        }  # fmt: skip


def wilson_interval(right: int, clips: int, z: float = 1.96) -> tuple[float, float]:
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

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "pipeline": self.pipeline, "best_epoch": self.best_epoch, "stopped": self.stopped,
            "parameters": self.parameters, "model_bytes": self.model_bytes, "latency_ms": self.latency_ms,
            "train_seconds": self.train_seconds, "peak_memory_mb": self.peak_memory_mb,
            "model_file": self.model_file, "test": self.test.summary(),
            "history": [vars(record) for record in self.history],
        }  # fmt: skip
