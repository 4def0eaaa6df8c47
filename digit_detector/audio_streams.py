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
    """Bytes as a decoder is to see them: reading never fails, and a place before the beginning is the beginning.

    A class of its own, so that nothing of it is called in Python that need not be.
    """

    error: BaseException | None = None

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_CUR:
            offset += self.tell()
        elif whence == io.SEEK_END:
            return super().seek(min(0, max(-len(self.getbuffer()), offset)), whence)
        return super().seek(min(max(0, offset), _FARTHEST))


class View:
    """A stream as a decoder is to see it: without its name, from where its sound begins, its header put right.

    An error while reading is kept, because it cannot pass through a decoder.
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
        for place, right in self._patches.items():
            begin = place - self._at
            if -len(right) < begin < len(content):
                patched = bytearray(content)
                for i, byte in enumerate(right):
                    if 0 <= begin + i < len(patched):
                        patched[begin + i] = byte
                content = bytes(patched)
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length - self._start}[whence]
        self._at = min(max(0, base + offset), self._length)  # a damaged header names places before and behind it
        return self._at

    def tell(self) -> int:
        return self._at


@contextlib.contextmanager
def our_errors(name: str) -> Iterator[None]:
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
    return str(getattr(source, "name", "the file object"))


def open_stream(source: Any, name: str, is_raw: bool) -> BinaryIO:
    """A stream that can be sought and stands at its beginning; `is_raw` of sound without a header.

    Raises OSError, ValueError, AudioError.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Memory(bytes(source))
    if isinstance(source, (str, PathLike)):
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
    """What can be read only once, in memory; its first bytes are looked at before the rest is waited for."""
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
    """The error for what is in no list of containers."""
    return UndecodableAudioError(
        f"{name} is not audio that can be read: it begins like none of {', '.join(CONTAINERS)}. For sound without a "
        "header give its encoding"
    )
