"""The spotter: a causal network from sound to, every 16 ms, which digit has just ended if any.

N streams, T samples, F frames of HOP samples, M mel bands, C channels. What a frame is told depends on the sound
before its end alone, so sound may come in pieces: `Spotter.step` takes one block and the state the last one left, and
answers as `forward` does for the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from digit_detector.audio import SAMPLE_RATE
from digit_detector.labels import LABELS
from digit_detector.spotter_file import HOP, KERNEL
from ml_training.pipelines.features import WINDOW, PowerSpectrogram, mel_filters

BANDS = 40
NOTHING = len(LABELS)  # the class of a frame at which no digit has just ended
FLOOR = 1e-7  # added to the power of a band: sound of 16 bits has no less

_FRONT = (16, 24)  # channels of the convolutions over time and frequency
_CHANNELS = 128
_DILATIONS = (1, 1, 2, 2, 4, 4)
_UNIT = 5.0  # nepers of power that count as one at the network's entrance
assert WINDOW == 2 * HOP


class Ended(NamedTuple):
    """What is said of F frames of N streams."""

    logits: Tensor  # (N, F, 11): ten digits and NOTHING
    frames: Tensor  # (N, F): how many frames ago the digit that has just ended began; log(1 + frames)


class _Delayed(nn.Module):
    """A convolution over the last axis that sees `past` frames before each; its state is the input's last `past`."""

    def __init__(self, convolution: nn.Conv1d | nn.Conv2d, past: int) -> None:
        super().__init__()
        self.convolution = convolution
        self.past = past

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        whole = torch.cat([before, x], dim=-1)
        return self.convolution(whole), whole[..., whole.shape[-1] - self.past :]


class Block(nn.Module):
    """Each channel over time, all channels at a time, and what came in on top."""

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        over_time = nn.Conv1d(channels, channels, kernel, dilation=dilation, groups=channels, bias=False)
        self.over_time = _Delayed(over_time, (kernel - 1) * dilation)
        self.norm = nn.BatchNorm1d(channels)
        self.across = nn.Sequential(nn.Conv1d(channels, channels, 1, bias=False), nn.BatchNorm1d(channels))

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        inner, state = self.over_time(x, before)
        return functional.relu(x + self.across(functional.relu(self.norm(inner)))), state


class Spotter(nn.Module):
    """(N, T) sound, T a multiple of HOP -> what is said of its T / HOP frames; before it there was silence."""

    filters: Tensor

    def __init__(self, channels: int = _CHANNELS, dilations: Sequence[int] = _DILATIONS) -> None:
        super().__init__()
        one, two = _FRONT
        self.spectrogram = PowerSpectrogram()
        self.register_buffer("filters", mel_filters(BANDS), persistent=False)
        self.first = _Delayed(nn.Conv2d(1, one, 3, stride=(2, 1), padding=(1, 0), bias=False), 2)
        self.first_norm = nn.BatchNorm2d(one)
        self.second = _Delayed(nn.Conv2d(one, two, 3, stride=(2, 1), padding=(1, 0), bias=False), 2)
        self.second_norm = nn.BatchNorm2d(two)
        self.entrance = nn.Sequential(
            nn.Conv1d(two * (BANDS // 4), channels, 1, bias=False), nn.BatchNorm1d(channels), nn.ReLU()
        )
        self.blocks = nn.ModuleList(Block(channels, KERNEL, dilation) for dilation in dilations)
        self.dropout = nn.Dropout(0.1)
        self.exit = nn.Conv1d(channels, len(LABELS) + 2, 1)
        self.dilations = tuple(dilations)
        self._pasts = [(KERNEL - 1) * dilation for dilation in dilations]
        inner = [(channels, past) for past in self._pasts]
        self._shapes: list[tuple[int, ...]] = [(WINDOW - HOP,), (1, BANDS, 2), (one, BANDS // 2, 2), *inner]
        self._sizes = [math.prod(shape) for shape in self._shapes]

    @property
    def state_size(self) -> int:
        """Numbers that a stream's state is made of."""
        return sum(self._sizes)

    @property
    def front_size(self) -> int:
        """How many of them, the first, are of what lies before the blocks."""
        return sum(self._sizes[: -len(self._pasts)])

    @property
    def seconds(self) -> float:
        """How far back the answer to a frame reaches."""
        return ((4 + sum(self._pasts)) * HOP + WINDOW) / SAMPLE_RATE

    def quiet(self, streams: int) -> Tensor:
        """(N, state_size): the state of streams of which nothing was heard yet."""
        return torch.zeros(streams, self.state_size)

    def forward(self, sound: Tensor) -> Ended:
        return self.step(sound, self.quiet(len(sound)).to(sound))[0]

    def masked(self, sound: Tensor, bands: int) -> Ended:
        """The same of training: in half of the streams some bands, `bands` at most, are silenced (SpecAugment)."""
        count = len(sound)
        befores = self.parts_of(self.quiet(count).to(sound))
        features, tail = self.features(sound, befores[0])
        width = torch.randint(0, bands + 1, (count, 1)) * (torch.rand(count, 1) < 0.5)
        first = (torch.rand(count, 1) * (BANDS - width)).long()
        band = torch.arange(BANDS)
        hidden = (band >= first) & (band < first + width)
        features = torch.where(hidden[:, :, None], features.mean(dim=(1, 2), keepdim=True), features)
        return self.answer(features, befores[1:], tail)[0]

    def step(self, sound: Tensor, state: Tensor) -> tuple[Ended, Tensor]:
        """(N, T) more sound after the state (N, state_size) -> its frames, and the state after it."""
        befores = self.parts_of(state)
        features, tail = self.features(sound, befores[0])
        return self.answer(features, befores[1:], tail)

    def parts_of(self, state: Tensor) -> list[Tensor]:
        """The states of the layers that a state is made of: (N, state_size), or (N, front_size) without the blocks'."""
        layers = -len(self._pasts) if state.shape[1] == self.front_size else None
        parts = torch.split(state, self._sizes[:layers], dim=1)
        return [torch.unflatten(part, 1, shape) for part, shape in zip(parts, self._shapes[:layers], strict=True)]

    def features(self, sound: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T) sound after (N, WINDOW - HOP) samples -> (N, M, F) levels of bands, and its own last samples."""
        whole = torch.cat([before, sound], dim=1)
        hops = torch.unflatten(whole, 1, (-1, HOP))
        frames = torch.cat([hops[:, :-1], hops[:, 1:]], dim=2)  # (N, F, WINDOW)
        power = self.spectrogram.of_frames(frames)  # (N, F, K)
        bands = torch.matmul(power, self.filters.T).transpose(1, 2)
        return self._entering(bands), whole[:, whole.shape[1] - (WINDOW - HOP) :]

    @staticmethod
    def _entering(bands: Tensor) -> Tensor:
        return (bands / FLOOR + 1.0).log() / _UNIT  # silence is 0, and so is the state before any sound

    def front(self, features: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, M, F) after two states -> (N, D, F) of two convolutions over time and frequency, and the states after."""
        x, first = self.first(features[:, None], first)
        x, second = self.second(functional.relu(self.first_norm(x)), second)
        return functional.relu(self.second_norm(x)).flatten(1, 2), first, second

    def answer(self, features: Tensor, befores: Sequence[Tensor], tail: Tensor) -> tuple[Ended, Tensor]:
        x, first, second = self.front(features, *befores[:2])
        x = self.entrance(x)
        states = [tail, first, second]
        for block, before in zip(self.blocks, befores[2:], strict=True):
            x, state = block(x, before)
            states.append(state)
        said = self.exit(self.dropout(x)).transpose(1, 2)
        after = torch.cat([state.flatten(1) for state in states], dim=1)
        return Ended(said[..., : NOTHING + 1], said[..., NOTHING + 1]), after
