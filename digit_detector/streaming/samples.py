"""Arrays that a stream is fed, of any type and layout, as mono floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio import LOUDEST, MAX_RATE, MIN_RATE, Downmix, Floats, as_floats, check_array
from digit_detector.errors import NonFiniteAudioError, UndecodableAudioError

MAX_CHANNELS = 32
# 32-bit integers whose largest lies between these hold 16-bit values: speech in 16 bits reaches the lower one, and no
# converter resolves anything below the upper one in 32 bits (-96 dB).
_SPEECH_16_BITS, _FULL_16_BITS = 1 << 10, 1 << 15
_FRAME = 1024  # samples after which a stream's channels are compared again


def average_channels(samples: Floats) -> Floats:
    """(T, channels) -> their mean, (T,)."""
    mean: Floats = samples.mean(axis=1, dtype=np.float32)
    return mean


class StreamDownmix:
    """`Downmix` of a stream: each frame takes what the frames before it decide, however the stream is cut."""

    def __init__(self) -> None:
        self._reset(1)

    def _reset(self, channels: int) -> None:
        self._channels = channels
        self._mix = Downmix()
        self._channel: int | None = None  # the one to take; None for the mean
        self._frame: list[Floats] = []  # pieces of the frame that is not complete
        self._length = 0  # of those together

    def feed(self, samples: Floats) -> Floats:
        """The next (T, channels) -> (T,)."""
        if samples.shape[1] == 1:
            return samples[:, 0]
        if samples.shape[1] != self._channels:
            self._reset(samples.shape[1])
        mono = []
        while len(samples):
            piece, samples = samples[: _FRAME - self._length], samples[_FRAME - self._length :]
            mono.append(average_channels(piece) if self._channel is None else piece[:, self._channel])
            self._frame.append(piece.copy())
            self._length += len(piece)
            if self._length == _FRAME:
                self._mix.feed(np.concatenate(self._frame))
                self._channel = self._mix.loudest_if_cancelled()
                self._frame, self._length = [], 0
        return mono[0] if len(mono) == 1 else np.concatenate(mono)


class SampleReader:
    """Converts the pieces of one stream. Remembers their layout and scale."""

    def __init__(self) -> None:
        self._channels_first: bool | None = None
        self._largest = 0  # magnitude of a 32-bit integer until now
        self._integers = 0  # 32-bit samples in pieces that were not silent
        self._downmix = StreamDownmix()

    def read(self, samples: object, rate: object, channels_first: bool | None = None) -> tuple[Floats, int]:
        """`as_samples`; an array without an axis longer than MAX_CHANNELS has the layout of the pieces before it."""
        array = _as_array(samples)
        if array.ndim == 2 and array.size:
            if channels_first is None and max(array.shape) <= MAX_CHANNELS:
                channels_first = self._channels_first
            channels_first = has_channels_first(array.shape) if channels_first is None else channels_first
        wave, checked_rate = as_samples(array, rate, channels_first, self._downmix.feed)
        if array.ndim == 2 and array.size:
            self._channels_first = channels_first
        if array.dtype.kind == "i" and array.itemsize == 4 and array.size:
            self._largest = max(self._largest, int(array.max()), -int(array.min()))
            self._integers += len(wave) if wave.any() else 0
            if self._integers >= checked_rate:
                self.check_scale()
        return wave, checked_rate

    def check_scale(self) -> None:
        """Raise UndecodableAudioError for 32-bit integers that hold 16-bit values."""
        if _SPEECH_16_BITS <= self._largest <= _FULL_16_BITS:
            raise UndecodableAudioError(
                f"the samples are 32-bit integers, but none is larger than {self._largest}: they hold 16-bit values, "
                "96 dB too faint; pass samples.astype(np.int16)"
            )


def has_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape is (channels, samples), not (samples, channels).

    An axis longer than MAX_CHANNELS is time; without one, the longer axis is, if it comes first. Raises
    UndecodableAudioError for any other shape.
    """
    rows, columns = shape
    if min(shape) > MAX_CHANNELS:
        raise UndecodableAudioError(
            f"samples have shape {shape}: expected (samples, channels) with at most {MAX_CHANNELS} channels"
        )
    if rows <= columns <= MAX_CHANNELS and columns > 1:
        raise UndecodableAudioError(
            f"samples have shape {shape}, which may be {rows} samples of {columns} channels or {columns} samples of "
            f"{rows}: pass channels_first=False or True"
        )
    return columns > MAX_CHANNELS


def as_samples(
    samples: object, rate: object, channels_first: bool | None = None,
    downmix: Callable[[Floats], Floats] = average_channels,
) -> tuple[Floats, int]:  # fmt: skip
    """(T,), (T, channels) or (channels, T) floats around [-1, 1] or integers of full scale -> (T,) floats, the rate.

    `channels_first` None: `has_channels_first` decides; `downmix` maps (T, channels) to (T,). Raises
    UndecodableAudioError for an invalid rate, shape or type, NonFiniteAudioError for NaN or infinities.
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not MIN_RATE <= rate <= MAX_RATE:
        raise UndecodableAudioError(
            f"sample_rate: expected a whole number of Hz from {MIN_RATE} to {MAX_RATE}, got {rate!r}"
        )
    array = _as_array(samples)
    check_array(array)
    if array.size == 0:
        return np.zeros(0, dtype=np.float32), int(rate)
    if array.ndim == 2:
        array = array.T if (has_channels_first(array.shape) if channels_first is None else channels_first) else array
        if array.shape[1] > MAX_CHANNELS:
            raise UndecodableAudioError(f"samples have {array.shape[1]} channels: expected at most {MAX_CHANNELS}")
    wave = array if array.dtype == np.float32 else as_floats(array)
    if array.dtype.kind == "f" and not np.abs(wave).max() <= LOUDEST:  # also for NaN
        bad = np.flatnonzero(~(np.abs(wave) <= LOUDEST))[0]
        raise NonFiniteAudioError(
            f"sample {bad // (wave.size // len(wave))} of this piece is {wave.flat[bad]}: expected numbers around "
            "[-1, 1]; the piece was left out"
        )
    return (wave if wave.ndim == 1 else downmix(wave)), int(rate)


def _as_array(samples: object) -> NDArray[Any]:
    if isinstance(samples, (bytes, bytearray)):
        raise UndecodableAudioError(
            f"got {type(samples).__name__}: expected numbers, as of np.frombuffer(data, np.int16)"
        )
    try:
        return np.asarray(samples)
    except ValueError as error:  # lists of different lengths
        raise UndecodableAudioError(f"samples are no array: {error}") from error
