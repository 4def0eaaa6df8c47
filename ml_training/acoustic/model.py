"""The acoustic model: causal convolutions and GRUs from log-mel frames to posteriors of tokens, every 32 ms.

N streams, T samples, F mel frames of HOP samples, M mel bands, B = F / 2 blocks, C channels. An output depends on no
sound after its block, so a stream may come in blocks: `AcousticModel.step` takes any number of blocks and the state
after the last ones, and returns what `AcousticModel.forward` returns for the whole stream. How long after a word its
token comes is learned: CTC (Graves et al. 2006) does not say where in an utterance a token lies.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from digit_detector.acoustic_file import BLOCK, TOKENS
from ml_training.pipelines.features import WINDOW, PowerSpectrogram, mel_filters

BANDS = 40
HOP = 128
_STEM, _CHANNELS = 112, 128
_POWER_FLOOR = 1e-7  # added to the power of a band: the noise floor of 16 bits
_LOG_SCALE = 5.0  # nepers of power per unit of the network's input
_WARPS = torch.linspace(0.82, 1.24, 15)  # vocal tract factors of training; the middle one is near 1
assert WINDOW == 2 * HOP == BLOCK


class AcousticOutput(NamedTuple):
    """Outputs of B blocks of N streams."""

    logits: Tensor  # (N, B, 15) of TOKENS
    speech: Tensor  # (N, B) logit of speech in the block


class AcousticModel(nn.Module):
    """(N, T) samples at 8 kHz, T a multiple of BLOCK -> AcousticOutput, after silence."""

    filters: Tensor
    warped: Tensor

    def __init__(self, channels: int = _CHANNELS, dropout: float = 0.1) -> None:
        super().__init__()
        self.spectrogram = PowerSpectrogram()
        self.register_buffer("filters", mel_filters(BANDS), persistent=False)
        banks = [mel_filters(BANDS, warp) for warp in _WARPS.tolist()]
        self.register_buffer("warped", torch.stack(banks), persistent=False)
        self.input_norm = nn.BatchNorm1d(BANDS)
        self.conv1 = nn.Conv1d(BANDS, _STEM, 5, stride=2, bias=False)
        self.norm1 = nn.BatchNorm1d(_STEM)
        self.conv2 = nn.Conv1d(_STEM, channels, 5, bias=False)
        self.norm2 = nn.BatchNorm1d(channels)
        self.gru1 = nn.GRU(channels, channels, batch_first=True)
        self.conv3 = nn.Conv1d(channels, channels, 3, bias=False)
        self.norm3 = nn.BatchNorm1d(channels)
        self.gru2 = nn.GRU(channels, channels, batch_first=True)
        self.head = nn.Linear(channels, len(TOKENS) + 1)
        self.dropout = nn.Dropout(dropout)
        # tail of samples; mel frames before conv1, inputs before conv2 and conv3; both hidden states
        self.shapes = [(HOP,), (BANDS, 3), (_STEM, 4), (channels,), (channels, 2), (channels,)]
        self.sizes = [math.prod(shape) for shape in self.shapes]

    def initial_state(self, streams: int) -> Tensor:
        """(N, S) state of streams at their beginning."""
        return torch.zeros(streams, sum(self.sizes))

    def forward(self, sound: Tensor, warp: bool = False, mask: tuple[int, int] = (0, 0)) -> AcousticOutput:
        """`warp` gives every stream a random vocal tract; `mask` is the most bands and frames SpecAugment masks."""
        return self.step(sound, self.initial_state(len(sound)).to(sound), warp, mask)[0]

    def step(
        self, sound: Tensor, state: Tensor, warp: bool = False, mask: tuple[int, int] = (0, 0)
    ) -> tuple[AcousticOutput, Tensor]:
        """(N, T) next samples and the (N, S) state before them -> their outputs, and the state after them."""
        tail, mel, hidden1, gru1, hidden3, gru2 = self.unpack_state(state)
        features, tail = self.log_mel(sound, tail, warp)
        features = self.input_norm(features)
        if any(mask):
            features = mask_features(features, *mask)
        x, mel = _convolve(self.conv1, features, mel)
        x, hidden1 = _convolve(self.conv2, functional.relu(self.norm1(x)), hidden1)
        x = self.dropout(functional.relu(self.norm2(x)).transpose(1, 2))
        y, last1 = self.gru1(x, gru1[None])
        x = (x + y).transpose(1, 2)
        y, hidden3 = _convolve(self.conv3, self.dropout(x), hidden3)
        x = (x + functional.relu(self.norm3(y))).transpose(1, 2)
        y, last2 = self.gru2(x, gru2[None])
        outputs = self.head(self.dropout(x + y))
        states = (tail, mel, hidden1, last1[0], hidden3, last2[0])
        return AcousticOutput(outputs[..., :-1], outputs[..., -1]), torch.cat([s.flatten(1) for s in states], dim=1)

    def unpack_state(self, state: Tensor) -> list[Tensor]:
        """The parts of an (N, S) state."""
        parts = torch.split(state, self.sizes, dim=1)
        return [torch.unflatten(part, 1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def log_mel(self, sound: Tensor, tail: Tensor, warp: bool = False) -> tuple[Tensor, Tensor]:
        """(N, T) samples after (N, HOP) -> (N, M, F) log-mel spectrogram, 0 for silence, and the new tail."""
        padded = torch.cat([tail, sound], dim=1)
        hops = torch.unflatten(padded, 1, (-1, HOP))
        power = self.spectrogram.of_frames(torch.cat([hops[:, :-1], hops[:, 1:]], dim=2))  # (N, F, K)
        filters = self.warped[torch.randint(len(self.warped), (len(sound),))] if warp else self.filters
        bands = torch.matmul(power, filters.transpose(-1, -2)).transpose(1, 2)
        return (bands / _POWER_FLOOR + 1.0).log() / _LOG_SCALE, padded[:, padded.shape[1] - HOP :]


def _convolve(layer: nn.Conv1d, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """A causal convolution over (N, C, F) after the last inputs (N, C, P), and the inputs to keep."""
    padded = torch.cat([before, x], dim=2)
    return layer(padded), padded[:, :, padded.shape[2] - before.shape[2] :]


def mask_features(features: Tensor, bands: int, frames: int) -> Tensor:
    """(N, M, F) with up to `bands` bands and two stretches of `frames` frames set to 0 (SpecAugment, Park 2019)."""
    count, rows, columns = features.shape
    masked = torch.zeros_like(features, dtype=torch.bool)
    for most, size, axis in ((bands, rows, 1), (frames, columns, 2), (frames, columns, 2)):
        width = torch.randint(0, most + 1, (count, 1)) * (torch.rand(count, 1) < 0.6)
        first = (torch.rand(count, 1) * (size - width)).long()
        index = torch.arange(size)
        masked |= ((index >= first) & (index < first + width)).unsqueeze(3 - axis)
    return features.masked_fill(masked, 0.0)
