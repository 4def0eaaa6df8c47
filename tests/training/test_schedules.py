"""Learning rates as functions of where training stands."""

from __future__ import annotations

import pytest

from ml_training.training.schedules import Schedule


def rates(schedule: Schedule) -> list[float]:
    return [schedule.rate(e, s, 0) for e in range(schedule.epochs) for s in range(schedule.steps)]


def test_cosine_rises_for_a_tenth_then_falls_to_almost_nothing() -> None:
    all_rates = rates(Schedule("cosine", 1e-3, epochs=10, steps=20))
    peak = all_rates.index(max(all_rates))
    assert max(all_rates) == pytest.approx(1e-3)
    assert 19 <= peak <= 20
    assert all_rates[: peak + 1] == sorted(all_rates[: peak + 1])
    assert all_rates[peak:] == sorted(all_rates[peak:], reverse=True)
    assert 0 < all_rates[0] < 1e-4
    assert 0 < all_rates[-1] < 1e-6


def test_cosine_of_one_step_is_the_peak() -> None:
    assert rates(Schedule("cosine", 0.5, epochs=1, steps=1)) == [0.5]


def test_step_halves_after_each_fifth_of_the_epochs() -> None:
    schedule = Schedule("step", 1.0, epochs=10, steps=3)
    by_epoch = [schedule.rate(epoch, 1, 0) for epoch in range(10)]
    assert by_epoch == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625]


def test_plateau_follows_the_count_of_halvings_alone() -> None:
    schedule = Schedule("plateau", 1.0, epochs=10, steps=3)
    assert [schedule.rate(7, 2, halvings) for halvings in range(3)] == [1.0, 0.5, 0.25]
