"""Paired tests against figures worked out by hand and by others."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from digit_detector.errors import DataError
from ml_training.evaluation.records import load_result, save_result
from ml_training.evaluation.significance import compared, corrected_t, mcnemar, to_dicts
from ml_training.report.tables import comparison
from ml_training.results import Count, ModelScore, ProtocolResult


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 9), (9, 3), (20, 20), (0, 12), (900, 1100)])
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_the_corrected_t_is_that_of_a_plain_one_with_more_variance() -> None:
    differences = [0.01, 0.03, -0.01, 0.02, 0.04]
    t, p, half = corrected_t(differences, 0.0)
    plain = stats.ttest_1samp(differences, 0.0)
    assert (t, p) == (pytest.approx(plain.statistic), pytest.approx(plain.pvalue))
    interval = plain.confidence_interval(0.95)
    assert half == pytest.approx((interval.high - interval.low) / 2)
    # Nadeau and Bengio (2003), eq. 9: 1 / J becomes 1 / J + n2 / n1
    assert corrected_t(differences, 0.25)[0] == pytest.approx(t * math.sqrt((1 / 5) / (1 / 5 + 0.25)))


def test_differences_without_spread() -> None:
    assert corrected_t([0.0, 0.0], 0.1) == (0.0, 1.0, 0.0)
    assert corrected_t([0.5, 0.5], 0.1) == (math.inf, 0.0, 0.0)
    assert all(map(math.isnan, corrected_t([0.5], 0.1)))


def result(wrong: dict[str, set[int]], pipeline: str = "mfcc", **changes: Any) -> ProtocolResult:
    """Two folds of ten clips; `wrong` names clips 0 to 9 of folds 1/2 and 2/2."""
    folds = [
        {"pipeline": pipeline, "seed": 0, "left_out": name, "clips": 10, "right": 10 - len(clips), "trained_on": 10}
        for name, clips in wrong.items()
    ]
    mistakes = tuple({"file": f"{name}_{clip}"} for name, clips in wrong.items() for clip in clips)
    errors = len(mistakes)
    score = ModelScore(pipeline, "0", Count(20 - errors, 20), {"ann": Count(20 - errors, 20)}, {}, mistakes)
    made = ProtocolResult(
        protocol="cv", definition="", data="tiny", data_hash="ab" * 32, synthetic=True, clips=20, speakers=1,
        seeds=("0",), version="0", git_commit="c", created="2026-01-01T00:00:00+00:00", scores=(score,),
        details={"folds": folds},
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


FIRST = {"1/2": {0}, "2/2": {0, 1}}
SECOND = {"1/2": {0, 1, 2}, "2/2": {2, 3, 4}}


def test_clips_and_folds_are_paired() -> None:
    (pair,) = compared(result(FIRST), result(SECOND))
    assert (pair.clips, pair.folds) == (20, 2)
    assert (pair.only_this, pair.only_other) == (5, 2)
    assert pair.mcnemar == pytest.approx(mcnemar(5, 2))
    assert pair.difference == pytest.approx((0.2 + 0.1) / 2)
    assert pair.low < pair.difference < pair.high


def test_pipelines_of_two_names_are_compared_where_there_is_no_other() -> None:
    (pair,) = compared(result(FIRST), result(SECOND, "raw_cnn"))
    assert (pair.pipeline, pair.other) == ("mfcc", "raw_cnn")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (result(SECOND, data_hash="cd" * 32), "the same protocol on the same recordings"),
        (result(SECOND, protocol="loso"), "the same protocol on the same recordings"),
        (result({"1/2": {0}}), "expected the same folds and seeds"),
        (result(SECOND, details={}), "has no folds"),
        (result(SECOND, details={"folds": [{"pipeline": "mfcc"}]}), "of an older version"),
    ],
)
def test_what_cannot_be_paired(other: ProtocolResult, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        compared(result(FIRST), other)


@pytest.mark.parametrize(
    ("this", "other", "expected"),
    [
        ({"1/2": {0}}, {"1/2": {1, 2}}, "+10.00 points (one fold has no interval)|-"),
        ({"1/2": {0}, "2/2": {1}}, {"1/2": {1, 2}, "2/2": {3, 4}}, "+10.00 points (+10.00 to +10.00)|p = 0.0e+00"),
    ],
)
def test_a_comparison_without_spread_is_told_from_its_file_too(
    tmp_path: Path, this: dict[str, set[int]], other: dict[str, set[int]], expected: str
) -> None:
    """JSON knows neither NaN nor infinity."""
    made = result(this)
    pairs = to_dicts(compared(made, result(other)))
    against = {"with": "cv.json", "created": "then", "pairs": pairs}
    made = dataclasses.replace(made, details={**(made.details or {}), "compared": against})
    for told in (made, load_result(save_result(made, tmp_path))):
        (table,) = comparison(told)
        assert "|".join(table.rows[0][1:3]) == expected
