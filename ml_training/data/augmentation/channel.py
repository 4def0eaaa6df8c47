"""Rooms, band limits, telephone lines and 8-bit quantisation, whole batches at a time.

B clips of T samples; N points of the transform, K = N / 2 + 1 bins. Filters are gains of the spectrum, so that all of
them share one pass through the frequency domain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from digit_detector.audio import SAMPLE_RATE

TELEPHONE_HZ = (300.0, 3400.0)  # ITU-T G.712
MU = 255.0  # ITU-T G.711
LONGEST_TAIL = 4000  # samples of reverberation
_DECAY = math.log(10.0) * 3.0  # nepers of amplitude in 60 dB
_STEEPNESS = 4  # order of the band limits, 24 dB an octave
_TELEPHONE_STEEPNESS = 12


def reverberation(points: int, rt60: Tensor, drr_db: Tensor, chosen: Tensor) -> Tensor:
    """(B, K) complex gains of a random room for each clip, 1 where not `chosen` (B,).

    White noise that decays by 60 dB in `rt60` (B,) seconds follows the direct sound, whose energy is `drr_db` (B,)
    above that of the noise (Polack's model of late reverberation, 1988).
    """
    time = torch.arange(1, LONGEST_TAIL + 1, device=rt60.device) / SAMPLE_RATE
    tail = torch.randn(len(rt60), LONGEST_TAIL, device=rt60.device)
    tail.mul_(torch.exp(time / rt60[:, None] * -_DECAY))
    level = torch.exp(drr_db * (-math.log(10.0) / 20.0)) * chosen
    tail.mul_((level / tail.square().sum(dim=1).clamp_min(1e-12).sqrt())[:, None])
    response: Tensor = torch.fft.rfft(functional.pad(tail, (1, 0)), n=points)
    return response.add_(1.0)


def band_limits(points: int, low: Tensor, high: Tensor, chosen: Tensor, steepness: int = _STEEPNESS) -> Tensor:
    """(B, K) gains that fall off below `low` and above `high` (B,) Hz, 1 where not `chosen` (B,).

    Butterworth magnitudes without their delay: 6 * `steepness` dB an octave, -3 dB at the limits.
    """
    hz = torch.linspace(0, SAMPLE_RATE / 2, points // 2 + 1, device=low.device)
    below = (low[:, None] / hz.clamp_min(1.0)).pow(2 * steepness)
    above = (hz / high[:, None]).pow(2 * steepness)
    gains = ((1.0 + below) * (1.0 + above)).rsqrt()
    return torch.where(chosen[:, None], gains, 1.0)


def telephone_band(points: int, chosen: Tensor) -> Tensor:
    """(B, K) gains of a telephone line, 1 where not `chosen` (B,)."""
    low, high = (torch.full((1,), hz, device=chosen.device) for hz in TELEPHONE_HZ)
    line = band_limits(points, low, high, torch.ones_like(low, dtype=torch.bool), _TELEPHONE_STEEPNESS)
    return torch.where(chosen[:, None], line, 1.0)


def quantize(waveforms: Tensor, chosen: Tensor, peak_dbfs: Tensor, mu_law: bool) -> Tensor:
    """(B, T) clips, quantised to 8 bits (linear or mu-law) where `chosen` (B,), their levels kept.

    Each is quantised with its peak `peak_dbfs` (B,) from full scale: the lower, the coarser.
    """
    peak = waveforms.abs().amax(dim=1).clamp_min(1e-9)
    scale = (torch.exp(peak_dbfs * (math.log(10.0) / 20.0)) / peak)[:, None]
    scaled = (waveforms * scale).clamp(-1.0, 1.0)
    if mu_law:
        steps = scaled.abs().mul_(MU).log1p_().mul_(127.0 / math.log1p(MU)).round_()
        level = torch.expm1(steps.mul_(math.log1p(MU) / 127.0)).div_(MU)
        quantised = torch.copysign(level, scaled)
    else:
        quantised = scaled.mul(127.0).round_().div_(127.0)
    return torch.where(chosen[:, None], quantised / scale, waveforms)
