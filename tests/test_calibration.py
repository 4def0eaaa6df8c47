"""Temperature and calibration error on toys whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ml_training.calibration import (
    calibration,
    fit_temperature,
    log_softmax,
    temperature_for_other_voices,
    tempered,
)


def drawn(scale: float, clips: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and labels drawn from the probabilities that the scores divided by `scale` stand for."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, (clips, 10))
    shares = np.exp(log_softmax(scores))
    labels = (shares.cumsum(axis=1) > rng.random((clips, 1))).argmax(axis=1)
    return scores * scale, labels


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_recovers_a_known_scale(scale: float) -> None:
    assert fit_temperature(*drawn(scale)) == pytest.approx(scale, rel=0.03)


def test_certainty_without_an_error_does_not_make_the_temperature_vanish() -> None:
    scores = 4.0 * np.eye(10)[np.arange(200) % 10]
    temperature = fit_temperature(scores, np.arange(200) % 10)
    confidence = float(np.exp(log_softmax(scores / temperature)).max())
    assert confidence == pytest.approx(1 - 1 / 202, abs=1e-4)


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("scale", [0.4, 3.0])
def test_for_other_voices_the_temperature_goes_back_towards_none(scale: float, power: float) -> None:
    assert temperature_for_other_voices(*drawn(scale), power) == pytest.approx(scale**power, rel=0.03)


def test_nothing_to_fit_on_leaves_the_scores_alone() -> None:
    assert fit_temperature(np.zeros((0, 10)), np.zeros(0, dtype=np.int64)) == 1.0
    assert fit_temperature(np.full((3, 10), np.nan), np.zeros(3, dtype=np.int64)) == 1.0


def test_honest_probabilities_have_no_calibration_error() -> None:
    scores, labels = drawn(1.0)
    found = calibration(np.exp(log_softmax(scores)), labels)
    assert found.ece < 0.015
    assert sum(b.count for b in found.bins) == len(labels)
    assert all(b.low <= b.confidence <= b.high for b in found.bins)


def test_overconfidence_is_measured_exactly() -> None:
    probabilities = np.full((100, 10), 0.1 / 9)
    probabilities[:, 3] = 0.9
    labels = np.where(np.arange(100) < 60, 3, 4)  # 90 % sure, 60 % right
    found = calibration(probabilities, labels)
    assert found.ece == pytest.approx(0.3)
    assert found.nll == pytest.approx(-0.6 * math.log(0.9) - 0.4 * math.log(0.1 / 9))
    (only,) = found.bins
    assert (only.count, only.confidence, only.accuracy) == (100, pytest.approx(0.9), pytest.approx(0.6))


def test_a_certain_answer_falls_into_the_last_bin() -> None:
    probabilities = np.zeros((1, 10))
    probabilities[0, 0] = 1.0
    found = calibration(probabilities, np.array([0]))
    assert (found.ece, found.nll, found.bins[0].high) == (0.0, 0.0, 1.0)


def test_tempering_divides_the_scores_and_can_be_taken_back() -> None:
    scores, _ = drawn(1.0, clips=50)
    probabilities = np.exp(log_softmax(scores))
    sharper = tempered(probabilities, 0.5)
    np.testing.assert_allclose(sharper, np.exp(log_softmax(scores / 0.5)), atol=1e-12)
    np.testing.assert_allclose(tempered(sharper, 2.0), probabilities, atol=1e-9)


def test_the_fitted_temperature_mends_the_calibration_of_other_clips() -> None:
    scores, labels = drawn(3.0)
    temperature = fit_temperature(scores[:10_000], labels[:10_000])
    before = calibration(np.exp(log_softmax(scores[10_000:])), labels[10_000:])
    after = calibration(np.exp(log_softmax(scores[10_000:] / temperature)), labels[10_000:])
    assert before.ece > 0.15
    assert after.ece < 0.03
    assert after.nll < before.nll
