"""Waveform augmentation, whole batches at a time.

B clips of T (8,000) samples. Everything random comes from torch's global generator, so that one
seed before a training step fixes all of it. Filters and noise are shaped in one frequency domain
pass; resampling and placing are one gather.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ml_training.audio import NUM_SAMPLES, SAMPLE_RATE
from ml_training.config import AugmentationConfig

_PADDED = 9000  # transform length: a smooth filter rings shorter than the 1,000 samples of padding
_KNOTS = 8  # free points of the random equaliser, evenly spaced in mel-like frequency
_LOWEST_NOISE = 30.0  # Hz; coloured noise is flat below, or its power would all be rumble


def augment(waveforms: Tensor, lengths: Tensor, config: AugmentationConfig) -> Tensor:
    """(B, T) clips, each `lengths` (B,) samples long and centred, -> (B, T) varied clips."""
    varied = place(waveforms, lengths, config.speed, config.shift)
    varied = equalise_and_add_noise(varied, config)
    return varied * torch.pow(10.0, _uniform(len(varied), config.level_db, varied) / 20.0)[:, None]


def place(waveforms: Tensor, lengths: Tensor, speed: tuple[float, float], shift: float) -> Tensor:
    """Play every clip at a random speed (pitch moves with it) somewhere in its second.

    shift 0 keeps clips centred; 1 lets them lie anywhere that still holds them whole.
    """
    size = lengths.to(waveforms.dtype)
    factor = torch.exp(_uniform(len(size), speed, waveforms, log=True))
    free = NUM_SAMPLES - size / factor
    start = free * (0.5 + shift * (torch.rand_like(size) - 0.5))
    begin = torch.div(NUM_SAMPLES - lengths, 2, rounding_mode="floor").to(waveforms.dtype)
    time = torch.arange(NUM_SAMPLES, device=waveforms.device, dtype=waveforms.dtype)
    source = (time - start[:, None]) * factor[:, None] + begin[:, None]  # (B, T) positions in the clip
    inside = (source >= begin[:, None]) & (source < (begin + size)[:, None])
    source = source.clamp(0, NUM_SAMPLES - 1)
    left = source.floor()
    index = left.long()
    here = waveforms.gather(1, index)
    following = waveforms.gather(1, (index + 1).clamp_max(NUM_SAMPLES - 1))
    placed: Tensor = torch.lerp(here, following, source - left) * inside
    return placed


def equalise_and_add_noise(waveforms: Tensor, config: AugmentationConfig) -> Tensor:
    """Random smooth frequency response on each clip, then coloured noise at a random ratio.

    The ratio holds over the whole second's energy spread on the word, not on the silence around:
    noise power = word energy / word duration / 10^(dB / 10).
    """
    b = len(waveforms)
    spectrum = torch.fft.rfft(waveforms, n=_PADDED)
    bins = spectrum.shape[1]
    knots = (torch.rand(b, 1, _KNOTS, device=waveforms.device) * 2 - 1) * config.equaliser_db
    response = functional.interpolate(knots, size=bins, mode="linear", align_corners=True)[:, 0]
    filtered = torch.fft.irfft(spectrum * torch.pow(10.0, response / 20.0), n=_PADDED)[:, :NUM_SAMPLES]
    noise = coloured_noise(b, waveforms)
    energy = filtered.square()
    loud = energy.amax(dim=1, keepdim=True) * 1e-4
    active = (energy > loud).sum(dim=1).clamp_min(1)  # samples within 40 dB of the peak: the word
    power = energy.sum(dim=1) / active
    ratio = _uniform(b, config.snr_db, waveforms)
    wanted = torch.rand(b, device=waveforms.device) < config.noise_probability
    gain = torch.sqrt(power * torch.pow(10.0, -ratio / 10.0)) * wanted
    return filtered + gain[:, None] * noise


def coloured_noise(count: int, like: Tensor) -> Tensor:
    """(count, T) noise of unit power, each with its own slope between white and brown."""
    bins = _PADDED // 2 + 1
    hz = torch.linspace(0, SAMPLE_RATE / 2, bins, device=like.device).clamp_min(_LOWEST_NOISE)
    slope = torch.rand(count, 1, device=like.device)  # amplitude ~ f^-slope: 0 white, 0.5 pink, 1 brown
    shape = hz[None, :].pow(-slope)
    phases = torch.randn(count, bins, 2, device=like.device, dtype=like.dtype)
    noise = torch.fft.irfft(torch.view_as_complex(phases) * shape, n=_PADDED)[:, :NUM_SAMPLES]
    level: Tensor = noise.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    return noise / level


def _uniform(count: int, limits: tuple[float, float], like: Tensor, log: bool = False) -> Tensor:
    low, high = limits
    drawn = torch.rand(count, device=like.device, dtype=like.dtype)
    if log:
        low, high = float(torch.tensor(low).log()), float(torch.tensor(high).log())
    return low + (high - low) * drawn
