"""Two settings on the same folds: is one better, or was it luck?

McNemar's test asks the clips that one got right and the other wrong (Q. McNemar, 1947, Psychometrika 12), exactly, by
the binomial distribution. The corrected resampled t test asks the folds, whose trainings share most of their clips, so
that their differences vary less than those of independent ones would (C. Nadeau and Y. Bengio, 2003, Machine Learning
52).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from digit_detector.errors import DataError
from ml_training.results import ProtocolResult

Key = tuple[int, str]  # of a fold: seed, what was left out


@dataclass(frozen=True)
class Paired:
    """How one pipeline's folds of this result differ from those of another; shares are 0 to 1."""

    pipeline: str
    other: str  # pipeline of the other result
    clips: int  # of all seeds
    only_this: int  # clips that this one alone got right
    only_other: int
    mcnemar: float  # p value
    folds: int
    difference: float  # mean over folds of this accuracy minus the other
    low: float  # 95 % interval of it
    high: float
    t: float
    t_test: float  # p value


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided p value of `first` against `second` discordant clips being a fair coin's."""
    count = first + second
    tail = sum(math.comb(count, k) for k in range(min(first, second) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**count)))


def corrected_t(differences: Sequence[float], tested_to_trained: float) -> tuple[float, float, float]:
    """t, its two-sided p value, and half of the 95 % interval of the mean difference.

    `tested_to_trained` is how many clips a fold tests on to how many it trains on.
    """
    from scipy import stats

    count = len(differences)
    if count < 2:
        return math.nan, math.nan, math.nan
    mean, variance = statistics.fmean(differences), statistics.variance(differences)
    error = math.sqrt((1 / count + tested_to_trained) * variance)
    half = float(stats.t.ppf(0.975, count - 1)) * error
    if error == 0:
        return math.copysign(math.inf, mean) if mean else 0.0, 0.0 if mean else 1.0, 0.0
    t = mean / error
    return t, float(2 * stats.t.sf(abs(t), count - 1)), half


def compared(this: ProtocolResult, other: ProtocolResult) -> list[Paired]:
    """Each pipeline of this result with the same one of the other; with the only ones where they are of two names.

    Raises DataError where their folds are not the same clips.
    """
    mine, theirs = _folds(this), _folds(other)
    planned = {name: set(folds) for name, folds in mine.items()}
    names = comparable(this.protocol, this.data, this.data_hash, planned, other)
    return [_pair(this, other, mine[a], theirs[b], a, b) for a, b in names]


def comparable(
    protocol: str, data: str, data_hash: str, planned: Mapping[str, Set[Key]], other: ProtocolResult
) -> list[tuple[str, str]]:
    """Which pipelines of folds that are planned are compared with which of a result, before anything is trained.

    Raises DataError where their folds are not the same clips.
    """
    theirs = _folds(other)
    if (protocol, data_hash) != (other.protocol, other.data_hash):
        raise DataError(
            f"{protocol} of {data} ({data_hash[:12]}) cannot be compared with {other.protocol} of "
            f"{other.data} ({other.data_hash[:12]}): expected the same protocol on the same recordings"
        )
    names = [(name, name) for name in planned if name in theirs]
    if not names and len(planned) == len(theirs) == 1:
        names = [(next(iter(planned)), next(iter(theirs)))]
    if not names:
        raise DataError(
            f"{' and '.join(planned)} cannot be compared with {' and '.join(theirs)}: expected one in common"
        )
    for name, there in names:
        mine, found = planned[name], theirs[there].keys()
        if mine != found:
            raise DataError(
                f"folds of {name}: {len(mine)} here, {len(found)} in the earlier result, {len(mine & found)} in "
                "common: expected the same folds and seeds"
            )
    return names


def to_dicts(pairs: Sequence[Paired]) -> list[dict[str, Any]]:
    """The same, ready for JSON."""
    return [asdict(pair) for pair in pairs]


Folds = dict[Key, Mapping[str, Any]]  # what the result keeps of each


def _folds(result: ProtocolResult) -> dict[str, Folds]:
    found: dict[str, Folds] = {}
    for fold in (result.details or {}).get("folds", ()):
        if "right" not in fold:
            raise DataError(
                f"the result of {result.created} does not tell what each fold got right: it is of an older version"
            )
        found.setdefault(fold["pipeline"], {})[fold["seed"], fold["left_out"]] = fold
    if not found:
        raise DataError(f"protocol {result.protocol!r} has no folds: expected a result of cv or loso")
    return found


def _pair(
    this: ProtocolResult, other: ProtocolResult, mine: Folds, theirs: Folds, name: str, other_name: str
) -> Paired:
    differences = [_share(mine[key]) - _share(theirs[key]) for key in sorted(mine)]
    ratio = statistics.fmean(fold["clips"] / fold["trained_on"] for fold in mine.values())
    t, p, half = corrected_t(differences, ratio)
    wrong, wrong_there = _wrong(this, name), _wrong(other, other_name)
    only_this, only_other = len(wrong_there - wrong), len(wrong - wrong_there)
    mean = statistics.fmean(differences)
    return Paired(
        name, other_name, sum(fold["clips"] for fold in mine.values()), only_this, only_other,
        mcnemar(only_this, only_other), len(differences), mean, mean - half, mean + half, t, p,
    )  # fmt: skip


def _share(fold: Mapping[str, Any]) -> float:
    return float(fold["right"] / fold["clips"])


def _wrong(result: ProtocolResult, pipeline: str) -> set[tuple[str, str]]:
    return {(s.seed, str(m["file"])) for s in result.scores if s.pipeline == pipeline for m in s.mistakes}
