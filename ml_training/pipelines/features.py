"""Log-mel, MFCC and deltas as torch modules that live inside the exported graph.

B batch, T samples (8,000), F frames (51), M mel bands, K DFT bins (129), C cepstra.
All agree with librosa (center=True, constant padding, Slaney mel, power in dB) on the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE

WINDOW = 256  # samples under the Hann window (32 ms), and points of the transform
HOP = 160  # samples between frames (20 ms)
FRAMES = NUM_SAMPLES // HOP + 1
BINS = WINDOW // 2 + 1
AMIN = 1e-10  # smallest power, as in librosa.power_to_db
DELTA_WIDTH = 9  # frames of the Savitzky-Golay fit, as in librosa.feature.delta


def full_precision(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Keep a module's forward in float32 under autocast: powers span more than 16 bits hold."""

    @wraps(forward)
    def wrapped(module: Any, inputs: Tensor) -> Tensor:
        kind = inputs.device.type
        if not torch.is_autocast_enabled(kind):
            return forward(module, inputs)
        with torch.autocast(kind, enabled=False):
            return forward(module, inputs.float())

    return wrapped


def normalise_level(waveforms: Tensor) -> Tensor:
    """(B, T) -> (B, T) without offset and with a largest amplitude of one.

    Recordings differ by 20 dB and more, which features must ignore.
    """
    centred = waveforms - waveforms.mean(dim=1, keepdim=True)
    return centred / centred.abs().amax(dim=1, keepdim=True).clamp_min(1e-6)


def hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above (Auditory Toolbox, 1998)."""
    linear = hz * 3.0 / 200.0
    return np.where(hz < 1000.0, linear, 15.0 + np.log(np.maximum(hz, 1e-9) / 1000.0) * 27.0 / math.log(6.4))


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `hz_to_mel`."""
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) * math.log(6.4) / 27.0))


def mel_filters(bands: int, warp: float = 1.0) -> Tensor:
    """(M, K) triangular filters of unit area (Slaney's norm) from 0 Hz to half the sample rate.

    `warp` moves the filters to warp times their frequencies, piecewise linearly so that the band's
    end stays in place: vocal tract length perturbation (Jaitly and Hinton, 2013).
    """
    nyquist = SAMPLE_RATE / 2
    edges = mel_to_hz(np.linspace(0.0, hz_to_mel(np.array(nyquist)), bands + 2))
    knee = 0.85 * nyquist * min(1.0, 1.0 / warp)
    above = warp * knee + (nyquist - warp * knee) * (edges - knee) / (nyquist - knee)
    edges = np.where(edges <= knee, edges * warp, above)
    bins = np.linspace(0.0, nyquist, BINS)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(filters.astype(np.float32))


class PowerSpectrogram(nn.Module):
    """(B, T) -> (B, K, F): |DFT|^2 of Hann-windowed frames, as two matrix products.

    Relative to the middle of its frame, a cosine is even and a sine odd. So a frame is first folded around its middle
    into sums and differences, which halves the tables in a model's file and the multiplications. The window's first
    sample is zero, which leaves 127 pairs and the sample in the middle.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self) -> None:
        super().__init__()
        half = WINDOW // 2
        away = torch.arange(half, dtype=torch.float64)  # samples from the middle
        angle = 2 * math.pi * away[:, None] * torch.arange(BINS, dtype=torch.float64) / WINDOW
        hann = 0.5 + 0.5 * torch.cos(2 * math.pi * away[:, None] / WINDOW)
        self.register_buffer("cosines", (hann * torch.cos(angle)).float(), persistent=False)  # (128, K)
        self.register_buffer("sines", (hann * torch.sin(angle))[1:].float(), persistent=False)  # (127, K)

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.of_frames(split_frames(waveforms)).transpose(1, 2)

    def of_frames(self, frames: Tensor) -> Tensor:
        """(B, F, WINDOW) -> (B, F, K)."""
        half = WINDOW // 2
        later, earlier = frames[:, :, half + 1 :], frames[:, :, 1:half].flip(2)
        even = torch.cat([frames[:, :, half : half + 1], later + earlier], dim=2)  # (B, F, 128)
        return torch.matmul(even, self.cosines).square() + torch.matmul(later - earlier, self.sines).square()


def split_frames(waveforms: Tensor) -> Tensor:
    """(B, T) -> (B, F, WINDOW): frames centred on every HOP-th sample, silence beyond the ends.

    A frame is a hop and the beginning of the next one.
    """
    padded = functional.pad(waveforms, (WINDOW // 2, (FRAMES + 1) * HOP - NUM_SAMPLES - WINDOW // 2))
    hops = torch.unflatten(padded, 1, (FRAMES + 1, HOP))
    return torch.cat([hops[:, :-1], hops[:, 1:, : WINDOW - HOP]], dim=2)


class LogMel(nn.Module):
    """(B, T) -> (B, M, F) in dB.

    With `warps` (two limits of the vocal-tract factor) and in training mode every clip gets one of
    17 filter banks at random.
    """

    filters: Tensor
    warped: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.bands = bands
        self.spectrogram = PowerSpectrogram()
        self.register_buffer("filters", mel_filters(bands), persistent=False)
        self.register_buffer("warped", torch.zeros(0, bands, BINS), persistent=False)

    def warp_between(self, low: float, high: float, banks: int = 17) -> None:
        """Choose the warping of training mode; equal limits turn it off."""
        factors = np.geomspace(low, high, banks).tolist() if low < high else []
        banked = [mel_filters(self.bands, factor) for factor in factors]
        self.warped = torch.stack(banked).to(self.filters) if banked else self.warped[:0]

    @full_precision
    def forward(self, waveforms: Tensor) -> Tensor:
        return power_to_db(self.power(waveforms))

    def power(self, waveforms: Tensor) -> Tensor:
        """(B, T) -> (B, M, F), before the logarithm."""
        power = self.spectrogram(waveforms)  # (B, K, F)
        if self.training and len(self.warped):
            which = torch.randint(len(self.warped), (len(power),), device=power.device)
            return torch.bmm(self.warped[which], power)
        return torch.matmul(self.filters, power)

    def power_by_banks(self, waveforms: Tensor, banks: Tensor) -> Tensor:
        """(B, T) through V filter banks (V, M, K) -> (B, V, M, F), of one spectrogram, before the logarithm."""
        mel = torch.matmul(banks.flatten(0, 1), self.spectrogram(waveforms))
        return torch.unflatten(mel, 1, (len(banks), self.bands))


def power_to_db(power: Tensor) -> Tensor:
    """Powers in dB, as librosa.power_to_db with top_db=None."""
    return 10.0 / math.log(10.0) * power.clamp_min(AMIN).log()


def clamp_below_peak(log_mel: Tensor, range_db: float) -> Tensor:
    """(B, M, F) in dB -> the same relative to the clip's peak, no lower than -range_db.

    The floor makes digital silence and a quiet room look alike.
    """
    relative = log_mel - log_mel.amax(dim=(1, 2), keepdim=True)
    return relative.clamp_min(-range_db)


def dct_matrix(bands: int, cepstra: int) -> Tensor:
    """(C, M) orthonormal DCT-II."""
    band = torch.arange(bands, dtype=torch.float64)
    row = torch.arange(cepstra, dtype=torch.float64)[:, None]
    matrix = torch.cos(math.pi / bands * (band + 0.5) * row) * math.sqrt(2.0 / bands)
    matrix[0] /= math.sqrt(2.0)
    return matrix.float()


class Deltas(nn.Module):
    """(B, C, F) -> first and second derivative over time, each (B, C, F), per frame.

    Slope and curvature of a line and a parabola fitted to nine frames (Savitzky and Golay, 1964);
    the first and last four frames take the fit of the nearest full window.
    """

    kernels: Tensor

    def __init__(self) -> None:
        super().__init__()
        half = DELTA_WIDTH // 2
        time = torch.arange(-half, half + 1, dtype=torch.float64)
        slope = time / time.square().sum()
        bent = time.square() - time.square().mean()
        curvature = 2.0 * bent / bent.square().sum()
        self.register_buffer("kernels", torch.stack([slope, curvature]).float()[:, None, :], persistent=False)

    def forward(self, cepstra: Tensor) -> tuple[Tensor, Tensor]:
        b, c, f = cepstra.shape
        half = DELTA_WIDTH // 2
        fitted = functional.conv1d(cepstra.reshape(b * c, 1, f), self.kernels)  # (BC, 2, F - 8)
        fitted = functional.pad(fitted, (half, half), mode="replicate").reshape(b, c, 2, f)
        return fitted[:, :, 0], fitted[:, :, 1]


class SpecAugment(nn.Module):
    """Hide random bands and frames of (B, M, F) spectrograms in training mode (Park et al., 2019).

    Two stripes along each axis, each up to `bands` or `frames` wide, take the clip's smallest value.
    """

    def __init__(self, bands: int, frames: int) -> None:
        super().__init__()
        self.widest = (bands, frames)
        self.enabled = False

    def forward(self, spectrograms: Tensor) -> Tensor:
        if not (self.training and self.enabled):
            return spectrograms
        b, m, f = spectrograms.shape
        hidden = spectrograms.new_zeros((b, m, f), dtype=torch.bool)
        for _ in range(2):
            hidden |= self._stripe(b, m, self.widest[0], spectrograms)[:, :, None]
            hidden |= self._stripe(b, f, self.widest[1], spectrograms)[:, None, :]
        return torch.where(hidden, spectrograms.amin(dim=(1, 2), keepdim=True), spectrograms)

    @staticmethod
    def _stripe(count: int, size: int, widest: int, like: Tensor) -> Tensor:
        """(count, size) booleans: one run of True in each row."""
        width = torch.rand(count, 1, device=like.device) * widest
        start = torch.rand(count, 1, device=like.device) * (size - width)
        place = torch.arange(size, device=like.device)
        return (place >= start) & (place < start + width)
