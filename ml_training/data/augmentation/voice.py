"""Formants and pitch moved independently, whole batches at a time.

B clips of S samples, F frames of a short-time transform, K its 129 bins, C cepstral coefficients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

WINDOW = 256  # samples, 32 ms
HOP = 64  # the phase vocoder wants windows that overlap four times
BINS = WINDOW // 2 + 1
CEPSTRA = 20  # of the envelope: what repeats every 2.5 ms or slower is pitch (400 Hz) and stays out
_KNEE = 0.85  # share of the band below which frequencies are warped proportionally
_FLOOR = 1e-8  # of the clip's largest power
_LARGEST_GAIN = 2.3  # nepers, 20 dB


def shift_formants_and_pitch(waveforms: Tensor, formants: Tensor, pitch: Tensor, highest_pitch: float) -> Tensor:
    """(B, T) clips -> (B, S): formants multiplied by `formants` (B,) and, once played `pitch` times faster, pitch too.

    To move the pitch, a clip is stretched about its middle to `pitch` (B,) times its length; playing it that much
    faster, as `place` does, restores its duration and moves the formants, which is compensated here. `highest_pitch`
    is 0 where no pitch is moved; S is enough for stretching that far. Clips with both factors at 1 stay as they are.
    """
    size = waveforms.shape[1]
    extra = HOP * math.ceil(size * max(0.0, highest_pitch - 1.0) / (2 * HOP))  # at either end
    others = functional.pad(waveforms, (extra, extra)) if extra else waveforms.clone()
    rows = torch.nonzero((formants != 1.0) | (pitch != 1.0))[:, 0]  # the work is as much as this
    if len(rows) == 0:
        return others
    formants, pitch = formants[rows], pitch[rows]
    window = torch.hann_window(WINDOW, device=waveforms.device)
    hop = HOP if highest_pitch else 2 * HOP
    spectra = torch.stft(waveforms[rows], WINDOW, hop, window=window, pad_mode="constant", return_complex=True)
    spectra *= envelope_gain(spectra.real.square() + spectra.imag.square(), formants / pitch)  # (B, K, F)
    if highest_pitch:
        spectra = stretch(spectra, pitch, (size + 2 * extra) // HOP + 1)
    shifted: Tensor = torch.istft(spectra, WINDOW, hop, window=window, length=size + 2 * extra)
    # Harmonics whose phases have drifted apart add up to less: each clip keeps its power.
    power = waveforms[rows].square().sum(dim=1) * (pitch if highest_pitch else 1.0)
    gain = (power / shifted.square().sum(dim=1).clamp_min(1e-12)).sqrt()
    others[rows] = shifted * gain[:, None]
    return others


def envelope_gain(power: Tensor, factor: Tensor) -> Tensor:
    """(B, K, F) gains that move the envelope of each frame of `power` (B, K, F) to `factor` (B,) times its frequencies.

    The envelope is the log spectrum without its fine structure, which is pitch: its first cepstral
    coefficients, weighted down towards the last.
    """
    device = power.device
    bins = torch.arange(BINS, device=device)
    quefrency = torch.arange(CEPSTRA, device=device)
    cosines = torch.cos(math.pi / (BINS - 1) * bins[:, None] * quefrency)  # (K, C)
    ends = torch.where((bins == 0) | (bins == BINS - 1), 0.5, 1.0)[:, None]
    taper = 0.5 + 0.5 * torch.cos(math.pi * quefrency / CEPSTRA)
    logs = (power + _FLOOR * power.amax(dim=(1, 2), keepdim=True) + 1e-20).log()
    cepstra = ((2.0 / (BINS - 1)) * ends * cosines).mT @ logs  # (B, C, F)
    warped = _bins_before(factor) * (math.pi / (BINS - 1))  # (B, K)
    moved = torch.cos(warped[:, :, None] * quefrency) - cosines  # (B, K, C)
    gain = torch.bmm(moved * taper, cepstra)  # of power
    return gain.mul_(0.5).clamp_(-_LARGEST_GAIN, _LARGEST_GAIN).exp_()


def _bins_before(factor: Tensor) -> Tensor:
    """(B, K) where each bin's envelope lay before `factor` (B,) moved it: piecewise linear, both ends stay."""
    bins = torch.arange(BINS, device=factor.device, dtype=factor.dtype)
    end = float(BINS - 1)
    factor = factor[:, None]
    knee = _KNEE * end * factor.clamp_max(1.0)  # of the warped axis
    above = knee / factor + (end - knee / factor) * (bins - knee) / (end - knee)
    return torch.where(bins <= knee, bins / factor, above)


def stretch(spectra: Tensor, factor: Tensor, frames: int) -> Tensor:
    """(B, K, F) -> (B, K, frames): each clip `factor` (B,) times as long about its middle, at the same frequencies.

    A phase vocoder (Flanagan and Golden, 1966; Laroche and Dolson, 1999): magnitudes between frames are
    interpolated, phases go on as fast as they did there. Frames are as far apart after as before, so
    what a phase gains from one to the next is a factor, and nothing has to be unwrapped.
    """
    b, k, f = spectra.shape
    step = torch.arange(frames, device=spectra.device, dtype=factor.dtype)
    place = (step - (frames - 1) / 2) / factor[:, None] + (f - 1) / 2  # (B, frames) in the old frames
    inside = (place > -1.0) & (place < f)
    left = place.floor().clamp(-1, f - 1)
    share = (place - left).clamp(0.0, 1.0)[:, None]
    index = (left.long() + 1)[:, None].expand(b, k, frames)
    padded = functional.pad(spectra, (1, 1))
    magnitude = padded.abs()
    phase = (padded + (magnitude == 0)).sgn()  # of modulus one, in silence too
    turn = (phase[:, :, 1:] * phase[:, :, :-1].conj()).gather(2, index[:, :, :-1])
    turn = torch.where(inside[:, None, :-1], turn, 1.0)
    phases = torch.cat([phase.gather(2, index[:, :, :1]), turn], dim=2).cumprod(dim=2)
    here, after = magnitude.gather(2, index), magnitude[:, :, 1:].gather(2, index)
    return phases * (torch.lerp(here, after, share) * inside[:, None])
