"""Acoustic scenes: rooms, noise, lines, levels and lost packets, rendered for whole batches.

B utterances of T samples. Random numbers come from torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from digit_detector.audio import SAMPLE_RATE
from ml_training.config import AugmentationConfig
from ml_training.data.augmentation import _chosen, _uniform, random_response
from ml_training.data.augmentation.channel import LONGEST_TAIL, band_limits, quantize, reverberation, telephone_band
from ml_training.data.augmentation.noise import NoiseBank

_NEPERS = math.log(10.0) / 20.0  # per dB of amplitude
_NOISE_SPEED = (0.75, 1.33)
_PACKET = SAMPLE_RATE // 50


@dataclass(frozen=True)
class AcousticScene(AugmentationConfig):
    """Augmentation of utterances; settings of voice, place, level and mixing do not apply."""

    snr_db: tuple[float, float] = (2.0, 40.0)  # over the speech without its pauses
    random_eq_db: float = 4.0
    noise_probability: float = 0.7
    tilt_db: float = 3.0
    reverb_probability: float = 0.3
    band_probability: float = 0.2
    telephone_probability: float = 0.15
    noise_only_probability: float = 0.06
    packet_loss_probability: float = 0.12
    packet_loss: float = 0.15  # at most, of the packets of 20 ms
    echo_probability: float = 0.03
    output_peak_dbfs: tuple[float, float] = (-48.0, 2.0)  # what exceeds 0 is clipped


def render_scene(
    speech: Tensor, noises: Sequence[tuple[NoiseBank, float]], scene: AcousticScene
) -> tuple[Tensor, Tensor]:
    """(B, T) speech, 0 in pauses -> (B, T) sound of 16 bits, and (B,) which of it is noise only.

    `noises` are recordings with the share of utterances that each gives.
    """
    like, size = speech[:, 0], speech.shape[1]
    step = 1 << max(0, (size + LONGEST_TAIL).bit_length() - 4)
    points = -(-(size + LONGEST_TAIL) // step) * step  # a length with a fast transform
    power = speech.square().sum(dim=1) / (speech != 0).sum(dim=1).clamp_min(1)
    noise_only = _chosen(like, scene.noise_only_probability)
    spectra = torch.fft.rfft(_echo(speech, scene) * ~noise_only[:, None], n=points)
    spectra *= random_response(speech, points // 2 + 1, scene.random_eq_db, scene.tilt_db)
    reverberant = _chosen(like, scene.reverb_probability)
    spectra *= reverberation(points, _uniform(like, scene.rt60), _uniform(like, scene.drr_db), reverberant)
    noisy = _chosen(like, scene.noise_probability) | noise_only
    gain = power.clamp_min(1e-4).sqrt() * torch.exp(_uniform(like, scene.snr_db) * -_NEPERS) * noisy
    spectra += torch.fft.rfft(noise_excerpts(noises, *speech.shape) * gain[:, None], n=points)
    low, high = _uniform(like, scene.band_low_hz), _uniform(like, scene.band_high_hz)
    spectra *= band_limits(points, low, high, _chosen(like, scene.band_probability))
    telephone = _chosen(like, scene.telephone_probability)
    spectra *= telephone_band(points, telephone)
    sound: Tensor = torch.fft.irfft(spectra, n=points)[:, :size]
    sound = quantize(sound, telephone, _uniform(like, scene.peak_dbfs), mu_law=True)
    peak = torch.exp(_uniform(like, scene.output_peak_dbfs) * _NEPERS)
    sound *= (peak / sound.abs().amax(dim=1).clamp_min(1e-6))[:, None]
    sound *= ~_lost_packets(sound, scene)
    return sound.clamp_(-1.0, 1.0).mul_(2**15).round_().div_(2**15), noise_only


def _echo(speech: Tensor, scene: AcousticScene) -> Tensor:
    """Speech with an echo after 0.15 to 0.4 s, 6 to 15 dB below it, in some rows."""
    like = speech[:, 0]
    gains = torch.exp(_uniform(like, (-15.0, -6.0)) * _NEPERS) * _chosen(like, scene.echo_probability)
    delay = int(torch.randint(int(0.15 * SAMPLE_RATE), int(0.4 * SAMPLE_RATE), ()))
    return speech + functional.pad(speech[:, :-delay], (delay, 0)) * gains[:, None]


def _lost_packets(sound: Tensor, scene: AcousticScene) -> Tensor:
    """(B, T) which samples are lost."""
    like, size = sound[:, 0], sound.shape[1]
    share = torch.rand_like(like) * scene.packet_loss * _chosen(like, scene.packet_loss_probability)
    lost = torch.rand(len(sound), -(-size // _PACKET)) < share[:, None]
    return lost.repeat_interleave(_PACKET, dim=1)[:, :size]


def noise_excerpts(noises: Sequence[tuple[NoiseBank, float]], count: int, size: int) -> Tensor:
    """(count, size) random excerpts at random speeds, of power one; shorter recordings are repeated."""
    sources = torch.multinomial(torch.tensor([share for _, share in noises]), count, replacement=True).tolist()
    excerpts = torch.empty(count, size)
    for row, source in zip(excerpts, sources, strict=True):
        noise = noises[source][0]
        which = int(torch.randint(len(noise.starts), ()))
        start, length = int(noise.starts[which]), int(noise.choices[which]) + SAMPLE_RATE - 1
        sound = noise.samples[start : start + length].roll(int(torch.randint(length, ())))
        needed = math.ceil(size * float(_uniform(row[:1], _NOISE_SPEED)))
        sound = sound.repeat(-(-needed // length))[:needed]
        row[:] = functional.interpolate(sound[None, None], size=size, mode="linear")[0, 0]
    return excerpts / excerpts.square().mean(dim=1, keepdim=True).sqrt().clamp_min(0.03)
