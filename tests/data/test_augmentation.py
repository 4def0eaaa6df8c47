"""Augmentation: seeded, bounded, and doing what its settings say."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ml_training.audio import NUM_SAMPLES, SAMPLE_RATE
from ml_training.config import AugmentationConfig
from ml_training.data.augmentation import augment, place, random_noise, random_response

PADDED = 9000


@pytest.fixture
def lengths() -> torch.Tensor:
    return torch.tensor([1200, 4000, 6002, 8000])


@pytest.fixture
def clips(lengths: torch.Tensor) -> torch.Tensor:
    """Tones of 500 Hz in the middle of their second."""
    time = torch.arange(NUM_SAMPLES) / SAMPLE_RATE
    tone = torch.sin(2 * torch.pi * 500 * time)
    begin = (NUM_SAMPLES - lengths) // 2
    index = torch.arange(NUM_SAMPLES)
    inside = (index >= begin[:, None]) & (index < (begin + lengths)[:, None])
    return tone * inside


def test_one_seed_gives_one_batch(clips: torch.Tensor, lengths: torch.Tensor) -> None:
    def varied(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return augment(clips, lengths, AugmentationConfig())

    assert torch.equal(varied(1), varied(1))
    assert not torch.equal(varied(1), varied(2))
    assert varied(1).shape == clips.shape
    assert torch.isfinite(varied(1)).all()


def test_nothing_chosen_changes_nothing(clips: torch.Tensor, lengths: torch.Tensor) -> None:
    still = AugmentationConfig(
        speed=(1.0, 1.0), level_db=(0.0, 0.0), equaliser_db=0.0, noise_probability=0.0, shift=0.0
    )
    torch.testing.assert_close(augment(clips, lengths, still), clips, atol=1e-5, rtol=0)


def test_clips_stay_whole_inside_their_second(clips: torch.Tensor, lengths: torch.Tensor) -> None:
    energy = clips.square().sum(dim=1)
    starts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        placed, durations = place(clips, lengths, (1.0, 1.0), 1.0)
        assert durations.tolist() == lengths.tolist()
        torch.testing.assert_close(placed.square().sum(dim=1), energy, rtol=0.02, atol=0)
        starts.add(int(placed[0].nonzero()[0]))
    assert min(starts) < 1500
    assert max(starts) > 5000


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_speed_changes_pitch_and_duration(clips: torch.Tensor, lengths: torch.Tensor, factor: float) -> None:
    placed, durations = place(clips[:2], lengths[:2], (factor, factor), 0.0)
    torch.testing.assert_close(durations, lengths[:2] / factor)
    peak = torch.fft.rfft(placed).abs().argmax(dim=1)
    assert ((peak - 500 * factor).abs() <= 2).all()


@pytest.mark.parametrize("decibels", [-5.0, 0.0, 20.0])
def test_noise_has_the_ratio_to_the_word(clips: torch.Tensor, lengths: torch.Tensor, decibels: float) -> None:
    torch.manual_seed(0)
    many, long = clips.repeat(16, 1), lengths.repeat(16)
    spectra = torch.fft.rfft(many, n=PADDED)
    noise = torch.fft.irfft(random_noise(spectra, long, 1.0, (decibels, decibels)), n=PADDED)[:, :NUM_SAMPLES]
    word = many.square().sum(dim=1) / long
    ratio = 10 * torch.log10(word / noise.square().mean(dim=1))
    assert abs(float(ratio.mean()) - decibels) < 0.2
    assert float(ratio.std()) < 1.0


def test_noise_comes_as_often_as_wanted(clips: torch.Tensor, lengths: torch.Tensor) -> None:
    torch.manual_seed(0)
    spectra, long = torch.fft.rfft(clips, n=PADDED).repeat(100, 1), lengths.repeat(100)
    noisy = random_noise(spectra, long, 0.3, (10.0, 10.0)).abs().sum(dim=1) > 0
    assert 0.22 < noisy.float().mean() < 0.38


def test_the_equaliser_stays_within_its_limit(clips: torch.Tensor) -> None:
    torch.manual_seed(0)
    response = 20 * torch.log10(random_response(clips.repeat(50, 1), 6.0))
    assert response.abs().max() <= 6.001
    assert response.abs().max() > 5.0
    assert (response.diff(dim=1).abs() < 0.05).all(), "smooth"


def test_level_is_set_last(clips: torch.Tensor, lengths: torch.Tensor) -> None:
    quiet = dataclasses.replace(AugmentationConfig(), level_db=(-40.0, -40.0), noise_probability=0.0)
    torch.manual_seed(0)
    assert augment(clips, lengths, quiet).abs().max() < 0.03
