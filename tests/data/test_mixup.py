"""mixup and cutmix: the mixed clips and the weights of their labels."""

import pytest
import torch

from digit_detector.audio import NUM_SAMPLES
from ml_training.config import AugmentationConfig
from ml_training.data.augmentation.mixup import mix

LABELS = torch.arange(200) % 10


def batch(levels=True):
    """(200, T) tones, a frequency for each digit, the later the louder."""
    time = torch.arange(NUM_SAMPLES) / NUM_SAMPLES
    tones = torch.sin(2 * torch.pi * (300 + 100 * LABELS[:, None]) * time)
    return tones * torch.linspace(0.01, 0.5, 200)[:, None] if levels else tones


def mixed(clips, seed=0, **settings):
    torch.manual_seed(seed)
    return mix(clips, LABELS, AugmentationConfig(**settings))


def powers(clips):
    """(200, 10) power at each digit's frequency, as a share of all."""
    power = torch.fft.rfft(clips).abs().square()[:, 300:1300:100]
    return power / power.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_seeded_normalised_and_as_often_as_wanted(kind):
    setting = {f"{kind}_probability": 0.3}
    clips, weights = mixed(batch(), **setting)
    again, same = mixed(batch(), **setting)
    assert torch.equal(clips, again)
    assert torch.equal(weights, same)
    assert not torch.equal(clips, mixed(batch(), seed=1, **setting)[0])
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(200))
    assert torch.equal(weights.argmax(dim=1), LABELS), "its own digit stays the likeliest"
    touched = (clips != batch()).any(dim=1)
    assert 0.1 < touched.float().mean() < 0.4
    assert (weights[~touched].amax(dim=1) == 1).all()


def test_mixup_weighs_what_is_heard():
    clips, weights = mixed(batch(), mixup_probability=1.0, mixup_alpha=1.0)
    amplitudes = powers(clips).sqrt()
    amplitudes /= amplitudes.sum(dim=1, keepdim=True)
    others = weights.amax(dim=1) < 1  # the partner may have the same digit
    assert others.sum() > 150
    torch.testing.assert_close(amplitudes[others], weights[others], atol=0.02, rtol=0)
    assert weights[others].amax(dim=1).min() >= 0.5
    assert weights[others].amax(dim=1).min() < 0.6


def test_cutmix_weighs_by_energy():
    clips, weights = mixed(batch(levels=False), cutmix_probability=1.0)
    for row in range(20):
        foreign = (clips[row] - batch(levels=False)[row]).abs() > 1e-6
        if foreign.any():
            place = foreign.nonzero()
            stretch = int(place[-1] - place[0]) + 1
            assert float(weights[row, LABELS[row]]) == pytest.approx(1 - stretch / NUM_SAMPLES, abs=0.01)
    assert weights.amax(dim=1).mean() < 0.9


def test_off_gives_plain_labels():
    clips, weights = mixed(batch())
    assert torch.equal(clips, batch())
    assert torch.equal(weights, torch.nn.functional.one_hot(LABELS, 10).float())
    assert not AugmentationConfig().mixes
    assert AugmentationConfig(cutmix_probability=0.1).mixes
    assert not AugmentationConfig(cutmix_probability=0.1, enabled=False).mixes
