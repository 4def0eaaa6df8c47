"""Any audio in, one second of speech out: mono float32 at 8 kHz, exactly 8,000 samples.

This is the only decoder; training, evaluation and answering all hear through it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ml_training.errors import (
    AudioError,
    EmptyAudioError,
    MissingExtraError,
    NonFiniteAudioError,
    SilentAudioError,
    UndecodableAudioError,
)

SAMPLE_RATE = 8000  # Hz
NUM_SAMPLES = 8000  # one second
MAX_SECONDS = 3600  # longer recordings are no utterances; the bound keeps memory bounded too
MAX_RATE = 768_000  # Hz, the highest rate any audio hardware uses
AUDIO_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64",
    ".webm", ".m4a", ".mp4", ".aac", ".mka", ".wma", ".amr", ".3gp",
)  # fmt: skip

_FAINTEST = 1e-6  # of full scale, peak to peak; 24 bits resolve 1e-7, and the features nothing smaller
_BLOCK = 1 << 18  # frames decoded at a time
_FRAME = SAMPLE_RATE // 100  # 10 ms, the step in which a long clip is searched for its word
_CONTAINERS = {b"\x1a\x45\xdf\xa3": "webm or mka", b"ftyp": "m4a or mp4", b"#!AMR": "amr", b"\x30\x26\xb2\x75": "wma"}

Floats = NDArray[np.float32]
Source = str | PathLike[str] | bytes | bytearray | memoryview | BinaryIO | NDArray[Any]


def load_audio(source: Source, sample_rate: int | None = None) -> Floats:
    """Read `source` and return its word: float32 (8000,), mono, 8 kHz.

    `source` is a path, the bytes of a file, a binary file object, or an array of samples: (T,),
    (T, channels) or (channels, T), floats around [-1, 1] or integers of full scale, at
    `sample_rate` Hz (8,000 when not said). Raises an AudioError that tells what is wrong with it.
    """
    return load_clip(source, sample_rate)[0]


def load_clip(source: Source, sample_rate: int | None = None) -> tuple[Floats, float]:
    """Like `load_audio`, with the length of the whole recording in seconds."""
    samples = decode(source, sample_rate)
    return fit(samples), len(samples) / SAMPLE_RATE


def decode(source: Source, sample_rate: int | None = None) -> Floats:
    """Like `load_audio`, in full length: float32 (T,), mono, 8 kHz."""
    if isinstance(source, np.ndarray):
        name, blocks = "the array", _array_blocks(source, sample_rate)
    else:
        if sample_rate is not None:
            raise UndecodableAudioError(
                "sample_rate was given with a file, which states its own rate: pass it with arrays of samples only"
            )
        name, blocks = _name(source), file_blocks(source)
    return _checked(_resample(blocks, name), name)


def trimmed(samples: Floats, silence_db: float) -> Floats:
    """A clip (T,) without its ends that lie so many decibels below its loudest hundredth of a second."""
    frame = SAMPLE_RATE // 100
    if len(samples) < frame:
        return samples
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    energy = np.square(frames).sum(axis=1)
    loud = np.flatnonzero(energy >= energy.max() * 10 ** (silence_db / 10))
    return samples[max(0, loud[0] - 1) * frame : (loud[-1] + 2) * frame]


def fit(samples: Floats) -> Floats:
    """Exactly one second, float32 (8000,), of a clip (T,).

    A shorter clip is centred between zeros: it starts at (8000 - T) // 2. Of a longer one the
    second with most speech in it is kept.
    """
    length = len(samples)
    if length > NUM_SAMPLES:
        start = _word_start(samples)
        return np.ascontiguousarray(samples[start : start + NUM_SAMPLES], dtype=np.float32)
    second = np.zeros(NUM_SAMPLES, dtype=np.float32)
    offset = (NUM_SAMPLES - length) // 2
    second[offset : offset + length] = samples
    return second


def _word_start(samples: Floats) -> int:
    """Where the second with the largest sum of frame amplitudes above the background begins.

    Amplitudes, not energies, so that one click does not outweigh a word; of the first difference,
    so that hum and offsets do not. Of equally good places the middle one puts the word in the
    middle.
    """
    edges = np.diff(samples, prepend=samples[:1])
    frames = edges[: len(edges) // _FRAME * _FRAME].reshape(-1, _FRAME)
    amplitude = np.sqrt(np.mean(np.square(frames), axis=1, dtype=np.float64))
    above = np.maximum(amplitude - 2.0 * np.percentile(amplitude, 15), 0.0)
    if not above.any():
        above = amplitude
    total = np.concatenate([[0.0], np.cumsum(above)])
    span = NUM_SAMPLES // _FRAME
    sums = total[span:] - total[:-span]
    best = np.flatnonzero(sums >= sums.max() * (1.0 - 1e-3))
    first_run = best[: np.argmax(np.diff(best, append=best[-1] + 2) > 1) + 1]
    return int(first_run[len(first_run) // 2]) * _FRAME


def _checked(samples: Floats, name: str) -> Floats:
    if samples.size == 0:
        raise EmptyAudioError(f"{name} holds no samples: expected a recording of a spoken digit")
    if not np.isfinite(samples).all():
        raise NonFiniteAudioError(f"{name} becomes NaN or infinite when resampled: its samples are too large")
    if samples.min() == samples.max():
        raise SilentAudioError(f"{name} is digital silence ({samples.size} equal samples): check the recording")
    if np.ptp(samples) < _FAINTEST:
        raise SilentAudioError(
            f"{name} is as good as silent, no sample is larger than {np.abs(samples).max():.1g} of full scale: check "
            "the recording, and that an array of integers has the type of its scale (int16 for 16 bits)"
        )
    return samples


def _name(source: Any) -> str:
    if isinstance(source, (str, PathLike)):
        return str(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"the audio ({len(source)} bytes)"
    return str(getattr(source, "name", "the file object"))


# --- arrays --------------------------------------------------------------------------------------


def _array_blocks(array: NDArray[Any], sample_rate: int | None) -> Iterator[tuple[int, Floats]]:
    rate = SAMPLE_RATE if sample_rate is None else sample_rate
    if array.size == 0:
        raise EmptyAudioError(f"the array of shape {array.shape} is empty: expected samples of a spoken digit")
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T  # channels first: fewer channels than samples
    if array.ndim not in (1, 2):
        raise UndecodableAudioError(
            f"the array has shape {array.shape}: expected (samples,), (samples, channels) or (channels, samples)"
        )
    yield rate, as_floats(array).reshape(len(array), -1)


def as_floats(array: NDArray[Any]) -> Floats:
    """Floats as they are, integers of full scale as numbers in [-1, 1). Raises UndecodableAudioError for the rest."""
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(over="ignore"):
            return array.astype(np.float32)
    if array.dtype == np.uint8:  # 8-bit PCM is unsigned, with 128 as zero
        return (array.astype(np.float32) - 128.0) / 128.0
    if np.issubdtype(array.dtype, np.signedinteger):
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    raise UndecodableAudioError(f"the array has type {array.dtype}: expected floats, signed integers or uint8")


# --- files ---------------------------------------------------------------------------------------


def file_blocks(source: Any) -> Iterator[tuple[int, Floats]]:
    """Blocks (frames, channels) of a recording with their rate in Hz, by soundfile or, for other containers, PyAV.

    It may be of any length. Raises an AudioError where it cannot be read, or no further.
    """
    import soundfile

    name = _name(source)
    frames = 0
    try:
        stream = _open(source, name)
        with stream if isinstance(source, (str, PathLike)) else contextlib.nullcontext(stream):
            head = stream.read(12)
            if not head:
                raise EmptyAudioError(f"{name} is empty (0 bytes): expected an audio file")
            stream.seek(0)
            tap = _Tap(stream)
            try:
                with soundfile.SoundFile(tap) as file:
                    # Not file.blocks: where a file ends early it fills its last block with what lay in memory.
                    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                        yield file.samplerate, block
                        frames += len(block)
                if tap.error is not None:
                    raise tap.error
                return
            except soundfile.LibsndfileError as error:
                reason = str(error).rsplit(": ", 1)[-1].rstrip(".")
            if frames:
                raise UndecodableAudioError(f"{name} is damaged after {frames} frames: {reason}")
            stream.seek(0)
            yield from _av_blocks(stream, name, head, reason)
    except IsADirectoryError as error:
        raise UndecodableAudioError(f"{name} is a folder: digits predict answers all in it with --out TABLE") from error
    except OSError as error:
        raise UndecodableAudioError(f"cannot read {name}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name, a closed file
        raise UndecodableAudioError(f"cannot read {name!r}: {error}") from error


class _Tap:
    """A stream as libsndfile is to see it: without its name, which would choose a format for it.

    An error while reading is kept, because it cannot pass through libsndfile.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.seek, self.tell = stream.seek, stream.tell
        self.error: OSError | None = None
        self._read = stream.read

    def read(self, count: int) -> bytes:
        try:
            return self._read(count)
        except OSError as error:
            self.error = error
            return b""


def _open(source: Any, name: str) -> BinaryIO:
    """A stream that can be sought and stands at its beginning. Raises OSError, ValueError, AudioError."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(bytes(source))
    if isinstance(source, (str, PathLike)):
        file = Path(source).open("rb")  # noqa: SIM115 (the caller closes it)
        if file.seekable():
            return file
        with file:  # a pipe
            return io.BytesIO(file.read())
    if not callable(getattr(source, "read", None)):
        raise UndecodableAudioError(
            f"got {type(source).__name__}: expected a path, bytes, a binary file object or a numpy array"
        )
    seekable = callable(getattr(source, "seekable", None)) and source.seekable()
    if seekable and not isinstance(source, io.TextIOBase) and source.tell() == 0:
        return source  # type: ignore[no-any-return]
    content = source.read()
    if not isinstance(content, bytes):
        raise UndecodableAudioError(f"{name} is open in text mode: open it in binary mode, 'rb'")
    return io.BytesIO(content)


def _av_blocks(stream: BinaryIO, name: str, head: bytes, reason: str) -> Iterator[tuple[int, Floats]]:
    container = next((kind for magic, kind in _CONTAINERS.items() if magic in head), None)
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        if container:
            raise MissingExtraError(f"{name} ({container})", "formats") from None
        raise UndecodableAudioError(f"{name} is not audio that can be read: {reason}") from None
    try:
        with av.open(stream, mode="r", metadata_errors="ignore") as media:
            if not media.streams.audio:
                raise UndecodableAudioError(f"{name} holds no audio track")
            for frame in media.decode(audio=0):
                samples = frame.to_ndarray()
                if not frame.format.is_planar:
                    samples = samples.reshape(-1, frame.layout.nb_channels).T
                yield frame.sample_rate, as_floats(samples.T)
    except (FFmpegError, ValueError, IndexError) as error:
        why = getattr(error, "strerror", None) or error  # of FFmpeg's, without a number and the name of a stream
        raise UndecodableAudioError(f"{name} is not audio that can be read: {reason}; {why}") from error


# --- to 8 kHz ------------------------------------------------------------------------------------


def _resample(blocks: Iterator[tuple[int, Floats]], name: str) -> Floats:
    """Blocks (frames, channels) -> (T,) at 8 kHz. Channels are averaged."""
    stream: Any = None
    rate = 0
    frames = 0
    parts: list[Floats] = []
    for block_rate, block in blocks:
        if rate == 0:
            rate = block_rate
            if not isinstance(rate, (int, np.integer)) or not 0 < rate <= MAX_RATE:
                raise UndecodableAudioError(
                    f"{name} has a sample rate of {rate!r}: expected a whole number of Hz from 1 to {MAX_RATE}"
                )
            stream = _resampler(int(rate))
        if block_rate != rate:
            raise UndecodableAudioError(f"{name} changes its sample rate from {rate} to {block_rate} Hz midway")
        if not np.isfinite(block).all():
            raise NonFiniteAudioError(f"{name} has NaN or infinite samples, first at frame {frames}: record it anew")
        frames += len(block)
        if frames > MAX_SECONDS * rate:
            raise AudioError(
                f"{name} is longer than {MAX_SECONDS // 60} minutes: cut it to the utterance, expected about a second"
            )
        mono = block.mean(axis=1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0]
        parts.append(stream.resample_chunk(mono) if stream else mono)
    if stream:
        parts.append(stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def _resampler(rate: int) -> Any:
    if rate == SAMPLE_RATE:
        return None
    import soxr

    return soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
