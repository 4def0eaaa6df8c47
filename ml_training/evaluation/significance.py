"""Comparison of two results fold by fold: the same folds, trained with other settings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from digit_detector.errors import DataError
from ml_training.metrics import corrected_t, mcnemar
from ml_training.results import ProtocolResult

Key = tuple[int, str]  # of a fold: its seed and what it leaves out
Folds = dict[Key, Mapping[str, Any]]


@dataclass(frozen=True)
class PairedComparison:
    """The folds of one pipeline against those of another; accuracies are 0 to 1."""

    pipeline: str
    other: str
    clips: int  # of all seeds
    only_this: int  # clips that only this one gets right
    only_other: int
    mcnemar: float  # p value
    folds: int
    difference: float  # mean over folds of this accuracy minus the other
    low: float  # 95 % interval of the difference
    high: float
    t: float
    t_test: float  # p value


def compare_folds(this: ProtocolResult, other: ProtocolResult) -> list[PairedComparison]:
    """Each pipeline of a result with that of another result. Raises DataError as match_pipelines does."""
    these, others = _folds(this), _folds(other)
    planned = {name: set(folds) for name, folds in these.items()}
    pairs = []
    for name, other_name in match_pipelines(this.protocol, this.data, this.data_hash, planned, other):
        folds, other_folds = these[name], others[other_name]
        differences = [_accuracy(folds[key]) - _accuracy(other_folds[key]) for key in sorted(folds)]
        test_to_train = statistics.fmean(fold["clips"] / fold["trained_on"] for fold in folds.values())
        t, p, half = corrected_t(differences, test_to_train)
        wrong, other_wrong = _misclassified(this, name), _misclassified(other, other_name)
        only_this, only_other = len(other_wrong - wrong), len(wrong - other_wrong)
        mean, clips = statistics.fmean(differences), sum(fold["clips"] for fold in folds.values())
        pairs.append(PairedComparison(
            name, other_name, clips, only_this, only_other, mcnemar(only_this, only_other), len(differences), mean,
            mean - half, mean + half, t, p,
        ))  # fmt: skip
    return pairs


def match_pipelines(
    protocol: str, data: str, data_hash: str, planned: Mapping[str, Set[Key]], other: ProtocolResult
) -> list[tuple[str, str]]:
    """Pairs of pipelines of planned folds and of a result: those of one name, or the only ones of both.

    Raises DataError for other protocols, recordings or folds, so that this is known before anything is trained.
    """
    others = _folds(other)
    if (protocol, data_hash) != (other.protocol, other.data_hash):
        raise DataError(
            f"{protocol} of {data} ({data_hash[:12]}) cannot be compared with {other.protocol} of "
            f"{other.data} ({other.data_hash[:12]}): expected the same protocol on the same recordings"
        )
    names = [(name, name) for name in planned if name in others]
    if not names and len(planned) == len(others) == 1:
        names = [(next(iter(planned)), next(iter(others)))]
    if not names:
        raise DataError(f"{' and '.join(planned)} and {' and '.join(others)}: expected a pipeline in common")
    for name, other_name in names:
        keys, other_keys = planned[name], others[other_name].keys()
        if keys != other_keys:
            counts = f"{len(keys)} here, {len(other_keys)} in the earlier result, {len(keys & other_keys)} in common"
            raise DataError(f"folds of {name}: {counts}: expected the same folds and seeds")
    return names


def _folds(result: ProtocolResult) -> dict[str, Folds]:
    folds: dict[str, Folds] = {}
    for fold in (result.details or {}).get("folds", ()):
        if "right" not in fold:
            raise DataError(f"the result of {result.created} is of an older version without the accuracy of each fold")
        folds.setdefault(fold["pipeline"], {})[fold["seed"], fold["left_out"]] = fold
    if not folds:
        raise DataError(f"protocol {result.protocol!r} has no folds: expected a result of cv or loso")
    return folds


def _accuracy(fold: Mapping[str, Any]) -> float:
    return float(fold["right"] / fold["clips"])


def _misclassified(result: ProtocolResult, pipeline: str) -> set[tuple[str, str]]:
    return {(s.seed, clip.file) for s in result.scores if s.pipeline == pipeline for clip in s.misclassified}
