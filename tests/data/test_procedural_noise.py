"""Generated background noise: five kinds, told apart by ear and by these figures."""

from __future__ import annotations

import numpy as np
import pytest

from ml_training.data.augmentation.procedural_noise import EACH, KINDS, SAMPLES, generated_sounds
from ml_training.results import Floats


def of(kind: str) -> Floats:
    return np.stack([samples for name, samples in generated_sounds() if name == kind])


def unsteadiness(sounds: Floats) -> Floats:
    """How far the loudest fifth of a second lies above the median one, dB."""
    frames = np.square(sounds).reshape(len(sounds), 15, -1).mean(axis=2) + 1e-9
    return np.asarray(10 * np.log10(frames.max(axis=1) / np.median(frames, axis=1)))


def tonality(sounds: Floats) -> Floats:
    """Share of the energy in the strongest hundredth of the spectrum."""
    energy = np.sort(np.abs(np.fft.rfft(sounds, axis=1)) ** 2, axis=1)
    return np.asarray(energy[:, -energy.shape[1] // 100 :].sum(axis=1) / energy.sum(axis=1))


@pytest.mark.parametrize("kind", KINDS)
def test_sounds_are_finite_of_unit_power_and_no_two_alike(kind: str) -> None:
    sounds = of(kind)
    assert sounds.shape == (EACH, SAMPLES)
    assert sounds.dtype == np.float32
    assert np.isfinite(sounds).all()
    np.testing.assert_allclose(np.square(sounds, dtype=np.float64).mean(axis=1), 1.0, rtol=1e-3)
    np.testing.assert_allclose(sounds.mean(axis=1), 0.0, atol=1e-3)
    alike = sounds @ sounds.T / SAMPLES - np.eye(EACH)
    assert np.abs(alike).max() < 0.9


def test_kinds_differ() -> None:
    assert np.median(unsteadiness(of("tonal"))) > np.median(unsteadiness(of("broadband"))) + 2
    assert np.median(tonality(of("tonal"))) > 1.5 * np.median(tonality(of("broadband")))
    peak = {kind: np.median(np.abs(of(kind)).max(axis=1)) for kind in KINDS}
    assert peak["impulsive"] > peak["broadband"], "strokes stand out"


def test_a_seed_decides() -> None:
    generated_sounds.cache_clear()
    again = generated_sounds(0)
    other = generated_sounds.__wrapped__(1)
    assert np.array_equal(again[7][1], generated_sounds.__wrapped__(0)[7][1])
    assert not np.array_equal(again[7][1], other[7][1])
