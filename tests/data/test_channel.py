"""Lines, rooms and few bits: as narrow, as long and as coarse as their settings say."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE

MakeClips = Callable[..., torch.Tensor]


# --- lines ---------------------------------------------------------------------------------------


def test_band_limits_are_3_db_down_where_they_say(varied: MakeClips) -> None:
    noise = torch.randn(4, NUM_SAMPLES, generator=torch.Generator().manual_seed(0))
    limits = {"band_low_hz": (300.0, 300.0), "band_high_hz": (2000.0, 2000.0)}
    limited = varied(noise, torch.full((4,), NUM_SAMPLES), band_probability=1.0, **limits)
    before, after = (torch.fft.rfft(c).abs().square() for c in (noise, limited))
    gain = [10 * math.log10(after[:, hz - 10 : hz + 10].sum() / before[:, hz - 10 : hz + 10].sum()) for hz in
            (150, 300, 800, 2000, 3500)]  # fmt: skip
    assert gain[1] == pytest.approx(-3.0, abs=0.5)
    assert gain[3] == pytest.approx(-3.0, abs=0.5)
    assert abs(gain[2]) < 0.3
    assert gain[0] < -20
    assert gain[4] < -15


# --- rooms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rt60", "direct_db"), [(0.3, 0.0), (0.5, 10.0)])
def test_a_room_decays_and_is_as_loud_as_wanted(varied: MakeClips, rt60: float, direct_db: float) -> None:
    click = torch.zeros(32, NUM_SAMPLES)
    click[:, 4000] = 1.0
    heard = varied(
        click, torch.full((32,), NUM_SAMPLES), reverb_probability=1.0, rt60=(rt60, rt60),
        direct_db=(direct_db, direct_db),
    )  # fmt: skip
    torch.testing.assert_close(heard[:, 4000], torch.ones(32), atol=1e-3, rtol=0)
    assert heard[:, :4000].abs().max() < 1e-3, "nothing sounds before the click, nor wraps around"
    tail = heard[:, 4001:].square().mean(dim=0)
    assert 10 * math.log10(1.0 / float(tail.sum())) == pytest.approx(direct_db, abs=0.5)
    left = 10 * torch.log10(tail.flip(0).cumsum(0).flip(0))  # Schroeder's backward integration
    slope = float(left[80] - left[1200]) / (1120 / SAMPLE_RATE)  # dB a second
    assert 60 / slope == pytest.approx(rt60, rel=0.1)


# --- few bits ------------------------------------------------------------------------------------


def test_a_telephone_has_its_band_and_255_levels(varied: MakeClips) -> None:
    time = torch.arange(NUM_SAMPLES) / SAMPLE_RATE
    tones = torch.stack([0.05 * torch.sin(2 * torch.pi * hz * time) for hz in (100, 1003.7, 3800)])
    heard = varied(tones, torch.full((3,), NUM_SAMPLES), telephone_probability=1.0, peak_db=(0.0, 0.0))
    power = heard.square().mean(dim=1) / tones.square().mean(dim=1)
    assert power[0] < 1e-4
    assert power[1] == pytest.approx(1.0, abs=0.02)
    assert power[2] < 0.1
    assert 50 < len(heard[1].unique()) <= 255
    error = (heard[1] - tones[1]).square().mean() / tones[1].square().mean()
    assert -45 < 10 * math.log10(error) < -33, "mu-law: about 38 dB, however loud"


@pytest.mark.parametrize(("peak_db", "noise_db"), [(0.0, -48.0), (-24.0, -24.0)])
def test_eight_bits_are_the_coarser_the_lower_the_peak(varied: MakeClips, peak_db: float, noise_db: float) -> None:
    tone = 0.003 * torch.sin(2 * torch.pi * 440.3 * torch.arange(NUM_SAMPLES) / SAMPLE_RATE)[None]
    heard = varied(tone, torch.tensor([NUM_SAMPLES]), eight_bit_probability=1.0, peak_db=(peak_db, peak_db))
    assert len(heard.unique()) <= 255 * 10 ** (peak_db / 20) + 2
    error = (heard - tone).square().mean() / tone.square().mean()
    assert 10 * math.log10(error) == pytest.approx(noise_db, abs=4)
