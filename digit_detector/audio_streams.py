"""Paths, bytes, file objects and pipes as streams that decoders read."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from digit_detector.audio_headers import CONTAINERS, HEAD_BYTES, container_of
from digit_detector.errors import AudioError, UndecodableAudioError

_FARTHEST = (1 << 63) - 1
MAX_PIPE_BYTES = 256 << 20  # of what can be read only once, and is therefore held in memory


class Memory(io.BytesIO):
    """Bytes for a decoder: seeking before the beginning goes to the beginning. Reading stays that of BytesIO, in C."""

    error: BaseException | None = None

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_CUR:
            offset += self.tell()
        elif whence == io.SEEK_END:
            return super().seek(min(0, max(-len(self.getbuffer()), offset)), whence)
        return super().seek(min(max(0, offset), _FARTHEST))


class View:
    """A stream for a decoder: from where its audio begins, with a corrected header, and without its name.

    An error while reading is kept in `error`, because it cannot pass through a decoder.
    """

    def __init__(self, stream: BinaryIO, start: int, length: int, patches: dict[int, bytes]) -> None:
        self.error: BaseException | None = None
        self._stream, self._start, self._length, self._patches = stream, start, length, patches
        self._at = 0
        stream.seek(start)

    def read(self, count: int = -1) -> bytes:
        try:
            self._stream.seek(self._start + self._at)
            content = self._stream.read(count)
        except BaseException as error:  # Ctrl-C as well
            self.error = error
            return b""
        patched = bytearray(content)
        for place, right in self._patches.items():
            for i, byte in enumerate(right, place - self._at):
                if 0 <= i < len(patched):
                    patched[i] = byte
        self._at += len(patched)
        return bytes(patched)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length - self._start}[whence]
        self._at = min(max(0, base + offset), self._length)  # a damaged header names places before and behind it
        return self._at

    def tell(self) -> int:
        return self._at


@contextlib.contextmanager
def as_audio_errors(name: str) -> Iterator[None]:
    """Raise an AudioError for an error of reading."""
    try:
        yield
    except IsADirectoryError as error:
        raise UndecodableAudioError(f"{name} is a folder: digits predict answers all in it with --out TABLE") from error
    except OSError as error:
        raise UndecodableAudioError(f"cannot read {name}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name, a closed file
        raise UndecodableAudioError(f"cannot read {name!r}: {error}") from error


def name_of(source: Any) -> str:
    if isinstance(source, (str, PathLike)):
        return str(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"the audio ({len(source)} bytes)"
    name = str(getattr(source, "name", "the file object"))
    return "standard input" if name == "<stdin>" else name


def open_stream(source: Any, name: str, is_raw: bool) -> BinaryIO:
    """A seekable stream at its beginning; `is_raw`: without a header. Raises OSError, ValueError, AudioError."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Memory(bytes(source))
    if isinstance(source, (str, PathLike)):
        if not str(source):
            raise UndecodableAudioError("the name of the file is empty: expected the path of an audio file")
        if Path(source).is_char_device() or Path(source).is_block_device():
            raise UndecodableAudioError(f"{name} is a device: expected an audio file")
        file = Path(source).open("rb", buffering=0)  # noqa: SIM115 (the caller closes it)
        if file.seekable():
            return file
        with file:  # a pipe
            return _read_once(file, name, is_raw)
    if not callable(getattr(source, "read", None)):
        raise UndecodableAudioError(
            f"got {type(source).__name__}: expected a path, bytes, a binary file object or a numpy array"
        )
    seekable = callable(getattr(source, "seekable", None)) and source.seekable()
    if seekable and not isinstance(source, io.TextIOBase) and source.tell() == 0:
        return source  # type: ignore[no-any-return]
    return _read_once(source, name, is_raw)


def _read_once(stream: Any, name: str, is_raw: bool) -> BinaryIO:
    """Read a stream that cannot be sought into memory; its first bytes are checked before the rest is awaited."""
    content = bytearray()
    checked = False
    while len(content) <= MAX_PIPE_BYTES:
        part = stream.read(1 << 16 if checked else HEAD_BYTES)
        if part and not isinstance(part, bytes):
            raise UndecodableAudioError(f"{name} is open in text mode: open it in binary mode, 'rb'")
        content += part or b""
        if not checked and (len(content) >= HEAD_BYTES or not part):
            checked = True
            if content and not is_raw and content[:3] != b"ID3" and container_of(bytes(content)) is None:
                raise not_audio(name)
        if not part:
            return Memory(bytes(content))
    raise AudioError(f"{name} sent over {MAX_PIPE_BYTES >> 20} MB: write it to a file, or cut it to the utterance")


def not_audio(name: str) -> UndecodableAudioError:
    """The error for an unknown container."""
    return UndecodableAudioError(
        f"{name} is not audio that can be read: it begins like none of {', '.join(CONTAINERS)}. For sound without a "
        "header give its encoding"
    )
