"""Any audio in, one second of speech out: mono float32 at 8 kHz, 8,000 samples. Files are opened by audio_files.py."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio_files import (
    AUDIO_SUFFIXES,
    ENCODINGS,
    LOUDEST,
    MAX_CHANNELS,
    MAX_RATE,
    MIN_RATE,
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
    "AUDIO_SUFFIXES",
    "ENCODINGS",
    "FAINTEST",
    "LOUDEST",
    "MAX_CHANNELS",
    "MAX_RATE",
    "MAX_SECONDS",
    "MIN_RATE",
    "NUM_SAMPLES",
    "SAMPLE_RATE",
    "Blocks",
    "Downmix",
    "Floats",
    "Source",
    "Warn",
    "as_floats",
    "decode",
    "decode_sound",
    "file_blocks",
    "is_silent",
    "list_audio_files",
    "load_audio",
    "load_clip",
    "mono_blocks",
    "pad_or_trim",
    "trim_silence",
]  # fmt: skip

SAMPLE_RATE = 8000  # Hz
NUM_SAMPLES = 8000  # one second
MAX_SECONDS = 3600  # longer recordings are no utterances

FAINTEST = 1e-6  # of full scale, peak to peak; 24 bits resolve 1e-7, and the features nothing smaller
_LARGE_OFFSET = 0.5  # of the standard deviation
_CANCELLED = 0.01  # power of the mean of the channels over that of the loudest, below which they cancel
_KEPT = 1 << 20  # samples at 8 kHz, 131 s, that are held; of a longer recording its second is decoded once more
_FRAME = SAMPLE_RATE // 100  # 10 ms, the step in which a long clip is searched for its word
_STRETCH = 512 * _FRAME  # numpy adds up in buffers of 8,192 values: whole ones make sums independent of the blocks

Source = str | PathLike[str] | bytes | bytearray | memoryview | BinaryIO | NDArray[Any]


class _Recording(Protocol):
    """A file or an array, whose blocks can be read more than once."""

    name: str

    def blocks(self, max_seconds: float | None = None) -> Blocks: ...


def load_audio(source: Source, sample_rate: int | None = None, encoding: str | None = None) -> Floats:
    """The second of `source` with its word in it: float32 (8000,), mono, 8 kHz; zeros where it is silent.

    Args:
        source: a path, the bytes of a file, a binary file object, or an array of samples: (T,), (T, channels) or
            (channels, T), floats around [-1, 1] or integers of full scale.
        sample_rate: of an array, or of sound without a header, in Hz; 8,000 unless given.
        encoding: of sound without a header, one of ENCODINGS. Names that end in .ul, .al, .gsm and so on say it.

    Memory does not grow with the length of a file. Raises an AudioError that says what is wrong with the audio.
    """
    return load_clip(source, sample_rate, encoding)[0]


def load_clip(source: Source, sample_rate: int | None = None, encoding: str | None = None) -> tuple[Floats, float]:
    """Like `load_audio`, with the length of the whole recording in seconds."""
    with _opened(source, sample_rate, encoding) as recording:
        mix = Downmix()
        second, length = _load_second(recording, mix, None)
        if (channel := mix.loudest_if_cancelled()) is not None:
            second, length = _load_second(recording, mix, channel)
        return second, length / SAMPLE_RATE


def decode(
    source: Source, sample_rate: int | None = None, encoding: str | None = None, max_seconds: float = MAX_SECONDS
) -> Floats:
    """Like `load_audio`, in full length: float32 (T,), mono, 8 kHz."""
    with _opened(source, sample_rate, encoding) as recording:
        mix = Downmix()
        parts = list(_resample(recording, mix, None, max_seconds))
        if (channel := mix.loudest_if_cancelled()) is not None:
            parts = list(_resample(recording, mix, channel, max_seconds))
        if not parts:
            raise _no_samples(recording.name)
        samples = np.concatenate(parts)
        _check_peak(samples.min(), samples.max(), recording.name)
    if is_silent(samples):
        return np.zeros_like(samples)
    offset = Offset()
    offset.feed(samples)
    return offset.remove(samples)


def decode_sound(source: Source) -> Floats:
    """As `decode`, of what must not be silent. Raises SilentAudioError where it is."""
    samples = decode(source)
    if is_silent(samples):
        name = source if isinstance(source, (str, PathLike)) else "the recording"
        raise SilentAudioError(f"{name} is digital silence ({samples.size} samples without a sound): record it again")
    return samples


def is_silent(samples: Floats) -> bool:
    """Whether no sample of (T,) differs from the others by more than features resolve."""
    return bool(np.ptp(samples) < FAINTEST)


def mono_blocks(
    source: Any, encoding: str | None = None, rate: int | None = None, max_seconds: float | None = None,
    warn: Warn | None = None,
) -> Iterator[tuple[int, Floats]]:  # fmt: skip
    """As `file_blocks`, with the channels mixed to one: (rate, (frames,))."""
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
    """A clip (T,) without its ends that lie so many decibels below its loudest hundredth of a second."""
    frame = SAMPLE_RATE // 100
    if len(samples) < frame:
        return samples
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    energy = np.square(frames).sum(axis=1)
    loud = np.flatnonzero(energy >= energy.max() * 10 ** (silence_db / 10))
    return samples[max(0, loud[0] - 1) * frame : (loud[-1] + 2) * frame]


def pad_or_trim(samples: Floats) -> Floats:
    """Exactly one second, float32 (8000,), of a clip (T,): a copy.

    A shorter clip is centred between zeros: it starts at (8000 - T) // 2. Of a longer one the
    second with most speech in it is kept.
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


class Downmix:
    """The mean of all channels, as long as they do not cancel: a loudspeaker's second wire, or a mid/side mix-up."""

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
        """The channel with the most power, offsets left out, where the mean has next to none; None otherwise."""
        if not self._frames:
            return None
        power = self._squares / self._frames - np.square(self._sums / self._frames)
        loudest = int(power[:-1].argmax())
        return loudest if power[-1] < _CANCELLED * power[loudest] else None


class Offset:
    """The mean of a recording (DC offset), removed where it is large: padded with zeros, it would be two steps.

    Half the standard deviation is more than any clip of FSDD has, so those stay as they are to the bit.
    """

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def feed(self, samples: Floats) -> None:
        """The next samples (T,)."""
        exact = samples.astype(np.float64)
        self._count += len(exact)
        self._sum += float(exact.sum())
        self._squares += float(exact @ exact)

    def remove(self, samples: Floats) -> Floats:
        """Samples (T,) of the recording without its mean."""
        mean = self._sum / self._count
        deviation = math.sqrt(max(0.0, self._squares / self._count - mean * mean))
        return samples - np.float32(mean) if abs(mean) > _LARGE_OFFSET * deviation else samples


class _WordSearch:
    """Where the second with the largest sum of frame amplitudes above the background begins, of a clip in parts.

    Amplitudes, not energies, so that one click does not outweigh a word; of the first difference,
    so that hum and offsets do not. Of equally good places the middle one puts the word in the
    middle.
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


def _load_second(recording: _Recording, mix: Downmix, channel: int | None) -> tuple[Floats, int]:
    """The second with the word, and the length of the recording in samples at 8 kHz."""
    search = _WordSearch()
    parts: list[Floats] = []
    length, kept = 0, True
    low, high = np.inf, -np.inf
    offset = Offset()
    for part in _resample(recording, mix, channel):
        low, high = min(low, part.min()), max(high, part.max())
        length += len(part)
        offset.feed(part)
        parts.append(part)
        if length > _KEPT:
            kept = False
            for each in parts:
                search.feed(each)
            parts.clear()
    if not length:
        raise _no_samples(recording.name)
    _check_peak(low, high, recording.name)
    if high - low < FAINTEST:
        return np.zeros(NUM_SAMPLES, dtype=np.float32), length
    if kept:
        return pad_or_trim(offset.remove(np.concatenate(parts))), length
    second = _excerpt(_resample(recording, Downmix(), channel), search.start(), recording.name)
    return offset.remove(second), length


def _excerpt(parts: Iterator[Floats], start: int, name: str) -> Floats:
    """The second that begins at sample `start` of parts that follow each other."""
    second = np.zeros(NUM_SAMPLES, dtype=np.float32)
    place = -start
    with contextlib.closing(parts):  # type: ignore[type-var]
        for part in parts:
            begin, end = max(0, -place), min(len(part), NUM_SAMPLES - place)
            if begin < end:
                second[place + begin : place + end] = part[begin:end]
            place += len(part)
            if place >= NUM_SAMPLES:
                return second
    raise UndecodableAudioError(f"{name} became shorter while it was read: read it again when nobody writes there")


def _resample(
    recording: _Recording, mix: Downmix, channel: int | None, max_seconds: float = MAX_SECONDS
) -> Iterator[Floats]:
    """What a recording holds at 8 kHz, in parts that are not empty; its mean, or the one channel."""
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


def _check_peak(low: float, high: float, name: str) -> None:
    """Between two samples within bounds a wave may lie beyond them."""
    if not (low >= -LOUDEST and high <= LOUDEST):
        raise NonFiniteAudioError(f"{name} is too loud: expected samples around [-1, 1], {LOUDEST:g} at most")


def _no_samples(name: str) -> EmptyAudioError:
    return EmptyAudioError(f"{name} holds no samples: expected a recording of a spoken digit")


@contextlib.contextmanager
def _opened(source: Source, sample_rate: int | None, encoding: str | None) -> Iterator[_Recording]:
    if not isinstance(source, np.ndarray):
        with open_audio(source, encoding, sample_rate) as file:
            yield file
    elif encoding is not None:
        raise UndecodableAudioError("encoding was given with an array of samples: pass it with bytes or files")
    else:
        yield _Array(source, SAMPLE_RATE if sample_rate is None else sample_rate)


class _Array:
    """Samples that are in memory."""

    name = "the array"

    def __init__(self, array: NDArray[Any], rate: int) -> None:
        array = np.asarray(array)  # of a masked array the samples alone
        if array.size == 0:
            raise EmptyAudioError(f"the array of shape {array.shape} is empty: expected samples of a spoken digit")
        if array.ndim not in (1, 2):
            raise UndecodableAudioError(
                f"the array has shape {array.shape}: expected (samples,), (samples, channels) or (channels, samples)"
            )
        if array.dtype.kind in "iu" and array.itemsize == 8 and array.any():  # what numpy makes of a list
            raise UndecodableAudioError(
                "whole numbers of 64 bits have no full scale: pass them as np.array(samples, np.int16)"
            )
        if array.ndim == 2 and array.shape[0] < array.shape[1]:
            array = array.T  # channels first: fewer channels than samples
        self._samples, self._rate = as_floats(array).reshape(len(array), -1), rate

    def blocks(self, max_seconds: float | None = None) -> Blocks:
        return check_blocks(iter([(self._rate, self._samples)]), self.name, max_seconds)
