"""Any audio in, one second of speech out: mono float32 at 8 kHz, exactly 8,000 samples.

The only decoder: training, evaluation and inference use it. audio_files.py opens files.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio_files import (
    AUDIO_SUFFIXES,
    ENCODINGS,
    LOUDEST,
    MAX_CHANNELS,
    MAX_RATE,
    MIN_RATE,
    AudioFile,
    Blocks,
    Floats,
    Warn,
    as_floats,
    check_blocks,
    file_blocks,
    open_audio,
)
from digit_detector.errors import EmptyAudioError, NonFiniteAudioError, SilentAudioError, UndecodableAudioError

__all__ = [
    "AUDIO_SUFFIXES", "ENCODINGS", "FAINTEST", "LOUDEST", "MAX_CHANNELS", "MAX_RATE", "MAX_SECONDS", "MIN_RATE",
    "NUM_SAMPLES", "SAMPLE_RATE", "Blocks", "Downmix", "Floats", "Source", "Warn", "as_floats", "check_array", "decode",
    "decode_sound", "file_blocks", "is_silent", "list_audio_files", "load_audio", "load_clip", "mono_blocks",
    "pad_or_trim", "trim_silence",
]  # fmt: skip

SAMPLE_RATE = 8000  # Hz
NUM_SAMPLES = 8000  # one second
MAX_SECONDS = 3600  # of a recording

FAINTEST = 1e-6  # of full scale, peak to peak; 24 bits resolve 1e-7
_LARGE_OFFSET = 0.5  # of the standard deviation: more than in any clip of FSDD
_CANCELLED = 0.01  # power of the mean of the channels over that of the loudest, below which they cancel
_MAX_KEPT = 1 << 20  # samples at 8 kHz, 131 s, that are held; a longer recording is decoded twice
_FRAME = SAMPLE_RATE // 100  # 10 ms, the step in which a long clip is searched for its word
_STRETCH = 512 * _FRAME  # numpy adds up in buffers of 8,192 values: whole ones make sums independent of the parts

Source = str | PathLike[str] | bytes | bytearray | memoryview | BinaryIO | NDArray[Any]


def load_audio(source: Source, sample_rate: int | None = None, encoding: str | None = None) -> Floats:
    """The second of `source` with most speech: float32 (8000,), mono, 8 kHz; zeros if it is silent.

    Args:
        source: a path, the bytes of a file, a binary file object, or an array of samples: (T,), (T, channels) or
            (channels, T), floats around [-1, 1] or integers of full scale.
        sample_rate: of an array, or of sound without a header, in Hz; 8,000 by default.
        encoding: of sound without a header, one of ENCODINGS; by default from the suffix of the name (.ul, .al, .gsm).

    Memory does not grow with the length of a file. Raises an AudioError that says what is wrong with the audio.
    """
    return load_clip(source, sample_rate, encoding)[0]


def load_clip(source: Source, sample_rate: int | None = None, encoding: str | None = None) -> tuple[Floats, float]:
    """Like `load_audio`, with the length of the whole recording in seconds."""
    with _open(source, sample_rate, encoding) as recording:
        mix = Downmix()
        second, length = _load_second(recording, mix, None)
        if (channel := mix.loudest_if_cancelled()) is not None:
            second, length = _load_second(recording, mix, channel)
        return second, length / SAMPLE_RATE


def decode(
    source: Source, sample_rate: int | None = None, encoding: str | None = None, max_seconds: float = MAX_SECONDS
) -> Floats:
    """Like `load_audio`, in full length: float32 (T,), mono, 8 kHz."""
    with _open(source, sample_rate, encoding) as recording:
        mix = Downmix()
        parts = list(_resample(recording, mix, None, max_seconds))
        if (channel := mix.loudest_if_cancelled()) is not None:
            parts = list(_resample(recording, mix, channel, max_seconds))
        samples, statistics = np.concatenate([np.zeros(0, dtype=np.float32), *parts]), _Statistics()
        if len(samples):
            statistics.feed(samples)
        return statistics.clean(samples, recording.name)


def decode_sound(source: Source) -> Floats:
    """Like `decode`. Raises SilentAudioError for silence."""
    samples = decode(source)
    if is_silent(samples):
        name = source if isinstance(source, (str, PathLike)) else "the recording"
        raise SilentAudioError(f"{name} is digital silence ({samples.size} samples without a sound): record it again")
    return samples


def is_silent(samples: Floats) -> bool:
    """Whether the peak-to-peak amplitude of (T,) samples is below FAINTEST."""
    return bool(np.ptp(samples) < FAINTEST)


def mono_blocks(
    source: Any, encoding: str | None = None, rate: int | None = None, max_seconds: float | None = None,
    warn: Warn | None = None,
) -> Iterator[tuple[int, Floats]]:  # fmt: skip
    """Like `file_blocks`, with the channels mixed to one: (rate, (frames,))."""
    mix = Downmix()
    for block_rate, block in file_blocks(source, encoding, rate, max_seconds, warn):
        mono = mix.feed(block)
        channel = mix.loudest_if_cancelled()
        yield block_rate, mono if channel is None else block[:, channel]


def list_audio_files(folder: str | PathLike[str], _seen: set[str] | None = None) -> list[Path]:
    """Audio files in and below a folder, sorted, links followed once, hidden ones left out. Raises OSError."""
    found, seen = list[Path](), {os.path.realpath(folder)} if _seen is None else _seen
    for path in sorted(path for path in Path(folder).iterdir() if not path.name.startswith(".")):
        if path.is_dir() and (target := os.path.realpath(path)) not in seen:
            seen.add(target)
            found += list_audio_files(path, seen)
        elif path.suffix.lower() in AUDIO_SUFFIXES and path.is_file():
            found.append(path)
    return sorted(found)


def trim_silence(samples: Floats, silence_db: float) -> Floats:
    """A clip (T,) without its ends that are `silence_db` (negative) below its loudest 10 ms."""
    if len(samples) < _FRAME:
        return samples
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)
    energy = np.square(frames).sum(axis=1)
    loud = np.flatnonzero(energy >= energy.max() * 10 ** (silence_db / 10))
    return samples[max(0, loud[0] - 1) * _FRAME : (loud[-1] + 2) * _FRAME]


def pad_or_trim(samples: Floats) -> Floats:
    """Exactly one second, float32 (8000,), of a clip (T,): a copy.

    A shorter clip is centred between zeros: it starts at (8000 - T) // 2. Of a longer one the second with most speech
    is kept.
    """
    length = len(samples)
    if length > NUM_SAMPLES:
        search = _WordSearch()
        search.feed(samples)
        start = search.start()
        return np.array(samples[start : start + NUM_SAMPLES], dtype=np.float32)  # not a view, which keeps all of it
    second = np.zeros(NUM_SAMPLES, dtype=np.float32)
    offset = (NUM_SAMPLES - length) // 2
    second[offset : offset + length] = samples
    return second


def check_array(array: NDArray[Any]) -> None:
    """Raise UndecodableAudioError for an array that cannot be samples."""
    if array.ndim not in (1, 2):
        raise UndecodableAudioError(
            f"the array has shape {array.shape}: expected (samples,), (samples, channels) or (channels, samples)"
        )
    if array.dtype.kind in "iu" and array.itemsize == 8 and array.any():  # numpy's default for a list of integers
        raise UndecodableAudioError(
            "whole numbers of 64 bits have no full scale: pass them as np.array(samples, np.int16)"
        )


class Downmix:
    """The mean of all channels, unless they cancel (inverted polarity, or mid/side taken for left/right)."""

    def __init__(self) -> None:
        self._frames = 0
        self._sums = np.zeros(0)  # of the samples of each channel, and of their mean
        self._squares = np.zeros(0)

    def feed(self, block: Floats) -> Floats:
        """(frames, channels) -> their mean, (frames,)."""
        channels = block.shape[1]
        if channels == 1:
            return block[:, 0]
        mono: Floats = block.mean(axis=1, dtype=np.float32)
        if len(self._sums) != channels + 1:  # HE-AAC may begin with one channel and go on with two
            self._frames, self._sums, self._squares = 0, np.zeros(channels + 1), np.zeros(channels + 1)
        self._frames += len(block)
        for i, samples in enumerate([*block.T, mono]):
            exact = samples.astype(np.float64)
            self._sums[i] += exact.sum()
            self._squares[i] += exact @ exact
        return mono

    def loudest_if_cancelled(self) -> int | None:
        """The channel with the most power (without offsets) if the mean has next to none; None otherwise."""
        if not self._frames:
            return None
        power = self._squares / self._frames - np.square(self._sums / self._frames)
        loudest = int(power[:-1].argmax())
        return loudest if power[-1] < _CANCELLED * power[loudest] else None


class _Statistics:
    """Length, range and mean of (T,) samples that come in parts."""

    def __init__(self) -> None:
        self.count, self._sum, self._squares = 0, 0.0, 0.0
        self._low, self._high = math.inf, -math.inf

    def feed(self, part: Floats) -> None:
        exact = part.astype(np.float64)
        self.count += len(exact)
        self._sum += float(exact.sum())
        self._squares += float(exact @ exact)
        self._low, self._high = min(self._low, float(part.min())), max(self._high, float(part.max()))

    def clean(self, samples: Floats, name: str) -> Floats:
        """Some of the samples: zeros if all are silent, and without the mean (DC offset) if it is large.

        Padded with zeros, an offset would be two steps. Raises AudioError for no or too loud samples.
        """
        if not self.count:
            raise EmptyAudioError(f"{name} holds no samples: expected a recording of a spoken digit")
        if not (self._low >= -LOUDEST and self._high <= LOUDEST):  # the resampler overshoots
            raise NonFiniteAudioError(f"{name} is too loud: expected samples around [-1, 1], {LOUDEST:g} at most")
        if self._high - self._low < FAINTEST:
            return np.zeros_like(samples)
        mean = self._sum / self.count
        deviation = math.sqrt(max(0.0, self._squares / self.count - mean * mean))
        return samples - np.float32(mean) if abs(mean) > _LARGE_OFFSET * deviation else samples


class _WordSearch:
    """Finds the second with the largest sum of frame amplitudes above the background, in a clip that comes in parts.

    Amplitudes, not energies, so that one click does not outweigh a word; of the first difference, so that hum and
    offsets do not. Of equally good positions the middle one puts the word in the middle.
    """

    def __init__(self) -> None:
        self._amplitudes: list[NDArray[np.float64]] = []
        self._rest: Floats = np.zeros(0, dtype=np.float32)
        self._before: Floats | None = None  # the sample before those

    def feed(self, samples: Floats) -> None:
        """The next samples (T,) at 8 kHz."""
        samples = np.concatenate([self._rest, samples]) if len(self._rest) else samples
        whole = len(samples) // _STRETCH * _STRETCH
        self._measure(samples[:whole])
        self._rest = samples[whole:].copy()

    def _measure(self, samples: Floats) -> None:
        if len(samples) < _FRAME:
            return
        edges = np.diff(samples, prepend=samples[:1] if self._before is None else self._before)
        self._before = samples[-1:].copy()
        frames = edges[: len(edges) // _FRAME * _FRAME].reshape(-1, _FRAME)
        self._amplitudes.append(np.sqrt(np.mean(np.square(frames), axis=1, dtype=np.float64)))

    def start(self) -> int:
        """The first sample of that second, of more than 8,000 samples."""
        self._measure(self._rest)
        amplitude = np.concatenate(self._amplitudes)
        above = np.maximum(amplitude - 2.0 * np.percentile(amplitude, 15), 0.0)
        if not above.any():
            above = amplitude
        total = np.concatenate([[0.0], np.cumsum(above)])
        span = NUM_SAMPLES // _FRAME
        sums = total[span:] - total[:-span]
        best = np.flatnonzero(sums >= sums.max() * (1.0 - 1e-3))
        first_run = best[: np.argmax(np.diff(best, append=best[-1] + 2) > 1) + 1]
        return int(first_run[len(first_run) // 2]) * _FRAME


def _load_second(recording: AudioFile | _Array, mix: Downmix, channel: int | None) -> tuple[Floats, int]:
    """The second with the word, and the length of the recording in samples at 8 kHz."""
    statistics, search = _Statistics(), _WordSearch()
    parts: list[Floats] = []
    for part in _resample(recording, mix, channel, MAX_SECONDS):
        statistics.feed(part)
        parts.append(part)
        if statistics.count > _MAX_KEPT:
            for each in parts:
                search.feed(each)
            parts.clear()
    length = statistics.count
    if length <= _MAX_KEPT:
        samples = np.concatenate([np.zeros(0, dtype=np.float32), *parts])
        return pad_or_trim(statistics.clean(samples, recording.name)), length
    start, place = search.start(), 0
    for part in _resample(recording, Downmix(), channel, MAX_SECONDS):
        parts.append(part[max(0, start - place) : max(0, start + NUM_SAMPLES - place)])
        place += len(part)
        if place >= start + NUM_SAMPLES:
            return statistics.clean(np.concatenate(parts), recording.name), length
    raise UndecodableAudioError(f"{recording.name} became shorter while it was read: read it again")


def _resample(recording: AudioFile | _Array, mix: Downmix, channel: int | None, max_seconds: float) -> Iterator[Floats]:
    """Non-empty parts (T,) of a recording at 8 kHz: the mean of its channels, or one channel."""
    resampler: Any = None
    for rate, block in recording.blocks(max_seconds):
        mono = mix.feed(block) if channel is None else block[:, min(channel, block.shape[1] - 1)]
        if rate != SAMPLE_RATE:
            if resampler is None:
                import soxr

                resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
            mono = resampler.resample_chunk(np.ascontiguousarray(mono))
        if len(mono):
            yield mono
    if resampler is not None and len(rest := resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)):
        yield rest


@contextlib.contextmanager
def _open(source: Source, sample_rate: int | None, encoding: str | None) -> Iterator[AudioFile | _Array]:
    if not isinstance(source, np.ndarray):
        with open_audio(source, encoding, sample_rate) as file:
            yield file
    elif encoding is not None:
        raise UndecodableAudioError("encoding was given with an array of samples: pass it with bytes or files")
    else:
        yield _Array(source, SAMPLE_RATE if sample_rate is None else sample_rate)


class _Array:
    """Samples in memory, with the interface of AudioFile."""

    name = "the array"

    def __init__(self, array: NDArray[Any], rate: int) -> None:
        array = np.asarray(array)  # of a masked array the samples alone
        if array.size == 0:
            raise EmptyAudioError(f"the array of shape {array.shape} is empty: expected samples of a spoken digit")
        check_array(array)
        if array.ndim == 2 and array.shape[0] < array.shape[1]:
            array = array.T  # channels first: fewer channels than samples
        self._samples, self._rate = as_floats(array).reshape(len(array), -1), rate

    def blocks(self, max_seconds: float | None = None) -> Blocks:
        return check_blocks(iter([(self._rate, self._samples)]), self.name, max_seconds)
