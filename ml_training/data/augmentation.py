"""Waveform augmentation, whole batches at a time.

B clips of T (8,000) samples. Everything random comes from torch's global generator, so that one
seed before a training step fixes all of it. Resampling and placing are one gather; filtering and
noise share one pass through the frequency domain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ml_training.audio import NUM_SAMPLES, SAMPLE_RATE
from ml_training.config import AugmentationConfig

_PADDED = 9000  # transform length: a smooth filter rings shorter than the 1,000 samples of padding
_BINS = _PADDED // 2 + 1
_KNOTS = 8  # free points of the random equaliser, evenly spaced in frequency
_SLOPES = 9  # colours of noise between white and brown
_LOWEST_NOISE = 30.0  # Hz; coloured noise is flat below, or its power would all be rumble


def augment(waveforms: Tensor, lengths: Tensor, config: AugmentationConfig) -> Tensor:
    """(B, T) clips, each `lengths` (B,) samples long and centred, -> (B, T) varied clips."""
    placed, durations = place(waveforms, lengths, config.speed, config.shift)
    spectra = torch.fft.rfft(placed, n=_PADDED) * random_response(placed, config.equaliser_db)
    spectra = spectra + random_noise(spectra, durations, config.noise_probability, config.snr_db)
    varied: Tensor = torch.fft.irfft(spectra, n=_PADDED)[:, :NUM_SAMPLES]
    gain = torch.pow(10.0, _uniform(placed, config.level_db) / 20.0)[:, None]
    return varied * gain


def place(waveforms: Tensor, lengths: Tensor, speed: tuple[float, float], shift: float) -> tuple[Tensor, Tensor]:
    """Play every clip at a random speed (pitch moves with it) somewhere in its second.

    shift 0 keeps clips centred; 1 lets them lie anywhere that still holds them whole. Returns the
    clips (B, T) and how many samples (B,) each now lasts.
    """
    size = lengths.to(waveforms.dtype)
    factor = torch.exp(_uniform(waveforms, (math.log(speed[0]), math.log(speed[1]))))
    durations = size / factor
    start = (NUM_SAMPLES - durations) * (0.5 + shift * (torch.rand_like(size) - 0.5))
    begin = torch.div(NUM_SAMPLES - lengths, 2, rounding_mode="floor").to(waveforms.dtype)
    time = torch.arange(NUM_SAMPLES, device=waveforms.device, dtype=waveforms.dtype)
    source = (time - start[:, None]) * factor[:, None] + begin[:, None]  # (B, T) positions in the clip
    inside = (source >= begin[:, None]) & (source < (begin + size)[:, None])
    source = source.clamp(0, NUM_SAMPLES - 1)
    return _cubic(waveforms, source) * inside, durations


def _cubic(waveforms: Tensor, positions: Tensor) -> Tensor:
    """(B, T) samples between samples, by Catmull and Rom's cubic (1974).

    A straight line would take half of what lies at 3 kHz away.
    """
    left = positions.floor()
    t = positions - left
    index = left.long()
    before, here, after, later = (
        waveforms.gather(1, (index + step).clamp(0, NUM_SAMPLES - 1)) for step in (-1, 0, 1, 2)
    )
    slope = after - before
    square = 2 * before - 5 * here + 4 * after - later
    cube = 3 * (here - after) + later - before
    return torch.addcmul(here, t, torch.addcmul(slope, t, torch.addcmul(square, t, cube)), value=0.5)


def random_response(waveforms: Tensor, equaliser_db: float) -> Tensor:
    """(B, bins) gains of a smooth random equaliser, at most `equaliser_db` up or down anywhere."""
    knots = (torch.rand(len(waveforms), 1, _KNOTS, device=waveforms.device) * 2 - 1) * equaliser_db
    curve = functional.interpolate(knots, size=_BINS, mode="linear", align_corners=True)[:, 0]
    return torch.pow(10.0, curve / 20.0)


def random_noise(spectra: Tensor, durations: Tensor, probability: float, snr_db: tuple[float, float]) -> Tensor:
    """(B, bins) spectra of coloured noise, each at a random ratio to the word of its clip.

    Amplitude falls as f^-s with s from 0 (white) over 0.5 (pink) to 1 (brown). The ratio compares
    the noise with the word's power while it lasts, not with that of the whole second.
    """
    b, device = len(spectra), spectra.device
    hz = torch.linspace(0, SAMPLE_RATE / 2, _BINS, device=device).clamp_min(_LOWEST_NOISE)
    shapes = hz.pow(-torch.linspace(0, 1, _SLOPES, device=device)[:, None])
    shapes = shapes / shapes.square().mean(dim=1, keepdim=True).sqrt()
    colour = torch.randint(_SLOPES, (b,), device=device)
    white = torch.view_as_complex(torch.randn(b, _BINS, 2, device=device))  # power 2 in every bin
    energy = torch.view_as_real(spectra).square().sum(dim=(1, 2))  # Parseval: a sum over bins is one over samples
    wanted = torch.rand(b, device=device) < probability
    ratio = torch.pow(10.0, _uniform(durations, snr_db) / 10.0)
    power = energy / durations.clamp_min(1) / ratio * (_PADDED / (2 * _BINS)) * wanted
    return white * (shapes[colour] * power.sqrt()[:, None])


def _uniform(like: Tensor, limits: tuple[float, float]) -> Tensor:
    """(B,) numbers between two limits, on the device of a batch (B, ...)."""
    return limits[0] + (limits[1] - limits[0]) * torch.rand(len(like), device=like.device)
