"""The spotter: a causal convolutional network that classifies, every 16 ms, which digit has just ended.

N streams, T samples, F frames of HOP samples, M mel bands, C channels. A frame depends on no sound after its end, so a
stream may come in blocks: `Spotter.step` takes a block and the state after the last one, and returns the frames that
`Spotter.forward` returns for the whole stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from digit_detector.labels import LABELS
from digit_detector.spotter_file import HOP, KERNEL
from ml_training.pipelines.features import WINDOW, PowerSpectrogram, mel_filters

BANDS = 40
BACKGROUND = len(LABELS)  # the class of frames after which no digit has just ended

_STEM = (16, 24)  # channels of the two convolutions over time and frequency
_CHANNELS = 128
_DILATIONS = (1, 1, 2, 2, 4, 4)
_POWER_FLOOR = 1e-7  # added to the power of a band: the noise floor of 16 bits
_LOG_SCALE = 5.0  # nepers of power per unit of the network's input
assert WINDOW == 2 * HOP


class SpotterOutput(NamedTuple):
    """Outputs of F frames of N streams."""

    logits: Tensor  # (N, F, 11): ten digits and BACKGROUND
    log_durations: Tensor  # (N, F): log(1 + frames since the onset of the digit that has just ended)


class CausalConv(nn.Module):
    """A convolution over the last axis with `past` frames of left context; its state is its last `past` inputs."""

    def __init__(self, convolution: nn.Conv1d | nn.Conv2d, past: int) -> None:
        super().__init__()
        self.convolution = convolution
        self.past = past

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        padded = torch.cat([state, x], dim=-1)
        return self.convolution(padded), padded[..., padded.shape[-1] - self.past :]


class ResidualBlock(nn.Module):
    """Depthwise causal convolution and pointwise convolution, each with batch norm, added to the input."""

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        depthwise = nn.Conv1d(channels, channels, kernel, dilation=dilation, groups=channels, bias=False)
        self.depthwise = CausalConv(depthwise, (kernel - 1) * dilation)
        self.norm = nn.BatchNorm1d(channels)
        self.pointwise = nn.Sequential(nn.Conv1d(channels, channels, 1, bias=False), nn.BatchNorm1d(channels))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        inner, state = self.depthwise(x, state)
        return functional.relu(x + self.pointwise(functional.relu(self.norm(inner)))), state


class Spotter(nn.Module):
    """(N, T) samples at 8 kHz, T a multiple of HOP -> SpotterOutput of T / HOP frames, after silence."""

    filters: Tensor

    def __init__(self, channels: int = _CHANNELS, dilations: Sequence[int] = _DILATIONS) -> None:
        super().__init__()
        one, two = _STEM
        self.spectrogram = PowerSpectrogram()
        self.register_buffer("filters", mel_filters(BANDS), persistent=False)
        self.conv1 = CausalConv(nn.Conv2d(1, one, 3, stride=(2, 1), padding=(1, 0), bias=False), 2)
        self.norm1 = nn.BatchNorm2d(one)
        self.conv2 = CausalConv(nn.Conv2d(one, two, 3, stride=(2, 1), padding=(1, 0), bias=False), 2)
        self.norm2 = nn.BatchNorm2d(two)
        self.projection = nn.Sequential(
            nn.Conv1d(two * (BANDS // 4), channels, 1, bias=False), nn.BatchNorm1d(channels), nn.ReLU()
        )
        self.blocks = nn.ModuleList(ResidualBlock(channels, KERNEL, dilation) for dilation in dilations)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Conv1d(channels, len(LABELS) + 2, 1)
        self.dilations = tuple(dilations)
        blocks = [(channels, (KERNEL - 1) * dilation) for dilation in dilations]
        self._shapes: list[tuple[int, ...]] = [(WINDOW - HOP,), (1, BANDS, 2), (one, BANDS // 2, 2), *blocks]
        self._sizes = [math.prod(shape) for shape in self._shapes]

    @property
    def stem_state_size(self) -> int:
        """Length of the state of all layers before the blocks; it is the first part of a stream's state."""
        return sum(self._sizes[: -len(self.blocks)])

    def initial_state(self, streams: int) -> Tensor:
        """(N, S) state of streams at their beginning."""
        return torch.zeros(streams, sum(self._sizes))

    def forward(self, sound: Tensor, masked_bands: int = 0) -> SpotterOutput:
        """`masked_bands` is the largest number of mel bands that SpecAugment masks in half of the streams."""
        return self.step(sound, self.initial_state(len(sound)).to(sound), masked_bands)[0]

    def step(self, sound: Tensor, state: Tensor, masked_bands: int = 0) -> tuple[SpotterOutput, Tensor]:
        """(N, T) next samples and the (N, S) state before them -> outputs of their frames, and the state after them."""
        tail, state1, state2, *block_states = self.unpack_state(state)
        features, tail = self.log_mel(sound, tail)
        if masked_bands:
            features = mask_bands(features, masked_bands)
        x, state1, state2 = self.stem(features, state1, state2)
        x = self.projection(x)
        states = [tail, state1, state2]
        for block, block_state in zip(self.blocks, block_states, strict=True):
            x, after = block(x, block_state)
            states.append(after)
        outputs = self.head(self.dropout(x)).transpose(1, 2)
        output = SpotterOutput(outputs[..., : BACKGROUND + 1], outputs[..., BACKGROUND + 1])
        return output, torch.cat([each.flatten(1) for each in states], dim=1)

    def unpack_state(self, state: Tensor) -> list[Tensor]:
        """The states of the layers from (N, S), or from (N, stem_state_size) those before the blocks."""
        layers = -len(self.blocks) if state.shape[1] == self.stem_state_size else None
        parts = torch.split(state, self._sizes[:layers], dim=1)
        return [torch.unflatten(part, 1, shape) for part, shape in zip(parts, self._shapes[:layers], strict=True)]

    def log_mel(self, sound: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T) samples after (N, WINDOW - HOP) -> (N, M, F) log-mel spectrogram, 0 for silence, and the new tail."""
        padded = torch.cat([tail, sound], dim=1)
        hops = torch.unflatten(padded, 1, (-1, HOP))
        frames = torch.cat([hops[:, :-1], hops[:, 1:]], dim=2)  # (N, F, WINDOW)
        power = self.spectrogram.of_frames(frames)  # (N, F, K)
        bands = torch.matmul(power, self.filters.T).transpose(1, 2)
        return (bands / _POWER_FLOOR + 1.0).log() / _LOG_SCALE, padded[:, padded.shape[1] - (WINDOW - HOP) :]

    def stem(self, features: Tensor, state1: Tensor, state2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, M, F) -> (N, D, F) of two convolutions over time and frequency, and their states."""
        x, state1 = self.conv1(features[:, None], state1)
        x, state2 = self.conv2(functional.relu(self.norm1(x)), state2)
        return functional.relu(self.norm2(x)).flatten(1, 2), state1, state2


def mask_bands(features: Tensor, most: int) -> Tensor:
    """(N, M, F) with up to `most` bands of half of the rows replaced by the row's mean (SpecAugment, Park 2019)."""
    count = len(features)
    width = torch.randint(0, most + 1, (count, 1)) * (torch.rand(count, 1) < 0.5)
    first = (torch.rand(count, 1) * (BANDS - width)).long()
    band = torch.arange(BANDS)
    masked = (band >= first) & (band < first + width)
    return torch.where(masked[:, :, None], features.mean(dim=(1, 2), keepdim=True), features)
