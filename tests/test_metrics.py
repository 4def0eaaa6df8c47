"""Intervals, calibration, temperature and paired tests against known values."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from digit_detector.evaluation.metrics import wilson_interval
from ml_training.metrics import (
    apply_temperature,
    corrected_t,
    fit_logit_temperature,
    log_softmax,
    mcnemar,
    measure_calibration,
)


def draw(scale: float, clips: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from the probabilities of the logits divided by `scale`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (clips, 10))
    labels = (np.exp(log_softmax(logits)).cumsum(axis=1) > rng.random((clips, 1))).argmax(axis=1)
    return logits * scale, labels


@pytest.mark.parametrize(
    ("right", "clips", "low", "high"),
    # Published values of the score interval: R. G. Newcombe (1998), Statistics in Medicine 17, 857-872, table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_matches_published_values(right: int, clips: int, low: float, high: float) -> None:
    assert wilson_interval(right, clips) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(clips - right, clips) == pytest.approx((1 - high, 1 - low), abs=5e-5)
    widths = [high - low for low, high in (wilson_interval(right * n, clips * n) for n in (1, 10, 100))]
    assert all(wide > narrow for wide, narrow in pairwise(widths))
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_recovers_a_known_scale_to_its_power(scale: float, power: float) -> None:
    assert fit_logit_temperature(*draw(scale), power) == pytest.approx(scale**power, rel=0.03)


def test_the_temperature_of_predictions_without_an_error_is_finite() -> None:
    labels = np.arange(200) % 10
    logits = 4.0 * np.eye(10)[labels]
    confidence = float(np.exp(log_softmax(logits / fit_logit_temperature(logits, labels))).max())
    assert confidence == pytest.approx(1 - 1 / 202, abs=1e-4)
    assert fit_logit_temperature(np.zeros((0, 10)), np.zeros(0, dtype=np.int64)) == 1.0
    assert fit_logit_temperature(np.full((3, 10), np.nan), np.zeros(3, dtype=np.int64)) == 1.0


def test_the_temperature_improves_the_calibration_of_other_clips() -> None:
    logits, labels = draw(3.0)
    temperature = fit_logit_temperature(logits[:10_000], labels[:10_000])
    before = measure_calibration(np.exp(log_softmax(logits[10_000:])), labels[10_000:])
    after = measure_calibration(np.exp(log_softmax(logits[10_000:] / temperature)), labels[10_000:])
    assert before.ece > 0.15
    assert after.ece < 0.03
    assert after.nll < before.nll
    assert sum(b.count for b in after.bins) == 10_000
    assert all(b.low <= b.confidence <= b.high for b in after.bins)


def test_calibration_of_overconfident_and_of_certain_predictions() -> None:
    probabilities = np.full((100, 10), 0.1 / 9)
    probabilities[:, 3] = 0.9
    fit = measure_calibration(probabilities, np.where(np.arange(100) < 60, 3, 4))  # 90 % confident, 60 % right
    assert fit.ece == pytest.approx(0.3)
    assert fit.nll == pytest.approx(-0.6 * math.log(0.9) - 0.4 * math.log(0.1 / 9))
    (only,) = fit.bins
    assert (only.count, only.confidence, only.accuracy) == (100, pytest.approx(0.9), pytest.approx(0.6))
    certain = measure_calibration(np.eye(10)[:1], np.array([0]))
    assert (certain.ece, certain.nll, certain.bins[0].high) == (0.0, 0.0, 1.0)


def test_a_temperature_divides_the_logits_and_can_be_undone() -> None:
    logits, _ = draw(1.0, clips=50)
    probabilities = np.exp(log_softmax(logits))
    sharper = apply_temperature(probabilities, 0.5)
    np.testing.assert_allclose(sharper, np.exp(log_softmax(logits / 0.5)), atol=1e-12)
    np.testing.assert_allclose(apply_temperature(sharper, 2.0), probabilities, atol=1e-9)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert [mcnemar(*pair) for pair in ((0, 0), (1, 0), (20, 20))] == pytest.approx([1, 1, 1])
    assert mcnemar(3, 9) == mcnemar(9, 3) == pytest.approx(2 * sum(math.comb(12, k) for k in range(4)) / 2**12)
    assert mcnemar(0, 12) == pytest.approx(2 / 2**12)


def test_the_corrected_t_is_a_plain_t_test_with_more_variance() -> None:
    differences = [0.01, 0.03, -0.01, 0.02, 0.04]
    t, p, half = corrected_t(differences, 0.0)
    plain = stats.ttest_1samp(differences, 0.0)
    interval = plain.confidence_interval(0.95)
    assert (t, p, half) == pytest.approx((plain.statistic, plain.pvalue, (interval.high - interval.low) / 2))
    # Nadeau and Bengio (2003), eq. 9: 1 / J becomes 1 / J + n2 / n1
    assert corrected_t(differences, 0.25)[0] == pytest.approx(t * math.sqrt((1 / 5) / (1 / 5 + 0.25)))
    assert corrected_t([0.0, 0.0], 0.1) == (0.0, 1.0, 0.0)
    assert corrected_t([0.5, 0.5], 0.1) == (math.inf, 0.0, 0.0)
    assert all(map(math.isnan, corrected_t([0.5], 0.1)))
