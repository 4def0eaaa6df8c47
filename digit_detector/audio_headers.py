"""Headers of audio files: the container by its first bytes, and where the audio ends according to the header."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import BinaryIO, Literal

HEAD_BYTES = 64  # enough to know a container by
_FARTHEST = 1 << 62  # bytes; a damaged header may name any place, and a stream takes 63 bits
_MOST_CHUNKS = 10_000  # of a file, before its sound
_MOST_SAMPLES = 1 << 21  # of the tables of an MP4: twelve hours of AAC at 48 kHz
_LONGEST_PAGE = 27 + 255 + 255 * 255  # bytes, of Ogg
_MOST_ZEROS = 1 << 16  # bytes that some taggers leave between a tag and the sound
# Programs that write to a pipe cannot know the length, and leave a size near 2 or 4 GiB.
_PIPED = 0x7FFF0000
_TABLES = re.compile(b"stsz|stz2|trun|cmov")  # of an MP4, and a header that is compressed
_TABLE_HEAD = 16  # bytes
_WINDOW = 1 << 20  # bytes that are searched at a time

_FORMS = {
    b"RIFFWAVE": "WAV", b"RIFXWAVE": "WAV", b"RF64WAVE": "RF64", b"FORMAIFF": "AIFF", b"FORMAIFC": "AIFF",
}  # fmt: skip
_MARKS = {
    b"fLaC": "FLAC", b"OggS": "Ogg", b".snd": "AU", b"dns.": "AU", b"caff": "CAF", b"#!AMR\n": "AMR",
    b"#!AMR-WB\n": "AMR", b"\x1a\x45\xdf\xa3": "Matroska or WebM", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "WMA",
    b"riff\x2e\x91\xcf\x11": "W64",
}  # fmt: skip
CONTAINERS = tuple(sorted({*_FORMS.values(), *_MARKS.values(), "MP4", "MP3", "AAC"}, key=str.lower))
_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp"})  # that an MP4 may begin with

# Codec -> rate in Hz, bytes of a frame by its type, and which types hold speech (3GPP TS 26.101 and 26.201, RFC 4867)
AMR_FRAMES: dict[str, tuple[int, tuple[int, ...], range]] = {
    "amrnb": (8000, (13, 14, 16, 18, 20, 21, 27, 32, 6, 1, 1, 1, 1, 1, 1, 1), range(8)),
    "amrwb": (16_000, (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 1, 1, 1, 1, 1, 1), range(9)),
}


@dataclass(frozen=True)
class Header:
    """What a header says about its file."""

    end: int | None = None  # smallest length that the header implies, in bytes; None if unknown
    patches: dict[int, bytes] = field(default_factory=dict)  # place -> correct bytes
    fault: str = ""  # why no decoder should see it


def container_of(head: bytes) -> str | None:
    """The container that begins with these bytes (HEAD_BYTES, or the whole file); None for anything else."""
    if (form := _FORMS.get(head[:4] + head[8:12])) is not None:
        return form
    for mark, container in _MARKS.items():
        if head.startswith(mark):
            return container
    if head[4:8] in _BOXES:
        return "MP4"
    if len(head) < 4 or head[0] != 0xFF:
        return None
    if head[1] & 0xF6 == 0xF0 and head[2] >> 2 & 15 < 13:
        return "AAC"
    version, layer, bit_rate, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    is_mpeg = head[1] & 0xE0 == 0xE0 and version != 1 and layer != 0 and bit_rate != 15 and rate != 3
    return "MP3" if is_mpeg else None


def is_marked(container: str | None) -> bool:
    """Whether audio without a header cannot begin like this container by chance."""
    return container is not None and container not in ("MP3", "AAC")


def find_sound(stream: BinaryIO) -> tuple[int, str | None]:
    """Where a file begins after its ID3 tags, which are not read, and its container."""
    start = 0
    head = read_at(stream, 0, HEAD_BYTES)
    while head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 0x80:
        size = int.from_bytes(head[6:7]) << 21 | head[7] << 14 | head[8] << 7 | head[9]
        start += 10 + size + (10 if head[5] & 0x10 else 0)
        after = read_at(stream, start, _MOST_ZEROS)
        zeros = len(after) - len(after.lstrip(b"\0"))
        start += zeros
        head = after[zeros : zeros + HEAD_BYTES]
    return start, container_of(head)


def read_header(stream: BinaryIO, container: str, start: int, length: int) -> Header:
    """The header of a file of `length` bytes; Header() if it says nothing of the end."""
    reader = _READERS.get(container)
    try:
        return Header() if reader is None else reader(stream, start, length)
    except IndexError:  # it ends within its header: the decoder reports that
        return Header()


def read_at(stream: BinaryIO, place: int, count: int) -> bytes:
    """`count` bytes, or those that are left."""
    if place >= _FARTHEST:
        return b""
    stream.seek(place)
    content = b""
    while count > len(content) and (part := stream.read(count - len(content))):
        content += part
    return content


def mp4_entries(stream: BinaryIO, start: int, length: int) -> float:
    """How many samples the tables of an MP4 promise.

    FFmpeg allocates 24 bytes for each before it reads one: 80 million of them took 2.9 GB for a file of 1,200 bytes.
    Samples of one size that fit into the file do not count. Compressed tables count as infinitely many.
    """
    entries = 0.0
    for kind, place, size in _boxes(stream, start, length):
        if kind == b"mdat":
            continue
        end = min(place + size, length) if size >= 8 else length
        for begin in range(place, end, _WINDOW):
            content = read_at(stream, begin, min(_WINDOW + _TABLE_HEAD, end - begin))
            for table in _TABLES.finditer(content, 0, min(len(content), _WINDOW + 3)):
                fields = content[table.end() : table.end() + 12]
                if table[0] == b"cmov":
                    return math.inf
                if table[0] == b"trun":
                    entries += int.from_bytes(fields[4:8])
                    continue
                size_each, count = int.from_bytes(fields[4:8]), int.from_bytes(fields[8:12])
                if table[0] == b"stz2" or not 0 < size_each * count <= length:
                    entries += count
    return entries


def _boxes(stream: BinaryIO, start: int, length: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, place, size) of the boxes of an MP4; a size below 8 means until the end of the file."""
    place = start
    while length - place >= 8:
        head = read_at(stream, place, 16)
        size = int.from_bytes(head[8:16] if head[:4] == b"\0\0\0\1" else head[:4])
        yield head[4:8], place, size
        if size < 8:
            return
        place += size


def _chunks(
    stream: BinaryIO, place: int, head_bytes: int, order: Literal["big", "little"], align: int
) -> Iterator[tuple[bytes, int, int]]:
    """(name, begin, size) of the chunks of a file from `place` on. Heads of 24 bytes (W64) count in the size."""
    for _ in range(_MOST_CHUNKS):
        head = read_at(stream, place, head_bytes)
        if len(head) < head_bytes:
            return
        size = int.from_bytes(head[16:], order) - 24 if head_bytes == 24 else int.from_bytes(head[4:], order)
        place += head_bytes
        yield head[:4], place, size
        place += max(0, size) + -size % align


def _number(content: bytes, order: Literal["big", "little"] = "big") -> int:
    if not content:
        raise IndexError
    return int.from_bytes(content, order)


def _wav(stream: BinaryIO, start: int, length: int) -> Header:
    head = read_at(stream, start, 12)
    order: Literal["big", "little"] = "big" if head[:4] == b"RIFX" else "little"
    whole, long_size = _number(head[4:8], order), None
    for name, begin, size in _chunks(stream, start + 12, 8, order, 2):
        if name == b"ds64":
            long_size = _number(read_at(stream, begin + 8, 8), order)
        if name == b"data":
            if head[:4] == b"RF64" and size == 0xFFFFFFFF and long_size is not None:
                size = long_size
            unfinished = start + 8 + whole <= begin or whole >= _PIPED
            if size == 0 and unfinished and begin < length:
                return Header(patches={begin - 4 - start: min(length - begin, _PIPED - 1).to_bytes(4, order)})
            return Header(begin + size) if size < _PIPED or size <= length - begin else Header()
    return Header()


def _chunk_end(
    sound: bytes, first: int, head_bytes: int, order: Literal["big", "little"], align: int, unknown: int,
    stream: BinaryIO, start: int, length: int,
) -> Header:  # fmt: skip
    """The end of the chunk `sound`, unless its size is `unknown` or larger, which programs write to pipes."""
    for name, begin, size in _chunks(stream, start + first, head_bytes, order, align):
        if name == sound:
            return Header(begin + size) if size < unknown else Header()
    return Header()


def _au(stream: BinaryIO, start: int, length: int) -> Header:
    head = read_at(stream, start, 12)
    order: Literal["big", "little"] = "big" if head[:4] == b".snd" else "little"
    begin, size = _number(head[4:8], order), _number(head[8:12], order)
    return Header(start + begin + size) if size < _PIPED else Header()


def _matroska(stream: BinaryIO, start: int, length: int) -> Header:
    """The end of the last element (RFC 8794: an identifier and a size, both of 1 to 8 bytes).

    What is recorded live has a segment and clusters of unknown size, and elements of known size in them.
    """
    place = start
    for _ in range(_MOST_CHUNKS):
        if place >= length:
            return Header(place)
        head = read_at(stream, place, 16)
        id_bytes = 9 - head[0].bit_length()
        size_bytes = 9 - head[id_bytes].bit_length()
        if id_bytes > 4 or size_bytes > 8:  # no element: something was appended
            break
        largest = (1 << 7 * size_bytes) - 1
        size = _number(head[id_bytes : id_bytes + size_bytes]) & largest
        place += id_bytes + size_bytes
        if size == largest:  # unknown: what follows are its elements
            continue
        place += size
    return Header()


def _mp4(stream: BinaryIO, start: int, length: int) -> Header:
    if (count := mp4_entries(stream, start, length)) > _MOST_SAMPLES:
        counts = "is compressed" if math.isinf(count) else f"counts {count:.0f} samples"
        return Header(fault=f"its index {counts}, and {length} bytes are there")
    end = start
    for kind, place, size in islice(_boxes(stream, start, length), _MOST_CHUNKS):
        if not kind.isalnum() and not kind.isascii():  # no box: something was appended
            return Header(place)
        if size < 8:
            return Header()
        end = place + size
    return Header(end)


def _asf(stream: BinaryIO, start: int, length: int) -> Header:
    place = start + _number(read_at(stream, start + 16, 8), "little")
    data = read_at(stream, place, 24)
    size = _number(data[16:], "little")
    return Header(place + size) if data[:4] == b"\x36\x26\xb2\x75" and size else Header()


def _mp3(stream: BinaryIO, start: int, length: int) -> Header:
    """The bytes that a Xing or Info frame counts; without one nothing says how long an MP3 is."""
    frame = read_at(stream, start, 192)
    for mark in (b"Xing", b"Info"):
        at = frame.find(mark)
        if at > 0:
            flags, fields = _number(frame[at + 4 : at + 8]), frame[at + 8 :]
            if flags & 2:
                size = _number(fields[4:8] if flags & 1 else fields[:4])
                return Header(start + size) if size else Header()
    return Header()


def _ogg(stream: BinaryIO, start: int, length: int) -> Header:
    """The end of the last page (RFC 3533), which says how long it is."""
    begin = max(start, length - _LONGEST_PAGE)
    tail = read_at(stream, begin, length - begin)
    at = tail.rfind(b"OggS")
    page = tail[at:]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    complete = at >= 0 and len(page) > 26 and len(segments) == page[26]
    return Header(begin + at + 27 + len(segments) + sum(segments)) if complete else Header(length + 1)


_READERS: dict[str, Callable[[BinaryIO, int, int], Header]] = {
    "WAV": _wav, "RF64": _wav, "AU": _au, "Matroska or WebM": _matroska, "MP4": _mp4, "WMA": _asf, "MP3": _mp3,
    "Ogg": _ogg,
    "AIFF": partial(_chunk_end, b"SSND", 12, 8, "big", 2, _PIPED - (1 << 24)),  # sox pipes 0x7F000000
    "W64": partial(_chunk_end, b"data", 40, 24, "little", 8, 1 << 62),
    "CAF": partial(_chunk_end, b"data", 8, 12, "big", 1, 1 << 62),  # -1: to the end
}  # fmt: skip
