"""The inputs of fuzz_decoding.py: short recordings in every format that is decoded, playlists, and damage to them.

Everything is a function of (seed, index): the recordings are encoded on the spot, without random serial numbers.
"""

from __future__ import annotations

import io
import random
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from fuzz_worker import CANARY
from numpy.typing import NDArray

RATE = 8000
MAX_BYTES = 1 << 20  # of an input
TEXT = "text"  # in the names of inputs that are no audio

_SOUNDFILE = {  # name -> container, subtype, sample type and byte order of float samples
    "wav_u8": ("WAV", "PCM_U8", ""), "wav_16": ("WAV", "PCM_16", ""), "wav_24": ("WAV", "PCM_24", ""),
    "wav_32": ("WAV", "PCM_32", ""), "wav_float": ("WAV", "FLOAT", "<f"), "wav_double": ("WAV", "DOUBLE", "<d"),
    "wav_ulaw": ("WAV", "ULAW", ""), "wav_alaw": ("WAV", "ALAW", ""), "wav_gsm": ("WAV", "GSM610", ""),
    "wav_ima": ("WAV", "IMA_ADPCM", ""), "wav_ms": ("WAV", "MS_ADPCM", ""), "wavex": ("WAVEX", "PCM_16", ""),
    "wavex_float": ("WAVEX", "FLOAT", "<f"), "rf64": ("RF64", "PCM_16", ""), "w64": ("W64", "PCM_16", ""),
    "w64_float": ("W64", "FLOAT", "<f"), "aiff": ("AIFF", "PCM_16", ""), "aifc_float": ("AIFF", "FLOAT", ">f"),
    "aifc_ulaw": ("AIFF", "ULAW", ""), "au": ("AU", "PCM_16", ""), "au_float": ("AU", "FLOAT", ">f"),
    "au_ulaw": ("AU", "ULAW", ""), "caf": ("CAF", "PCM_16", ""), "caf_alac": ("CAF", "ALAC_16", ""),
    "caf_float": ("CAF", "FLOAT", ">f"), "flac": ("FLAC", "PCM_16", ""), "flac_24": ("FLAC", "PCM_24", ""),
    "ogg_vorbis": ("OGG", "VORBIS", ""), "ogg_opus": ("OGG", "OPUS", ""), "mp3": ("MP3", "MPEG_LAYER_III", ""),
}  # fmt: skip
_PYAV = {  # name -> muxer, codec, rate in Hz, bits a second
    "webm_opus": ("webm", "libopus", 48000, 32000), "mka_flac": ("matroska", "flac", 16000, 0),
    "m4a": ("ipod", "aac", 16000, 48000), "mp4_fragments": ("mp4", "aac", 16000, 48000),
    "adts": ("adts", "aac", 16000, 48000), "wma": ("asf", "wmav2", 16000, 32000),
    "amr": ("amr", "libopencore_amrnb", 8000, 12200), "3gp": ("3gp", "libopencore_amrnb", 8000, 12200),
}  # fmt: skip
_PLAYLISTS = {
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "ffconcat": f"ffconcat version 1.0\nfile {CANARY}\n",
    "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{CANARY}\n#EXT-X-ENDLIST\n",
    "m3u8_http": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "pls": f"[playlist]\nFile1={CANARY}\nLength1=1\nNumberOfEntries=1\nVersion=2\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    f'mimeType="audio/mp4"><Representation id="a" bandwidth="1"><BaseURL>{CANARY}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>\n",
    "asx": f'<asx version="3.0"><entry><ref href="{CANARY}"/></entry></asx>\n',
    "rtsp": "RTSPtextRTSP://127.0.0.1:9/x\n",
    "ffmetadata": ";FFMETADATA1\ntitle=x\n",
    "srt": "1\n00:00:00,000 --> 00:00:01,000\nseven\n",
    "html": "<!doctype html><title>seven</title><audio src=diary.wav></audio>\n",
    "imf": '<?xml version="1.0"?>\n<CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">'
    "<Id>urn:uuid:0</Id></CompositionPlaylist>\n",
    "smil": f'<smil><body><audio src="{CANARY}"/></body></smil>\n',
    "words": "This is a letter about the number seven, and no recording of it.\n" * 4,
}
FORMATS = (*_SOUNDFILE, *_PYAV, TEXT)

_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
_TAGS = re.compile(
    b"|".join(map(re.escape, (
        b"RIFF", b"fmt ", b"data", b"fact", b"PEAK", b"ds64", b"FORM", b"COMM", b"SSND", b".snd", b"desc", b"pakt",
        b"fLaC", b"OggS", b"vorbis", b"OpusHead", b"OpusTags", b"moov", b"mvhd", b"mdhd", b"stsd", b"mp4a", b"esds",
        b"stts", b"stsc", b"stsz", b"stco", b"trun", b"tfhd", b"samr", b"ID3", b"Xing", b"Info", b"LAME", b"#!AMR",
        b"\x1a\x45\xdf\xa3", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75", b"\x30\x26\xb2\x75",
        b"\xa1\xdc\xab\x8c", b"\x91\x07\xdc\xb7", b"\xff\xf1", b"\xff\xfb", b"\xff\xf3", b"\xff\xe3",
    )))
)  # fmt: skip
_VALUES = (
    0, 1, 2, 3, 7, 8, 16, 48, 255, 256, 1000, 8000, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 655_350, 768_001, 0xFFFFFF,
    0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1,
)  # fmt: skip
_FLOATS = (
    float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e38, 1e30, 1e19, -1e10, 1e5, 40.0, 1e-38, 1e-45, 0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Recording:
    """A whole file of a format; `floats` is the struct code of its samples where they are floats."""

    format: str
    content: bytes
    floats: str = ""

    @property
    def is_audio(self) -> bool:
        return not self.format.startswith(TEXT)


@dataclass(frozen=True)
class Input:
    """What is decoded, and how it came about."""

    index: int
    format: str
    mutations: tuple[str, ...]
    content: bytes = field(repr=False)
    is_audio: bool

    @property
    def is_whole(self) -> bool:
        return not self.mutations


def recordings(formats: tuple[str, ...] = FORMATS) -> list[Recording]:
    """One recording of half a second or so of each of `formats`; playlists and other text for "text"."""
    from ml_training.data.tts import VOICES, say

    words = ("seven", "three", "nine", "zero", "four")
    clips = say([(VOICES[place], word) for place, word in enumerate(words)], seed=0)
    spoken = [np.asarray(clip, dtype=np.float32) * (0.5 / float(np.abs(clip).max())) for clip in clips]
    made = []
    for place, name in enumerate(FORMATS):
        clip = spoken[place % len(spoken)]
        if name not in formats:
            continue
        if name in _SOUNDFILE:
            container, subtype, floats = _SOUNDFILE[name]
            made.append(Recording(name, _by_soundfile(clip, container, subtype), floats))
        elif name in _PYAV:
            made.append(Recording(name, _by_pyav(clip, name, *_PYAV[name])))
        else:
            made += [Recording(f"{TEXT}_{kind}", text.encode()) for kind, text in _PLAYLISTS.items()]
    return made


def make_input(base: list[Recording], seed: int, index: int) -> Input:
    """The input of a number: the recordings as they are first, then damaged ones."""
    if index < len(base):
        chosen = base[index]
        return Input(index, chosen.format, (), chosen.content, chosen.is_audio)
    rng = random.Random(f"{seed}/{index}")
    chosen = rng.choice(base)
    if not chosen.is_audio:  # one format, though there are many such files
        chosen = rng.choice(base)
    content = chosen.content
    mutations = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        name = rng.choice(list(_MUTATIONS))
        if name == "floats" and not chosen.floats:
            name = "field"
        content = _MUTATIONS[name](content, chosen, base, rng)[:MAX_BYTES]
        mutations.append(name)
    if b"OggS" in content[:4] and rng.random() < 0.7:  # or no page of it would reach a codec
        content = _with_sums(content)
        mutations.append("sums")
    return Input(index, chosen.format, tuple(mutations), content, chosen.is_audio)


# --- damage --------------------------------------------------------------------------------------


def _bits(content: bytes, _: Recording, __: list[Recording], rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _i in range(rng.choice((1, 2, 8, 64)) if changed else 0):
        changed[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _bytes(content: bytes, _: Recording, __: list[Recording], rng: random.Random) -> bytes:
    place, count = _place(content, rng), rng.choice((1, 2, 4, 16, 64, 512))
    run = rng.choice((rng.randbytes(count), bytes(count), b"\xff" * count))
    return content[:place] + run + content[place + (count if rng.random() < 0.7 else 0) :]


def _field(content: bytes, _: Recording, __: list[Recording], rng: random.Random) -> bytes:
    """A number near the beginning or near a tag becomes 0, 1, the largest or a rate nobody uses."""
    tags = [found.start() for found in _TAGS.finditer(content[:4096])]
    place = max(0, (rng.choice(tags) if tags and rng.random() < 0.8 else 0) + rng.randrange(48))
    width = rng.choice((1, 2, 2, 4, 4, 4, 8))
    value = rng.choice(_VALUES) & ((1 << 8 * width) - 1)
    return content[:place] + value.to_bytes(width, rng.choice(("little", "big"))) + content[place + width :]


def _cut(content: bytes, _: Recording, __: list[Recording], rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _repeat(content: bytes, _: Recording, __: list[Recording], rng: random.Random) -> bytes:
    begin, end = sorted((_place(content, rng), _place(content, rng)))
    times = min(rng.choice((2, 3, 10, 100, 1000)), (1 << 19) // (end - begin + 1))
    return content[:begin] + content[begin:end] * times + content[end:]


def _splice(content: bytes, _: Recording, base: list[Recording], rng: random.Random) -> bytes:
    """The beginning of one file before the end of another."""
    other = rng.choice(base).content
    if rng.random() < 0.3:
        return content + other
    return content[: _place(content, rng)] + other[_place(other, rng) :]


def _chunks(content: bytes, _: Recording, __: list[Recording], rng: random.Random) -> bytes:
    """Chunks, boxes or pages in another order, twice or left out."""
    head, parts = _parts(content, rng)
    if len(parts) < 2:
        return content
    one, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    how = rng.randrange(4)
    if how == 0:
        parts[one], parts[other] = parts[other], parts[one]
    elif how == 1:
        parts.insert(other, parts[one])
    elif how == 2:
        del parts[one]
    else:
        rng.shuffle(parts)
    return head + b"".join(parts)


def _floats(content: bytes, recording: Recording, _: list[Recording], rng: random.Random) -> bytes:
    """Samples that are huge, tiny, infinite or no number."""
    width = struct.calcsize(recording.floats)
    samples = bytearray(content)
    count = min(rng.choice((1, 1, 10, 1000, 100_000)), len(samples) // width - 40)
    value = struct.pack(recording.floats, rng.choice(_FLOATS))
    first = rng.randrange(1, max(2, len(samples) // width - 40 - count))
    begin = len(samples) - (first + count) * width
    if count > 0 and begin > 0:
        samples[begin : begin + count * width] = value * count
    return bytes(samples)


_MUTATIONS: dict[str, Callable[[bytes, Recording, list[Recording], random.Random], bytes]] = {
    "bits": _bits, "bytes": _bytes, "field": _field, "cut": _cut, "repeat": _repeat, "splice": _splice,
    "chunks": _chunks, "floats": _floats,
}  # fmt: skip


def _place(content: bytes, rng: random.Random) -> int:
    """A place in a file, in its head as often as anywhere."""
    most = max(1, len(content))
    return rng.randrange(min(most, 128)) if rng.random() < 0.5 else rng.randrange(most)


def _parts(content: bytes, rng: random.Random) -> tuple[bytes, list[bytes]]:
    """What precedes the chunks of a file, and these."""
    if content[:4] in (b"RIFF", b"RF64"):
        return content[:12], _sized(content[12:], "<4xI", 8, 2)
    if content[:4] == b"FORM":
        return content[:12], _sized(content[12:], ">4xI", 8, 2)
    if content[:4] == b"caff":
        return content[:8], _sized(content[8:], ">4xq", 12, 1)
    if content[4:8] == b"ftyp":
        return b"", _sized(content, ">I4x", 0, 1)
    if content[:4] == b"OggS":
        return b"", [b"OggS" + part for part in content.split(b"OggS")[1:]]
    size = rng.choice((16, 64, 256, 1024))
    return b"", [content[i : i + size] for i in range(0, len(content), size)]


def _sized(content: bytes, head: str, head_bytes: int, align: int) -> list[bytes]:
    parts, place, step = [], 0, struct.calcsize(head)
    while place + step <= len(content):
        size = max(step, head_bytes + struct.unpack_from(head, content, place)[0])
        size += -size % align
        parts.append(content[place : place + size])
        place += size
    return [*parts, content[place:]]


# --- encoding ------------------------------------------------------------------------------------


def _by_soundfile(samples: NDArray[np.float32], container: str, subtype: str) -> bytes:
    import soundfile

    memory = io.BytesIO()
    soundfile.write(memory, samples, RATE, subtype=subtype, format=container)
    content = memory.getvalue()
    if (peak := content.find(b"PEAK")) >= 0:  # holds the moment of writing
        content = content[: peak + 12] + bytes(4) + content[peak + 16 :]
    return _with_sums(content) if container == "OGG" else content


def _by_pyav(samples: NDArray[np.float32], name: str, muxer: str, codec: str, rate: int, bits: int) -> bytes:
    import av
    import soxr

    memory = io.BytesIO()
    options = {"fflags": "+bitexact"} | ({"movflags": "frag_keyframe+empty_moov"} if name == "mp4_fragments" else {})
    wave = np.clip(soxr.resample(samples, RATE, rate), -1, 1)
    with av.open(memory, "w", format=muxer, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = bits
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return memory.getvalue()


def _with_sums(ogg: bytes) -> bytes:
    """The pages of an Ogg file with one serial number and right checksums (RFC 3533, section 6)."""
    first, *parts = ogg.split(b"OggS")
    fixed = [first]
    for part in parts:
        page = bytearray(b"OggS" + part)
        if len(page) >= 27:
            page[14:18] = bytes(4)
            page[22:26] = bytes(4)
            # That sum takes the highest bit of a byte first, zlib's the lowest.
            mirrored = zlib.crc32(bytes(page).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
            page[22:26] = int(f"{mirrored:032b}"[::-1], 2).to_bytes(4, "little")
        fixed.append(bytes(page))
    return b"".join(fixed)
