"""Tables of an MP4 that promise more than any recording holds."""

from __future__ import annotations

import io

import pytest
from audio_bytes import av_file

from digit_detector.audio import load_audio
from digit_detector.audio_headers import mp4_entries
from digit_detector.errors import UndecodableAudioError


@pytest.fixture(scope="module")
def whole() -> bytes:
    return av_file("mp4", "aac", 16_000)


def entries(content: bytes) -> float:
    return mp4_entries(io.BytesIO(content), 0, len(content))


def with_field(content: bytes, table: bytes, place: int, value: int) -> bytes:
    at = content.index(table) + 4 + place
    return content[:at] + value.to_bytes(4, "big") + content[at + 4 :]


def test_samples_are_counted_in_the_tables(whole: bytes) -> None:
    assert 10 < entries(whole) < 30  # a second in frames of 64 ms, and what the encoder puts before it
    assert entries(with_field(whole, b"stsz", 8, 80_000_000)) == 80_000_000
    constant = with_field(with_field(whole, b"stsz", 4, 2), b"stsz", 8, 1000)
    assert len(whole) > 2000
    assert entries(constant) == 0  # a thousand samples of two bytes can be there
    fragment = b"\0\0\0\x1cmoof" + b"\0\0\0\x14trun" + bytes(4) + (5000).to_bytes(4, "big") + bytes(4)
    assert entries(whole + 2 * fragment) == entries(whole) + 10_000
    assert entries(b"\0\0\0\x20mdat" + b"stsz" + b"\xff" * 20 + whole) == entries(whole)  # that is sound
    table = b"stsz" + bytes(8) + (7).to_bytes(4, "big")
    for before in ((1 << 20) - 11, (1 << 20) - 8, (1 << 20) - 3):  # across the end of what is searched at a time
        assert entries((8 + before + len(table)).to_bytes(4, "big") + b"moov" + bytes(before) + table) == 7
    assert entries(whole.replace(b"stsz", b"cmov")) == float("inf")


@pytest.mark.parametrize(("table", "place"), [(b"stsz", 8), (b"trun", 4)])
def test_huge_mp4_tables_are_rejected(table: bytes, place: int, whole: bytes) -> None:
    load_audio(whole)
    fragment = b"\0\0\0\x1cmoof" + b"\0\0\0\x14trun" + bytes(12)
    with pytest.raises(UndecodableAudioError, match=r"its index counts 800000\d+ samples"):
        load_audio(with_field(whole + fragment, table, place, 80_000_000) + b"\0\0\0\1wide")  # a box without its size
