"""Another voice: formants and pitch move as far as they are told, each alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from digit_detector.audio import SAMPLE_RATE

MakeClips = Callable[..., torch.Tensor]


def pitch_of(clip: torch.Tensor) -> float:
    """Hz, where the autocorrelation of the middle has its peak, from 70 to 400 Hz."""
    middle = clip[3000:5048] * torch.hann_window(2048)
    correlation = torch.fft.irfft(torch.fft.rfft(middle, n=4096).abs().square())
    low, high = SAMPLE_RATE // 400, SAMPLE_RATE // 70
    lag = low + int(correlation[low:high].argmax())
    before, here, after = correlation[lag - 1 : lag + 2].tolist()
    return SAMPLE_RATE / (lag + 0.5 * (before - after) / (before - 2 * here + after))


def formant_of(clip: torch.Tensor) -> float:
    """Hz, centre of the power of the middle, the weak ends of its spectrum left out."""
    power = torch.fft.rfft(clip[3000:5048] * torch.hann_window(2048)).abs().square()
    power = torch.where(power > 0.03 * power.max(), power, 0.0)
    return float((power * torch.linspace(0, SAMPLE_RATE / 2, 1025)).sum() / power.sum())


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_the_tract_moves_formants_and_nothing_else(varied: MakeClips, vowel: MakeClips, factor: float) -> None:
    clip = vowel(125.0, 1000.0)[None]
    moved = varied(clip, torch.tensor([4800]), tract_probability=1.0, tract=(factor, factor))
    assert formant_of(moved[0]) / formant_of(clip[0]) == pytest.approx(factor, rel=0.07)
    assert pitch_of(moved[0]) == pytest.approx(125, rel=0.01)
    envelopes = [c.square().unfold(0, 400, 400).mean(dim=1).sqrt() for c in (clip[0], moved[0])]
    assert np.corrcoef(*envelopes)[0, 1] > 0.98, "it lasts as long"


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_pitch_moves_alone(varied: MakeClips, vowel: MakeClips, factor: float) -> None:
    clip = vowel(125.0, 1000.0)[None]
    moved = varied(clip, torch.tensor([4800]), pitch_probability=1.0, pitch=(factor, factor))
    assert pitch_of(moved[0]) == pytest.approx(125 * factor, rel=0.02)
    assert formant_of(moved[0]) / formant_of(clip[0]) == pytest.approx(1.0, rel=0.07)
    envelopes = [c.square().unfold(0, 400, 400).mean(dim=1).sqrt() for c in (clip[0], moved[0])]
    assert np.corrcoef(*envelopes)[0, 1] > 0.97, "it lasts as long"
    level = moved.square().sum() / clip.square().sum()
    assert level == pytest.approx(1.0, abs=0.05)


def test_a_voice_that_is_not_chosen_stays_as_it_is(varied: MakeClips, vowel: MakeClips) -> None:
    clips = torch.stack([vowel(125.0, 1000.0)] * 40)
    moved = varied(clips, torch.full((40,), 4800), pitch_probability=0.5, tract_probability=0.2)
    same = (moved - clips).abs().amax(dim=1) < 1e-5
    assert 5 < int(same.sum()) < 30
