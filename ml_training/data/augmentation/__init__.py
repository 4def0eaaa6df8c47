"""Waveform augmentation of whole batches: B clips of T (8,000) samples.

All random numbers come from torch's global generator, so one seed before a training step fixes all of them. Resampling
and placing are one interpolation; filtering, reverberation and noise share one pass through the frequency domain. An
effect that is off draws no random numbers.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE
from ml_training.config import AugmentationConfig
from ml_training.data.augmentation.channel import band_limits, quantize, reverberation, telephone_band
from ml_training.data.augmentation.noise import sample_noise
from ml_training.data.augmentation.voice import shift_formants_and_pitch

# Transform lengths with small factors. A smooth filter rings shorter than 1,000 samples of padding; reverberation lasts
# up to half a second longer than its clip.
_PADDED, _PADDED_FOR_ROOMS = 9000, 12000
_ROWS = 8  # clips that a CPU resamples at once: their buffers fit its cache
_EDGE = SAMPLE_RATE / 200  # samples of the fades of a cropped word
_KNOTS = 8  # free points of the random equaliser, evenly spaced in frequency
_SLOPES = 9  # colours of noise between white and brown
_POOL = 1 << 19  # bins of white noise to take stretches of
_LOWEST = 30.0  # Hz; coloured noise is flat below, or its power would all be rumble
_TILT_PIVOT, _TILT_OCTAVES = 1000.0, 3.0  # Hz that a tilt leaves as it is; octaves below it where the tilt ends
_NEPERS = math.log(10.0) / 20.0  # of one decibel of amplitude


def augment(waveforms: Tensor, lengths: Tensor, config: AugmentationConfig) -> Tensor:
    """(B, T) clips, each `lengths` (B,) samples long and centred -> (B, T) varied clips.

    Raises DataError when `config.noise_dir` holds no sound that can be read.
    """
    if config.edge_crop_probability:
        waveforms = crop_edges(waveforms, lengths, config.edge_crop_probability, config.edge_crop)
    pitch = torch.ones(len(waveforms), device=waveforms.device)
    if config.formant_shift_probability or config.pitch_probability:
        formants = _sometimes(pitch, config.formant_shift_probability, config.formant_shift)
        pitch = _sometimes(pitch, config.pitch_probability, config.pitch)
        highest = config.pitch[1] if config.pitch_probability else 0.0
        waveforms = shift_formants_and_pitch(waveforms, formants, pitch, highest)
    placed, durations = place(waveforms, lengths, config.speed, config.time_shift, pitch)

    n = _PADDED_FOR_ROOMS if config.reverb_probability else _PADDED
    spectra = torch.fft.rfft(placed, n=n)
    if config.random_eq_db or config.tilt_db:
        spectra *= random_response(placed, n // 2 + 1, config.random_eq_db, config.tilt_db)
    if config.noise_probability:
        noise = random_noise(spectra, durations, config)
    if config.reverb_probability:
        chosen = _chosen(pitch, config.reverb_probability)
        spectra *= reverberation(n, _uniform(pitch, config.rt60), _uniform(pitch, config.drr_db), chosen)
    if config.noise_probability:
        spectra += noise
    if config.band_probability:
        chosen = _chosen(pitch, config.band_probability)
        spectra *= band_limits(n, _uniform(pitch, config.band_low_hz), _uniform(pitch, config.band_high_hz), chosen)
    telephone = _chosen(pitch, config.telephone_probability) if config.telephone_probability else None
    if telephone is not None:
        spectra *= telephone_band(n, telephone)
    varied: Tensor = torch.fft.irfft(spectra, n=n)[:, :NUM_SAMPLES]

    if telephone is not None:
        varied = quantize(varied, telephone, _uniform(pitch, config.peak_dbfs), mu_law=True)
    if config.quantize_probability:
        chosen = _chosen(pitch, config.quantize_probability)
        varied = quantize(varied, chosen, _uniform(pitch, config.peak_dbfs), mu_law=False)
    return varied * torch.exp(_uniform(pitch, config.gain_db) * _NEPERS)[:, None]


def crop_edges(waveforms: Tensor, lengths: Tensor, probability: float, share: float) -> Tensor:
    """(B, T) clips, each `lengths` (B,) long and centred -> the same; some lose up to `share` of either end."""
    size = lengths.to(waveforms.dtype)
    begin = torch.div(NUM_SAMPLES - lengths, 2, rounding_mode="floor").to(waveforms.dtype)
    first, last = (_uniform(size, (0.0, share)) * size * _chosen(size, probability) for _ in range(2))
    time = torch.arange(NUM_SAMPLES, device=waveforms.device, dtype=waveforms.dtype)
    rising = ((time - (begin + first)[:, None]) / _EDGE).clamp_(0, 1)
    falling = (((begin + size - last)[:, None] - time) / _EDGE).clamp_(0, 1)
    return torch.where((first + last > 0)[:, None], waveforms * rising * falling, waveforms)


def place(
    waveforms: Tensor, lengths: Tensor, speed: tuple[float, float], shift: float, stretched: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Play every clip at a random speed (pitch moves with it) somewhere in its second -> clips (B, T), lengths (B,).

    `shift` 0 keeps clips centred; 1 allows every position that holds them whole. `waveforms` (B, S) may be longer than
    a second: each holds its clip in its middle, `stretched` (B,) times as long as `lengths`, and is played that much
    faster.
    """
    size = lengths.to(waveforms.dtype)
    factor = torch.exp(_uniform(size, (math.log(speed[0]), math.log(speed[1]))))
    durations = size / factor
    start = (NUM_SAMPLES - durations) * (0.5 + shift * (torch.rand_like(size) - 0.5))
    # Where the clip begins in its second, and from there in a longer buffer with the same middle.
    begin = torch.div(NUM_SAMPLES - lengths, 2, rounding_mode="floor").to(waveforms.dtype)
    begin = (begin - NUM_SAMPLES / 2) * stretched + waveforms.shape[1] / 2
    factor = factor * stretched
    time = torch.arange(NUM_SAMPLES, device=waveforms.device, dtype=waveforms.dtype)
    offset = begin - start * factor
    rows = len(waveforms) if waveforms.is_cuda else _ROWS
    placed = [
        _cubic(clips, torch.addcmul(first[:, None], time, step[:, None]))  # positions (rows, T)
        for clips, first, step in zip(*(torch.split(part, rows) for part in (waveforms, offset, factor)), strict=True)
    ]
    return torch.cat(placed), durations


def _cubic(waveforms: Tensor, positions: Tensor) -> Tensor:
    """Interpolate (B, S) samples at `positions` (B, T), which is overwritten: Catmull and Rom's cubic (1974).

    Linear interpolation would halve what lies at 3 kHz. One index serves all four taps, which read shifted views.
    """
    size = waveforms.shape[1]
    padded = functional.pad(waveforms, (2, 3))
    index = positions.clamp_(-1, size).add_(1).long()  # of the sample before, in `padded`
    t = positions.frac_()
    before, here, after, later = (padded[:, tap : tap + size + 2].gather(1, index) for tap in range(4))
    del index
    cube = (here - after).mul_(3).add_(later).sub_(before)
    square = before.mul(2).sub_(here, alpha=5).add_(after, alpha=4).sub_(later)
    slope = after.sub_(before)
    curve = cube.mul_(t).add_(square).mul_(t).add_(slope).mul_(t)
    return here.add_(curve, alpha=0.5)


def random_response(waveforms: Tensor, bins: int, random_eq_db: float, tilt_db: float = 0.0) -> Tensor:
    """(B, bins) gains of a smooth random equaliser, at most `random_eq_db` either way, and of a random tilt.

    The tilt is at most `tilt_db` an octave either way and leaves 1 kHz as it is.
    """
    b, device = len(waveforms), waveforms.device
    position = torch.linspace(0, _KNOTS - 1, bins, device=device)
    hats = (1 - (position - torch.arange(_KNOTS, device=device)[:, None]).abs()).clamp_min_(0)  # (knots, bins)
    curve = ((torch.rand(b, _KNOTS, device=device) * 2 - 1) * random_eq_db) @ hats  # dB
    if tilt_db:
        octaves = torch.log2(_hertz(bins, device) / _TILT_PIVOT).clamp_min_(-_TILT_OCTAVES)
        curve += _uniform(waveforms, (-tilt_db, tilt_db))[:, None] * octaves
    return curve.mul_(_NEPERS).exp_()


def random_noise(spectra: Tensor, durations: Tensor, config: AugmentationConfig) -> Tensor:
    """(B, bins) spectra of noise, each at a random ratio to the power of its clip's word while it lasts, or of nothing.

    Sounds of noise_dir or generated ones for a share of the clips, coloured noise for the others: its amplitude falls
    as f^-s with s from 0 (white) over 0.5 (pink) to 1 (brown).
    """
    b, bins, device = len(spectra), spectra.shape[1], spectra.device
    padded = 2 * (bins - 1)
    chosen = _chosen(durations, config.noise_probability)
    energy = torch.view_as_real(spectra).square().sum(dim=(1, 2))  # Parseval: a sum over bins is one over samples
    ratio = torch.exp(_uniform(durations, config.snr_db) * (2 * _NEPERS))
    audible = durations.clamp(1, NUM_SAMPLES)  # a word slowed beyond its second loses its ends
    power = energy / audible / ratio * chosen * (2 / padded)
    slopes = torch.linspace(0, 1, _SLOPES, device=device)[:, None]
    shapes = _hertz(bins, device).pow(-slopes)
    shapes = shapes / shapes.square().mean(dim=1, keepdim=True).sqrt()
    colour = torch.randint(_SLOPES, (b,), device=device)
    coloured = (power * (padded**2 / 2 / (2 * bins))).sqrt()
    share = config.procedural_ratio if config.noise_dir is None else config.recorded_ratio
    if share:
        varied = _chosen(durations, share)
        sounds = sample_noise(config.noise_dir, b, device)  # (B, T) of unit power
        if share >= 1.0:
            return torch.fft.rfft(sounds * power.sqrt()[:, None], n=padded)  # type: ignore[no-any-return]
        coloured = coloured * ~varied
    white = _white(device)
    first = torch.randint(len(white) - bins + 1, (b,), device=device)
    noise = white.unfold(0, bins, 1)[first].mul_(shapes[colour].mul_(coloured[:, None]))
    if share:
        noise += torch.fft.rfft(sounds * (power.sqrt() * varied)[:, None], n=padded)
    return noise


@lru_cache(maxsize=4)
def _white(device: torch.device) -> Tensor:
    """(S,) bins of white noise of power 2, always the same: drawing new ones takes longer than all filtering.

    Any stretch of it is a spectrum of white noise; there are half a million stretches.
    """
    pool = torch.randn(_POOL, 2, generator=torch.Generator().manual_seed(0))
    return torch.view_as_complex(pool).to(device)


def _hertz(bins: int, device: torch.device) -> Tensor:
    """(bins,) frequencies up to half the sample rate, none below _LOWEST."""
    return torch.linspace(0, SAMPLE_RATE / 2, bins, device=device).clamp_min_(_LOWEST)


def _uniform(like: Tensor, limits: tuple[float, float]) -> Tensor:
    """(B,) random numbers between two limits, on the device of a batch (B, ...)."""
    return limits[0] + (limits[1] - limits[0]) * torch.rand(len(like), device=like.device)


def _chosen(like: Tensor, probability: float) -> Tensor:
    """(B,) random booleans."""
    return torch.rand(len(like), device=like.device) < probability


def _sometimes(like: Tensor, probability: float, limits: tuple[float, float]) -> Tensor:
    """(B,) random factors between two limits, log-uniform, with a probability; one otherwise."""
    if not probability:
        return torch.ones_like(like)
    factors = torch.exp(_uniform(like, (math.log(limits[0]), math.log(limits[1]))))
    return torch.where(_chosen(like, probability), factors, 1.0)
