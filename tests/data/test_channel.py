"""Voices, rooms, lines and few bits: formants and pitch, decay, band and quantisation are as the settings say."""

import math

import numpy as np
import pytest
import torch

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE

# --- voices --------------------------------------------------------------------------------------


def pitch_of(clip):
    """Hz, where the autocorrelation of the middle has its peak, from 70 to 400 Hz."""
    middle = clip[3000:5048] * torch.hann_window(2048)
    correlation = torch.fft.irfft(torch.fft.rfft(middle, n=4096).abs().square())
    low, high = SAMPLE_RATE // 400, SAMPLE_RATE // 70
    lag = low + int(correlation[low:high].argmax())
    before, here, after = correlation[lag - 1 : lag + 2].tolist()
    return SAMPLE_RATE / (lag + 0.5 * (before - after) / (before - 2 * here + after))


def formant_of(clip):
    """Hz, centre of the power of the middle, without the weak ends of its spectrum."""
    power = torch.fft.rfft(clip[3000:5048] * torch.hann_window(2048)).abs().square()
    power = torch.where(power > 0.03 * power.max(), power, 0.0)
    return float((power * torch.linspace(0, SAMPLE_RATE / 2, 1025)).sum() / power.sum())


@pytest.mark.parametrize("factor", [0.8, 1.25])
@pytest.mark.parametrize("name", ["formant_shift", "pitch"])
def test_formants_and_pitch_move_alone(varied, vowel, name, factor):
    clip = vowel(125.0, 1000.0)[None]
    moved = varied(clip, torch.tensor([4800]), **{f"{name}_probability": 1.0, name: (factor, factor)})
    pitch, formant = (factor, 1.0) if name == "pitch" else (1.0, factor)
    assert pitch_of(moved[0]) == pytest.approx(125 * pitch, rel=0.02)
    assert formant_of(moved[0]) / formant_of(clip[0]) == pytest.approx(formant, rel=0.07)
    envelopes = [c.square().unfold(0, 400, 400).mean(dim=1).sqrt() for c in (clip[0], moved[0])]
    assert np.corrcoef(*envelopes)[0, 1] > 0.97, "it lasts as long"
    assert moved.square().sum() / clip.square().sum() == pytest.approx(1.0, abs=0.05)


def test_a_voice_that_is_not_chosen_stays_as_it_is(varied, vowel):
    clips = torch.stack([vowel(125.0, 1000.0)] * 40)
    moved = varied(clips, torch.full((40,), 4800), pitch_probability=0.5, formant_shift_probability=0.2)
    assert 5 < int(((moved - clips).abs().amax(dim=1) < 1e-5).sum()) < 30


# --- rooms and lines -----------------------------------------------------------------------------


def test_band_limits_are_3_db_down_where_they_say(varied):
    noise = torch.randn(4, NUM_SAMPLES, generator=torch.Generator().manual_seed(0))
    limits = {"band_low_hz": (300.0, 300.0), "band_high_hz": (2000.0, 2000.0)}
    limited = varied(noise, torch.full((4,), NUM_SAMPLES), band_probability=1.0, **limits)
    before, after = (torch.fft.rfft(c).abs().square() for c in (noise, limited))
    bands = [slice(hz - 10, hz + 10) for hz in (150, 300, 800, 2000, 3500)]
    gain = [10 * math.log10(after[:, band].sum() / before[:, band].sum()) for band in bands]
    assert gain[1] == pytest.approx(-3.0, abs=0.5)
    assert gain[3] == pytest.approx(-3.0, abs=0.5)
    assert abs(gain[2]) < 0.3
    assert (gain[0] < -20, gain[4] < -15) == (True, True)


@pytest.mark.parametrize(("rt60", "drr_db"), [(0.3, 0.0), (0.5, 10.0)])
def test_a_room_decays_at_its_level(varied, rt60, drr_db):
    click = torch.zeros(32, NUM_SAMPLES)
    click[:, 4000] = 1.0
    settings = {"rt60": (rt60, rt60), "drr_db": (drr_db, drr_db)}
    room = varied(click, torch.full((32,), NUM_SAMPLES), reverb_probability=1.0, **settings)
    torch.testing.assert_close(room[:, 4000], torch.ones(32), atol=1e-3, rtol=0)
    assert room[:, :4000].abs().max() < 1e-3, "nothing sounds before the click, nor wraps around"
    tail = room[:, 4001:].square().mean(dim=0)
    assert 10 * math.log10(1.0 / float(tail.sum())) == pytest.approx(drr_db, abs=0.5)
    left = 10 * torch.log10(tail.flip(0).cumsum(0).flip(0))  # Schroeder's backward integration
    slope = float(left[80] - left[1200]) / (1120 / SAMPLE_RATE)  # dB a second
    assert 60 / slope == pytest.approx(rt60, rel=0.1)


def test_a_telephone_has_its_band_and_255_levels(varied):
    time = torch.arange(NUM_SAMPLES) / SAMPLE_RATE
    tones = torch.stack([0.05 * torch.sin(2 * torch.pi * hz * time) for hz in (100, 1003.7, 3800)])
    line = varied(tones, torch.full((3,), NUM_SAMPLES), telephone_probability=1.0, peak_dbfs=(0.0, 0.0))
    power = line.square().mean(dim=1) / tones.square().mean(dim=1)
    assert (power[0] < 1e-4, power[2] < 0.1) == (True, True)
    assert power[1] == pytest.approx(1.0, abs=0.02)
    assert 50 < len(line[1].unique()) <= 255
    error = (line[1] - tones[1]).square().mean() / tones[1].square().mean()
    assert -45 < 10 * math.log10(error) < -33, "mu-law: about 38 dB, at any level"


@pytest.mark.parametrize(("peak_dbfs", "noise_db"), [(0.0, -48.0), (-24.0, -24.0)])
def test_eight_bits_are_coarser_the_lower_the_peak(varied, peak_dbfs, noise_db):
    tone = 0.003 * torch.sin(2 * torch.pi * 440.3 * torch.arange(NUM_SAMPLES) / SAMPLE_RATE)[None]
    coarse = varied(tone, torch.tensor([NUM_SAMPLES]), quantize_probability=1.0, peak_dbfs=(peak_dbfs, peak_dbfs))
    assert len(coarse.unique()) <= 255 * 10 ** (peak_dbfs / 20) + 2
    error = (coarse - tone).square().mean() / tone.square().mean()
    assert 10 * math.log10(error) == pytest.approx(noise_db, abs=4)
