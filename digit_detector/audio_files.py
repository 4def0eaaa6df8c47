"""Recordings in files. The first bytes determine the container, and the container alone determines the reader.

FFmpeg never guesses the format: its 371 demuxers include playlists and session descriptions, which name other files and
addresses. A container or codec that is not listed here is refused before any decoder sees it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import PurePath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio_headers import AMR_FRAMES, Header, find_sound, is_marked, read_header
from digit_detector.audio_streams import Memory, View, as_audio_errors, name_of, not_audio, open_stream
from digit_detector.errors import (
    ConfigError,
    EmptyAudioError,
    MissingExtraError,
    NonFiniteAudioError,
    TooLongAudioError,
    TruncatedAudioError,
    UndecodableAudioError,
)

MIN_RATE = 1000  # Hz; speech needs more
MAX_RATE = 768_000  # Hz, the highest rate any audio hardware uses
MAX_CHANNELS = 8
MAX_VALUES_PER_SECOND = 8 * 192_000  # rate times channels
MAX_VALUES = 1 << 30  # frames times channels of a clip: an hour at 96 kHz in stereo, and a half more
LOUDEST = 1e4  # times full scale

_BLOCK = 1 << 16  # values decoded at a time: fewer frames where there are more channels
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's way of saying that a header does not give the length

# Container -> libsndfile's names for it. Its other formats (MAT, XI, VOC, PAF, SDS, HTK, ...) are refused.
_SNDFILE_FORMATS: dict[str, frozenset[str]] = {
    "WAV": frozenset({"WAV", "WAVEX"}), "RF64": frozenset({"RF64"}), "W64": frozenset({"W64"}),
    "AIFF": frozenset({"AIFF"}), "AU": frozenset({"AU"}), "CAF": frozenset({"CAF"}), "FLAC": frozenset({"FLAC"}),
    "Ogg": frozenset({"OGG"}), "MP3": frozenset({"MP3"}),
}  # fmt: skip
# Container -> FFmpeg's demuxer; in those above, for codecs that libsndfile lacks (MP3 in WAV, Speex in Ogg).
_DEMUXERS = {
    "WAV": "wav", "CAF": "caf", "FLAC": "flac", "Ogg": "ogg", "MP3": "mp3", "Matroska or WebM": "matroska",
    "MP4": "mov", "AAC": "aac", "WMA": "asf", "AMR": "amr",
}  # fmt: skip
_DECODERS = frozenset({
    "aac", "aac_fixed", "alac", "amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb", "flac", "gsm", "gsm_ms",
    "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "opus", "libopus", "speex", "libspeex", "vorbis",
    "libvorbis", "wmalossless", "wmapro", "wmav1", "wmav2", "wmavoice", "g722", "adpcm_g722", "adpcm_g726",
    "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "pcm_alaw", "pcm_mulaw", "pcm_u8", "pcm_s8", "pcm_s16be", "pcm_s16le",
    "pcm_s24be", "pcm_s24le", "pcm_s32be", "pcm_s32le", "pcm_f32be", "pcm_f32le", "pcm_f64be", "pcm_f64le",
})  # fmt: skip
_FULL_NAMES = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}
_TIMED = frozenset({"mov", "matroska", "asf"})  # demuxers whose length comes from the header, not from a guess


@dataclass(frozen=True)
class Encoding:
    """Telephone sound without a header, one channel."""

    subtype: str  # libsndfile's; "" where FFmpeg reads it
    rate: int  # Hz, by default
    fixed: bool = False  # whether it has no other rate


ENCODINGS = {
    "mulaw": Encoding("ULAW", 8000), "alaw": Encoding("ALAW", 8000), "s16": Encoding("PCM_16", 8000),
    "vox": Encoding("VOX_ADPCM", 8000), "gsm": Encoding("GSM610", 8000, True), "g722": Encoding("", 16_000, True),
}  # fmt: skip
_SUFFIX_ENCODINGS = {
    ".ul": "mulaw", ".ulaw": "mulaw", ".al": "alaw", ".alaw": "alaw", ".sln": "s16", ".gsm": "gsm", ".g722": "g722",
    ".vox": "vox",
}  # fmt: skip
# Not .raw, which has any encoding: it must be given.
AUDIO_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64",
    ".webm", ".m4a", ".mp4", ".aac", ".mka", ".wma", ".amr", ".3gp", *_SUFFIX_ENCODINGS,
)  # fmt: skip

Floats = NDArray[np.float32]
Blocks = Iterator[tuple[int, Floats]]  # rate in Hz, samples (frames, channels)
Warn = Callable[[str], None]


def file_blocks(
    source: Any, encoding: str | None = None, rate: int | None = None, max_seconds: float | None = None,
    warn: Warn | None = None,
) -> Blocks:  # fmt: skip
    """Blocks (frames, channels) of a recording with their rate in Hz.

    Args:
        source: a path, the bytes of a file, or a binary file object.
        encoding: one of ENCODINGS, of sound without a header; by default from the suffix of the name.
        rate: its rate in Hz.
        max_seconds: raise TooLongAudioError for more, before decoding if the header has the length.
        warn: called with a message if the recording is shorter than its header says; None raises TruncatedAudioError.

    Raises AudioError for audio that cannot be decoded, also after the first blocks.
    """
    with open_audio(source, encoding, rate) as file:
        yield from file.blocks(max_seconds, warn)


@contextlib.contextmanager
def open_audio(source: Any, encoding: str | None = None, rate: int | None = None) -> Iterator[AudioFile]:
    """Open a recording, whose blocks can be read more than once. Raises AudioError, ConfigError."""
    if encoding is not None and encoding not in ENCODINGS:
        raise ConfigError([f"encoding: expected one of {', '.join(ENCODINGS)}, got {encoding!r}"], "arguments")
    name = name_of(source)
    with as_audio_errors(name):
        raw = encoding or _encoding_of(source)
        stream = open_stream(source, name, is_raw=raw is not None)
    try:
        with as_audio_errors(name):
            file = AudioFile(stream, name, raw, rate, isinstance(stream, io.FileIO))
        yield file
    finally:
        if isinstance(source, (str, PathLike)):
            stream.close()


class AudioFile:
    """A recording that is open."""

    def __init__(self, stream: BinaryIO, name: str, encoding: str | None, rate: int | None, has_fd: bool) -> None:
        self.name = name
        self._stream, self._has_fd = stream, has_fd
        self._start, container = find_sound(stream)
        self._length = stream.seek(0, io.SEEK_END)
        if self._length == 0:
            raise EmptyAudioError(f"{name} is empty (0 bytes): expected an audio file")
        self._encoding: Encoding | None = None
        self._rate = 0
        if encoding is not None and not is_marked(container):
            self._encoding, container = ENCODINGS[encoding], ""
            self._rate = _checked_rate(encoding, rate)
        elif rate is not None:
            raise UndecodableAudioError(
                "sample_rate was given with a file, which states its own rate: pass it with arrays of samples, or "
                f"with an encoding ({', '.join(ENCODINGS)}) for a file without a header"
            )
        elif container is None:
            raise not_audio(name)
        self._container = container
        self._header = read_header(stream, container, self._start, self._length) if container else Header()

    def blocks(self, max_seconds: float | None = None, warn: Warn | None = None) -> Blocks:
        """As file_blocks, from the beginning."""
        return check_blocks(self._decode(max_seconds, warn), self.name, max_seconds)

    def _decode(self, max_seconds: float | None, warn: Warn | None) -> Blocks:
        header = self._header
        with as_audio_errors(self.name):
            if header.fault:
                raise UndecodableAudioError(f"{self.name} is damaged: {header.fault}; copy or record it again")
            if header.end is not None and header.end > self._length:
                self._cut_off(f"its header promises {header.end} bytes, and {self._length} are there", warn)
            reason, is_g722 = "", self._encoding is not None and not self._encoding.subtype
            demuxer = "g722" if is_g722 else _DEMUXERS.get(self._container, "")
            if not is_g722 and (self._encoding is not None or self._container in _SNDFILE_FORMATS):
                reason = yield from self._sndfile_blocks(max_seconds, warn)
                if not reason:
                    return
                if not demuxer:
                    raise UndecodableAudioError(f"{self.name} is not audio that can be read: {reason}")
            yield from self._av_blocks(demuxer, reason, max_seconds, warn)

    def _cut_off(self, how: str, warn: Warn | None) -> None:
        message = f"{self.name} is cut off: {how}; copy or record it again"
        if warn is None:
            raise TruncatedAudioError(message)
        warn(message)

    def _check_header(self, rate: int, channels: int, seconds: float | None, max_seconds: float | None) -> None:
        """Check format and length before a sample is decoded. Raises AudioError."""
        check_format(self.name, rate, channels)
        if seconds is not None and max_seconds is not None:
            check_length(self.name, seconds, rate, channels, max_seconds)

    def _view(self) -> View | Memory:
        if isinstance(self._stream, Memory) and not self._start and not self._header.patches:
            self._stream.seek(0)
            return self._stream
        return View(self._stream, self._start, self._length, self._header.patches)

    def _sndfile_blocks(self, max_seconds: float | None, warn: Warn | None) -> Generator[tuple[int, Floats], None, str]:
        """Blocks by libsndfile; returns why it cannot open the file, or ""."""
        import soundfile

        view, raw = self._view(), {}
        if self._encoding is not None:
            raw = {"format": "RAW", "subtype": self._encoding.subtype, "samplerate": self._rate, "channels": 1}
        # By its descriptor if possible: Ctrl-C cannot pass through libsndfile's callbacks.
        direct = self._has_fd and not self._start and not self._header.patches
        self._stream.seek(0)
        opened = self._stream.fileno() if direct else view
        frames = 0
        try:
            with soundfile.SoundFile(opened, closefd=False, **raw) as file:
                if self._encoding is None and file.format not in _SNDFILE_FORMATS[self._container]:
                    raise not_audio(self.name)
                known = file.frames if 0 < file.frames < _UNKNOWN_FRAMES else None
                rate, channels = file.samplerate, file.channels
                self._check_header(rate, channels, None if known is None else known / rate, max_seconds)
                # Not file.blocks: if a file ends early, its last block contains arbitrary memory.
                while len(block := file.read(max(1, _BLOCK // channels), dtype="float32", always_2d=True)):
                    yield rate, block
                    frames += len(block)
                    if frames == known:
                        break
                if view.error is not None:
                    raise view.error
                if self._container == "FLAC" and known is not None and frames < known:
                    self._cut_off(f"its header promises {known} frames, and {frames} are there", warn)
            return ""
        except soundfile.LibsndfileError as error:
            reason = str(error).rsplit(": ", 1)[-1].rstrip(".")
        if view.error is not None:
            raise view.error
        if frames:
            raise UndecodableAudioError(f"{self.name} is damaged after {frames} frames: {reason}")
        return reason

    def _av_blocks(self, demuxer: str, reason: str, max_seconds: float | None, warn: Warn | None) -> Blocks:
        try:
            import av
            from av.error import FFmpegError
        except ImportError:
            if not reason:
                raise MissingExtraError(f"{self.name} ({self._container or demuxer})", "formats") from None
            raise UndecodableAudioError(f"{self.name} is not audio that can be read: {reason}") from None
        before = f"{reason}; " if reason else ""
        try:
            with av.open(
                self._view(), mode="r", format=demuxer, metadata_errors="ignore", io_open=self._refuse,
                container_options=_only(demuxer),
            ) as media:  # fmt: skip
                if not media.streams.audio:
                    raise UndecodableAudioError(f"{self.name} holds no audio track")
                track = media.streams.audio[0]
                codec = track.codec_context
                if codec is None or codec.name not in _DECODERS:
                    unknown = "" if codec is None else f" ({codec.name})"
                    raise UndecodableAudioError(
                        f"{self.name} is {self._container} with an unsupported audio codec{unknown}: "
                        "convert it to WAV or FLAC"
                    )
                seconds = None
                if demuxer in _TIMED and media.duration is not None:
                    seconds = media.duration / av.time_base
                if codec.sample_rate and codec.channels:
                    self._check_header(codec.sample_rate, codec.channels, seconds, max_seconds)
                if codec.name.removeprefix("libopencore_") in AMR_FRAMES:
                    yield from self._amr_blocks(media, track, warn)
                    return
                for frame in media.decode(track):
                    yield frame.sample_rate, _samples_of(frame)
        except (FFmpegError, ValueError, IndexError) as error:
            why = getattr(error, "strerror", None) or error  # FFmpeg's text, without a number and a stream's name
            raise UndecodableAudioError(f"{self.name} is not audio that can be read: {before}{why}") from error

    def _amr_blocks(self, media: Any, track: Any, warn: Warn | None) -> Blocks:
        """AMR frame by frame: pauses have no frames, or comfort noise, which FFmpeg's decoder rejects."""
        import av

        codec = track.codec_context
        rate, sizes, speech = AMR_FRAMES[codec.name.removeprefix("libopencore_")]
        pause = np.zeros((rate // 50, 1), dtype=np.float32)  # 20 ms
        for packet in media.demux(track):
            content = bytes(packet)
            while content:
                kind = content[0] >> 3 & 15
                frame, content = content[: sizes[kind]], content[sizes[kind] :]
                if len(frame) < sizes[kind]:
                    self._cut_off("it ends within a frame", warn)
                elif kind not in speech:
                    yield rate, pause
                else:
                    for decoded in codec.decode(av.Packet(frame)):
                        yield decoded.sample_rate, _samples_of(decoded)

    def _refuse(self, url: str, *_: object) -> BinaryIO:
        raise UndecodableAudioError(f"{self.name} refers to another file ({url!r}): expected a recording in one file")


def check_blocks(blocks: Blocks, name: str, max_seconds: float | None = None) -> Blocks:
    """Yield blocks while their rate, channels, levels and length are valid. Raises AudioError."""
    rate = frames = values = 0
    for block_rate, block in blocks:
        channels = block.shape[1]
        if rate == 0:
            rate = block_rate
        check_format(name, block_rate, channels)
        if block_rate != rate:
            raise UndecodableAudioError(f"{name} changes its sample rate from {rate} to {block_rate} Hz midway")
        if len(block) == 0:
            continue
        if not (block.max() <= LOUDEST and block.min() >= -LOUDEST):  # NaN is not, either
            fault, good = _bad_level(block, name, frames)
            if good:
                yield block_rate, block[:good]
            raise fault
        frames += len(block)
        values += block.size
        if max_seconds is not None:
            check_length(name, frames / rate, rate, values / frames, max_seconds)
        yield block_rate, block


def check_format(name: str, rate: int, channels: int) -> None:
    """Raise UndecodableAudioError for an invalid rate or number of channels."""
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not MIN_RATE <= rate <= MAX_RATE:
        raise UndecodableAudioError(
            f"{name} has a sample rate of {rate!r}: expected a whole number of Hz from {MIN_RATE} to {MAX_RATE}"
        )
    if channels > MAX_CHANNELS:
        raise UndecodableAudioError(f"{name} has {channels} channels: expected {MAX_CHANNELS} at most")
    if rate * channels > MAX_VALUES_PER_SECOND:
        raise UndecodableAudioError(
            f"{name} has {channels} channels at {rate} Hz: expected {MAX_VALUES_PER_SECOND // channels} Hz at most "
            "with this many channels"
        )


def check_length(name: str, seconds: float, rate: int, channels: float, max_seconds: float) -> None:
    """Raise TooLongAudioError for more seconds than allowed, or more samples than MAX_VALUES."""
    if seconds > max_seconds:
        limit = f"{max_seconds:g} s" if max_seconds < 120 else f"{max_seconds / 60:.0f} minutes"
        raise TooLongAudioError(f"{name} is longer than {limit}: cut it to the utterance, expected about a second")
    if seconds * rate * channels > MAX_VALUES:
        raise TooLongAudioError(
            f"{name} holds over {MAX_VALUES} samples ({rate} Hz, {channels:g} channels): cut it to the utterance"
        )


def as_floats(array: NDArray[Any]) -> Floats:
    """Convert floats, and integers of full scale, to float32 around [-1, 1]. Raises UndecodableAudioError."""
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(np.float32)
    if array.dtype == np.uint8:  # 8-bit PCM is unsigned, with 128 as zero
        return (array.astype(np.float32) - 128.0) / 128.0
    if np.issubdtype(array.dtype, np.signedinteger):
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    raise UndecodableAudioError(f"the array has type {array.dtype}: expected floats, signed integers or uint8")


def _bad_level(block: Floats, name: str, before: int) -> tuple[NonFiniteAudioError, int]:
    """The error for a block with an invalid level, and the number of valid frames before it."""
    good = int(np.argmin((np.abs(block) <= LOUDEST).all(axis=1)))
    if not np.isfinite(block).all():
        what = f"has NaN or infinite samples, first at frame {before + good}: record it again"
    else:
        peak = f"{np.abs(block).max():.3g}"
        what = f"is too loud from frame {before + good} on, "
        what += f"{peak} times full scale: expected samples around [-1, 1], {LOUDEST:g} at most"
    return NonFiniteAudioError(f"{name} {what}"), good


def _samples_of(frame: Any) -> Floats:
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    return as_floats(samples.T)


def _only(demuxer: str) -> dict[str, str]:
    """Options that restrict FFmpeg to this demuxer, the listed decoders, no protocol, and few tracks."""
    options = {
        "format_whitelist": _FULL_NAMES.get(demuxer, demuxer),
        "codec_whitelist": ",".join(sorted(_DECODERS)),
        "protocol_whitelist": "none",
        "max_streams": "32",
    }
    return options | ({"enable_drefs": "0", "use_absolute_path": "0"} if demuxer == "mov" else {})


def _checked_rate(encoding: str, rate: int | None) -> int:
    usual = ENCODINGS[encoding]
    if rate is not None and usual.fixed and rate != usual.rate:
        raise ConfigError([f"rate: {encoding} has {usual.rate} Hz and no other, got {rate}"], "arguments")
    return usual.rate if rate is None else rate


def _encoding_of(source: Any) -> str | None:
    """The encoding of sound without a header, from the suffix of its file name."""
    name = source if isinstance(source, (str, PathLike)) else getattr(source, "name", None)
    return _SUFFIX_ENCODINGS.get(PurePath(name).suffix.lower()) if isinstance(name, (str, PathLike)) else None
