"""From joined strings to what a microphone makes of them, whole batches at a time.

B strings of T samples. Everything random comes from torch's global generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from digit_detector.audio import SAMPLE_RATE
from ml_training.data.augmentation import random_response
from ml_training.data.augmentation.channel import LONGEST_TAIL, band_limits, quantize, reverberation, telephone_band
from ml_training.data.augmentation.noise import NoiseBank

_NEPERS = math.log(10.0) / 20.0
_STEP = 2.0**-15  # of 16 bits
_SPEED = (0.75, 1.33)  # of recorded noise: what cries and barks then has another voice


@dataclass(frozen=True)
class Scene:
    """How sound is varied."""

    snr_db: tuple[float, float] = (-2.0, 35.0)
    noisy: float = 0.8  # share of strings with noise
    wordless: float = 0.14  # share of strings of which only the noise is left
    equaliser_db: float = 6.0
    tilt_db: float = 3.0
    rooms: float = 0.25  # share of strings in a room
    rt60: tuple[float, float] = (0.15, 0.6)
    direct_db: tuple[float, float] = (0.0, 15.0)
    bands: float = 0.15  # share with band limits
    telephone: float = 0.1
    peak_dbfs: tuple[float, float] = (-42.0, 3.0)  # above 0 it is clipped


def heard(
    strings: Tensor, sounding: Tensor, noises: list[tuple[NoiseBank, float]], scene: Scene
) -> tuple[Tensor, Tensor]:
    """(B, T) strings and where in them anything is said (B, T) -> (B, T) sound, and (B,) of which only noise is left.

    `noises` are recordings with the share of strings each gives.
    """
    count, size = strings.shape
    points = _round_length(size + LONGEST_TAIL)
    power = (strings.square() * sounding).sum(dim=1) / sounding.sum(dim=1).clamp_min(1)
    silent = _chosen(count, scene.wordless)
    spectra = torch.fft.rfft(strings * ~silent[:, None], n=points)
    spectra *= random_response(strings, points // 2 + 1, scene.equaliser_db, scene.tilt_db)
    rooms = _chosen(count, scene.rooms)
    spectra *= reverberation(points, _uniform(count, scene.rt60), _uniform(count, scene.direct_db), rooms)
    ratio = torch.exp(_uniform(count, scene.snr_db) * -_NEPERS)
    noisy = _chosen(count, scene.noisy) | silent
    noise = excerpts(noises, count, size) * (power.clamp_min(1e-4).sqrt() * ratio * noisy)[:, None]
    spectra += torch.fft.rfft(noise, n=points)
    low, high = _uniform(count, (50.0, 400.0)), _uniform(count, (2500.0, 4000.0))
    spectra *= band_limits(points, low, high, _chosen(count, scene.bands))
    called = _chosen(count, scene.telephone)
    spectra *= telephone_band(points, called)
    sound: Tensor = torch.fft.irfft(spectra, n=points)[:, :size]
    sound = quantize(sound, called, _uniform(count, (-24.0, 0.0)), mu_law=True)
    peak = torch.exp(_uniform(count, scene.peak_dbfs) * _NEPERS)
    sound *= (peak / sound.abs().amax(dim=1).clamp_min(1e-6))[:, None]
    return sound.clamp_(-1.0, 1.0).div_(_STEP).round_().mul_(_STEP), silent


def excerpts(noises: list[tuple[NoiseBank, float]], count: int, size: int) -> Tensor:
    """(count, size) from random places of random recordings, faster or slower, of power one.

    A recording that is shorter than that is heard again and again.
    """
    shares = torch.tensor([share for _, share in noises])
    made = torch.empty(count, size)
    for i, source in enumerate(torch.multinomial(shares, count, replacement=True).tolist()):
        recordings = noises[source][0]
        which = int(torch.randint(len(recordings.starts), ()))
        start = int(recordings.starts[which])
        length = int(recordings.choices[which]) + SAMPLE_RATE - 1
        sound = recordings.samples[start : start + length].roll(int(torch.randint(length, ())))
        speed = float(_uniform(1, _SPEED))
        needed = math.ceil(size * speed)
        sound = sound.repeat(-(-needed // length))[:needed]
        made[i] = functional.interpolate(sound[None, None], size=size, mode="linear")[0, 0]
    return made / made.square().mean(dim=1, keepdim=True).sqrt().clamp_min(0.03)


def _round_length(size: int) -> int:
    """The next length that a transform of is quick."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


def _uniform(count: int, limits: tuple[float, float]) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * torch.rand(count)


def _chosen(count: int, share: float) -> Tensor:
    return torch.rand(count) < share
