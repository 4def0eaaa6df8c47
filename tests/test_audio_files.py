"""Which files are opened, by which reader, and what is refused before a sample is decoded."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from audio_bytes import PLAYLISTS, av_file, movie_of_another_file, sound_file, tone

from digit_detector.audio import AUDIO_SUFFIXES, decode, file_blocks, load_audio
from digit_detector.audio_headers import mp4_entries
from digit_detector.audio_streams import MAX_PIPE_BYTES
from digit_detector.errors import (
    AudioError,
    ConfigError,
    EmptyAudioError,
    TooLongAudioError,
    TruncatedAudioError,
    UndecodableAudioError,
)

CHILD = Path(__file__).with_name("no_opens.py")


def run_child(reader: str, good: dict[str, bytes], others: dict[str, bytes]) -> subprocess.CompletedProcess[str]:
    cases = [[name, base64.b64encode(content).decode()] for name, content in {**good, **others}.items()]
    done = subprocess.run(
        [sys.executable, CHILD, reader, str(len(good))], input=json.dumps(cases), capture_output=True, text=True,
        timeout=60, env={"PYTHONPATH": str(CHILD.parents[1])},
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("this system cannot forbid calls to a process")
    return done


def test_decoders_never_open_files_or_sockets():
    movie = movie_of_another_file("/etc/hostname")
    others = {f"{name} in {mark!r}": mark + content for name, content in PLAYLISTS.items() for mark in (
        b"#!AMR\n", b"\x1a\x45\xdf\xa3", b"\0\0\0\x14ftypM4A \0\0\0\0M4A ", b"ID3\4\0\0\0\0\0\0", b"OggS",
    )}  # fmt: skip
    kinds = {
        "wav": sound_file(tone(8000), 8000), "webm": av_file("webm", "libopus", 48_000),
        "m4a": av_file("ipod", "aac", 16_000, "fltp"), "amr": av_file("amr", "libopencore_amrnb", 8000, "s16"),
        "adts": av_file("adts", "aac", 16_000, "fltp"), "wav of mp3": av_file("wav", "libmp3lame", 16_000, "s16p"),
    }  # fmt: skip
    done = run_child("ours", kinds, {**PLAYLISTS, "movie": movie, **others})
    assert done.returncode == 0, f"{done.returncode} at {done.stderr[-300:]}"
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    assert {name: found[name] for name in kinds} == dict.fromkeys(kinds)
    assert {found[name] for name in PLAYLISTS} == {"UndecodableAudioError"}
    assert found["movie"] == "EmptyAudioError"


@pytest.mark.parametrize("name", ["sdp", "movie"])
def test_unrestricted_ffmpeg_would_open_them(name):
    """So that the test above can fail."""
    content = movie_of_another_file("/etc/hostname") if name == "movie" else PLAYLISTS[name]
    done = run_child("ffmpegs", {"wav": sound_file(tone(8000), 8000)}, {name: content})
    assert done.returncode == -31, "SIGSYS: the system ends what makes a forbidden call"
    assert done.stderr.split()[-1] == name


@pytest.mark.parametrize("container", ["MAT4", "MAT5", "XI", "VOC", "PAF", "SDS", "HTK", "IRCAM", "NIST", "SVX", "PVF"])
def test_other_libsndfile_formats_are_rejected(container):
    rate = 44_100 if container == "XI" else 8000
    subtype = soundfile.default_subtype(container)
    with pytest.raises(UndecodableAudioError, match="begins like none of AAC, AIFF"):
        load_audio(sound_file(tone(rate), rate, subtype, container))


def test_video_and_unlisted_codecs_are_refused():
    with pytest.raises(UndecodableAudioError, match=r"unsupported audio codec.*ac3"):
        load_audio(av_file("matroska", "ac3", 48_000, "fltp"))


MADE = {
    "wav": lambda: sound_file(tone(8000), 8000),
    "wavex": lambda: sound_file(tone(8000), 8000, container="WAVEX"),
    "rf64": lambda: sound_file(tone(8000), 8000, container="RF64"),
    "w64": lambda: sound_file(tone(8000), 8000, container="W64"),
    "aiff": lambda: sound_file(tone(8000), 8000, container="AIFF"),
    "au": lambda: sound_file(tone(8000), 8000, container="AU"),
    "caf": lambda: sound_file(tone(8000), 8000, container="CAF"),
    "flac": lambda: sound_file(tone(8000), 8000, container="FLAC"),
    "vorbis": lambda: sound_file(tone(8000), 8000, "VORBIS", "OGG"),
    "opus": lambda: sound_file(tone(48_000), 48_000, "OPUS", "OGG"),
    "mp3": lambda: sound_file(tone(16_000), 16_000, "MPEG_LAYER_III", "MP3"),
    "webm": lambda: av_file("webm", "libopus", 48_000),
    "live webm": lambda: av_file("webm", "libopus", 48_000, piped=True),
    "mka": lambda: av_file("matroska", "pcm_s16le", 8000, "s16"),
    "m4a": lambda: av_file("ipod", "aac", 16_000, "fltp"),
    "mov": lambda: av_file("mov", "pcm_s16le", 8000, "s16"),
    "3gp": lambda: av_file("3gp", "libopencore_amrnb", 8000, "s16"),
    "wav of mp3": lambda: av_file("wav", "libmp3lame", 16_000, "s16p"),
    "amr": lambda: av_file("amr", "libopencore_amrnb", 8000, "s16"),
}


@pytest.mark.parametrize("kind", MADE)
def test_truncated_files_raise(kind):
    content = MADE[kind]()
    assert len(decode(content)) > 3000
    for size in np.linspace(13, len(content) - 1, 25).astype(int):
        if kind == "amr" and not (size - 6) % 13:  # between two frames nothing is missing
            continue
        with pytest.raises(AudioError):
            decode(content[: int(size)])
    with pytest.raises(AudioError if kind == "flac" else TruncatedAudioError):
        decode(content[:-1])


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_piped_wavs_without_a_size(size):
    content = bytearray(sound_file(tone(8000), 8000))
    expected = decode(bytes(content))
    content[4:8] = content[40:44] = size.to_bytes(4, "little")
    np.testing.assert_array_equal(decode(bytes(content)), expected)
    finished = bytearray(sound_file(np.zeros(0, np.float32), 8000)) + b"LIST\4\0\0\0INFO"
    finished[4:8] = (len(finished) - 8).to_bytes(4, "little")
    with pytest.raises(EmptyAudioError):
        decode(bytes(finished))


class CountingFile(io.BytesIO):
    """Counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.count += len(content)
        return content


@pytest.mark.parametrize(
    ("rate", "channels", "words"),
    [(1, 1, "sample rate of 1"), (655_350, 8, "8 channels at 655350 Hz"), (8000, 255, "255 channels"), (999, 1, "999")],
)
def test_rates_and_channels_are_refused_from_the_header(rate, channels, words):
    container = "FLAC" if rate > 999 and channels <= 8 else "WAV"
    content = sound_file(np.zeros((200_000 // channels, channels), np.float32), rate, container=container)
    file = CountingFile(content if container == "WAV" else content + bytes(1 << 20))
    with pytest.raises(UndecodableAudioError, match=words):
        load_audio(file)
    assert file.count < 1 << 16


def test_length_is_refused_from_the_header_and_blocks_are_small_whatever_the_channels():
    content = sound_file(np.zeros((90_000, 8), np.float32), 8000, container="FLAC")
    sizes = {block.size for _, block in file_blocks(content)}
    assert max(sizes) <= 1 << 16
    with pytest.raises(TooLongAudioError, match="longer than 10 s"):
        next(file_blocks(content, max_seconds=10))
    webm = av_file("webm", "libopus", 48_000, seconds=3)
    with pytest.raises(TooLongAudioError, match="longer than 2 s"):
        next(file_blocks(webm, max_seconds=2))
    streamed = av_file("webm", "libopus", 48_000, seconds=3, piped=True)  # whose header does not say it
    with pytest.raises(TooLongAudioError, match="longer than 2 s"):
        list(file_blocks(streamed, max_seconds=2))


def test_oversized_mp4_tables_are_rejected():
    content = bytearray(MADE["3gp"]())
    at = content.find(b"stsz")
    assert content[at + 8 : at + 12] == (13).to_bytes(4, "big"), "all of one size"
    content[at + 12 : at + 16] = (1 << 26).to_bytes(4, "big")
    with pytest.raises(UndecodableAudioError, match="its index counts 67108864 samples"):
        load_audio(bytes(content))


def test_id3_tags_are_skipped():
    size = 3 << 20
    tag = b"ID3\4\0\0" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127]) + b"x" * size
    for content in (MADE["mp3"](), MADE["flac"](), av_file("adts", "aac", 16_000, "fltp")):
        file = CountingFile(tag + bytes(100) + content)
        np.testing.assert_array_equal(decode(file), decode(content))
        assert file.count < 1 << 20


def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path):
    resource = pytest.importorskip("resource")
    assert resource is not None
    path = tmp_path / "long.flac"
    word, pause = tone(8000), np.zeros(8000 * 600, np.float32)
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16") as file:
        file.write(word)
        for _ in range(5):
            file.write(pause)
    code = (
        "import resource, sys, numpy as np\nfrom digit_detector.audio import load_audio\nload_audio(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nfound = load_audio(sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, float(np.abs(found).max()))"
    )
    short = tmp_path / "short.flac"
    soundfile.write(short, word, 8000)
    done = subprocess.run(
        [sys.executable, "-c", code, short, path], capture_output=True, text=True, check=True, timeout=60
    )
    grown, peak = done.stdout.split()
    assert float(peak) == pytest.approx(0.5, abs=0.01)
    assert int(grown) < 40 << 10, "kilobytes; fifty minutes are 96 MB at 8 kHz"


def raw(samples: np.ndarray, rate: int, subtype: str) -> bytes:
    return sound_file(samples, rate, subtype, "RAW")


TELEPHONE = {
    ".ul": ("mulaw", lambda: raw(tone(8000), 8000, "ULAW")), ".ULAW": ("mulaw", lambda: raw(tone(8000), 8000, "ULAW")),
    ".al": ("alaw", lambda: raw(tone(8000), 8000, "ALAW")), ".alaw": ("alaw", lambda: raw(tone(8000), 8000, "ALAW")),
    ".sln": ("s16", lambda: raw(tone(8000), 8000, "PCM_16")), ".gsm": ("gsm", lambda: raw(tone(8000), 8000, "GSM610")),
    ".vox": ("vox", lambda: raw(tone(8000), 8000, "VOX_ADPCM")),
    ".g722": ("g722", lambda: av_file("g722", "g722", 16_000, "s16", 0.5)),
}  # fmt: skip


@pytest.mark.parametrize("suffix", TELEPHONE)
def test_telephone_sound_is_decoded_by_its_name_and_by_its_encoding(suffix, tmp_path):
    encoding, make = TELEPHONE[suffix]
    content = make()
    path = tmp_path / f"call{suffix}"
    path.write_bytes(content)
    samples = decode(path)
    expected = tone(8000)
    assert abs(len(samples) - len(expected)) <= 400  # whole frames
    padded = np.r_[samples, np.zeros(400, np.float32)]
    error = min(np.abs(padded[i : i + 4000] - expected).max() for i in range(200))
    assert error < 0.08, "as the encoding rounds"
    np.testing.assert_array_equal(decode(content, encoding=encoding), samples)
    with path.open("rb") as file:
        np.testing.assert_array_equal(decode(file), samples)
    assert suffix.lower() in AUDIO_SUFFIXES
    with pytest.raises(AudioError):
        load_audio(content)


def test_a_rate_may_be_given_with_an_encoding_but_for_those_that_have_one():
    content = raw(tone(16_000), 16_000, "PCM_16")
    expected = soxr.resample(tone(16_000), 16_000, 8000)
    np.testing.assert_allclose(decode(content, 16_000, "s16"), expected, atol=1e-3)
    with pytest.raises(ConfigError, match="gsm has 8000 Hz and no other, got 16000"):
        decode(content, 16_000, "gsm")
    with pytest.raises(ConfigError, match="encoding: expected one of mulaw, alaw"):
        decode(content, 16_000, "mp3")
    with pytest.raises(UndecodableAudioError, match="array"):
        decode(tone(8000), 8000, "s16")
    wav = sound_file(tone(8000), 8000)
    np.testing.assert_array_equal(decode(wav, encoding="mulaw"), decode(wav))


def test_a_raw_file_wants_its_encoding(tmp_path):
    path = tmp_path / "call.raw"
    path.write_bytes(raw(tone(8000), 8000, "ULAW"))
    with pytest.raises(UndecodableAudioError, match="without a header give its encoding"):
        load_audio(path)
    assert load_audio(path, encoding="mulaw").any()


def test_amr_without_transmission_in_pauses_is_decoded():
    """Type 15 says that nothing was sent, type 8 describes the noise meanwhile."""
    content = av_file("amr", "libopencore_amrnb", 8000, "s16")
    frames = [content[i : i + 13] for i in range(6, len(content), 13)]
    assert {frame[0] >> 3 & 15 for frame in frames} == {0}, "4.75 kbit/s: 12 bytes and the type"
    nothing, noise = b"\x7c", b"\x44" + bytes(5)
    paused = [noise if i % 8 == 0 else nothing if i % 2 else frames[i] for i in range(len(frames))]
    found = decode(content[:6] + b"".join(paused))
    assert len(found) == 160 * len(frames)
    assert not found[: 160 * 2].any(), "noise and nothing are silent"
    whole = decode(content)
    spoken = decode(content[:6] + nothing * 10 + b"".join(frames))
    np.testing.assert_array_equal(spoken[1600:], whole)


class Pipe(io.RawIOBase):
    """Sends `content` again and again, and counts what is taken of it."""

    def __init__(self, content: bytes) -> None:
        self.content, self.sent = content, 0

    def read(self, size: int = -1) -> bytes:
        self.sent += size
        return (self.content * (size // len(self.content) + 1))[:size]


def test_pipes_are_checked_and_limited():
    letters = Pipe(b"this is no sound ")
    with pytest.raises(UndecodableAudioError, match="begins like none"):
        load_audio(letters)  # type: ignore[arg-type]
    assert letters.sent <= 64
    endless = Pipe(sound_file(tone(8000), 8000))
    with pytest.raises(AudioError, match="sent over 256 MB"):
        load_audio(endless)  # type: ignore[arg-type]
    assert endless.sent < MAX_PIPE_BYTES + (1 << 20)


def test_damaged_headers_print_nothing(capfd):
    rng = np.random.default_rng(0)
    for kind in ("aiff", "wav", "w64", "caf", "au"):
        whole = MADE[kind]()
        for _ in range(150):
            content = bytearray(whole)
            for place in rng.integers(0, 100, 4):
                content[place] = rng.integers(256)
            with contextlib.suppress(AudioError):
                load_audio(bytes(content))
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return av_file("mp4", "aac", 16_000)


def entries(content: bytes) -> float:
    return mp4_entries(io.BytesIO(content), 0, len(content))


def with_field(content: bytes, table: bytes, place: int, value: int) -> bytes:
    at = content.index(table) + 4 + place
    return content[:at] + value.to_bytes(4, "big") + content[at + 4 :]


def test_samples_are_counted_in_the_tables(mp4):
    assert 10 < entries(mp4) < 30  # a second in frames of 64 ms, and what the encoder puts before it
    assert entries(with_field(mp4, b"stsz", 8, 80_000_000)) == 80_000_000
    constant = with_field(with_field(mp4, b"stsz", 4, 2), b"stsz", 8, 1000)
    assert len(mp4) > 2000
    assert entries(constant) == 0  # a thousand samples of two bytes can be there
    fragment = b"\0\0\0\x1cmoof" + b"\0\0\0\x14trun" + bytes(4) + (5000).to_bytes(4, "big") + bytes(4)
    assert entries(mp4 + 2 * fragment) == entries(mp4) + 10_000
    assert entries(b"\0\0\0\x20mdat" + b"stsz" + b"\xff" * 20 + mp4) == entries(mp4)  # that is sound
    table = b"stsz" + bytes(8) + (7).to_bytes(4, "big")
    for before in ((1 << 20) - 11, (1 << 20) - 8, (1 << 20) - 3):  # across the end of what is searched at a time
        assert entries((8 + before + len(table)).to_bytes(4, "big") + b"moov" + bytes(before) + table) == 7
    assert entries(mp4.replace(b"stsz", b"cmov")) == float("inf")


@pytest.mark.parametrize(("table", "place"), [(b"stsz", 8), (b"trun", 4)])
def test_huge_mp4_tables_are_rejected(table, place, mp4):
    load_audio(mp4)
    fragment = b"\0\0\0\x1cmoof" + b"\0\0\0\x14trun" + bytes(12)
    with pytest.raises(UndecodableAudioError, match=r"its index counts 800000\d+ samples"):
        load_audio(with_field(mp4 + fragment, table, place, 80_000_000) + b"\0\0\0\1wide")  # a box without its size
