"""Recordings as bytes, for the tests of decoding."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile


def tone(rate: int, seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
    """A tone with soft ends, float32 (T,)."""
    time = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hz * time) * np.hanning(len(time))).astype(np.float32)


def sound_file(samples: np.ndarray, rate: int, subtype: str = "PCM_16", container: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype=subtype, format=container)
    return file.getvalue()


def av_file(
    container: str, codec: str, rate: int, kind: str = "flt", seconds: float = 1.0, piped: bool = False
) -> bytes:
    """A tone as FFmpeg writes it; `piped` to where nothing can be put right afterwards."""
    av = pytest.importorskip("av", reason="this container needs the [formats] extra")
    samples = tone(rate, seconds)[None]
    if kind.startswith("s16"):
        samples = (samples * 32767).astype(np.int16)
    file = io.BytesIO()

    class Pipe:
        def write(self, content: bytes) -> int:
            return file.write(content)

    with av.open(Pipe() if piped else file, "w", format=container) as media:
        stream = media.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            media.mux(packet)
    return file.getvalue()


def movie_of_another_file(name: str) -> bytes:
    """A QuickTime movie that says its sound lies in the file `name`: an alias in its data references."""

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I4s", len(content) + 8, kind) + content

    def pascal(text: bytes, size: int) -> bytes:
        return bytes([len(text)]) + text.ljust(size, b"\0")

    path = name.encode()
    alias = bytes(10) + pascal(b"disk", 27) + bytes(12) + pascal(path, 63) + bytes(16) + struct.pack(">HH", 1, 1)
    alias += bytes(16) + struct.pack(">HH", 2, len(path)) + path + b"\0" * (len(path) % 2)
    alias += struct.pack(">HH", 0xFFFF, 0)
    references = box(b"dref", struct.pack(">II", 0, 1) + box(b"alis", bytes(4) + alias.ljust(200, b"\0")))
    content = av_file("mov", "pcm_s16le", 8000, "s16")

    def rebuilt(boxes: bytes) -> bytes:
        made = b""
        while boxes:
            size, kind = struct.unpack(">I4s", boxes[:8])
            inner, boxes = boxes[8:size], boxes[size:]
            if kind == b"dref":
                made += references
            elif kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
                made += box(kind, rebuilt(inner))
            else:
                made += box(kind, inner)
        return made

    return rebuilt(content)  # the sound comes before the part that grows


OTHER, ADDRESS = b"/etc/hostname", b"http://127.0.0.1:9/a"
# Playlists and scripts that make FFmpeg open other files and addresses.
PLAYLISTS: dict[str, bytes] = {
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9990 RTP/AVP 0\n",
    "ffconcat": b"ffconcat version 1.0\nfile " + OTHER + b"\n",
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n" + ADDRESS + b".ts\n#EXT-X-ENDLIST\n",
    "hls of files": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://" + OTHER + b"\n#EXT-X-ENDLIST\n",
    "hls of hls": b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n" + ADDRESS + b".m3u8\n",
    "m3u": b"#EXTM3U\n" + ADDRESS + b".mp3\n",
    "pls": b"[playlist]\nFile1=" + ADDRESS + b".mp3\nNumberOfEntries=1\nVersion=2\n",
    "dash": b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    b'<AdaptationSet contentType="audio"><Representation id="0" bandwidth="1"><BaseURL>' + ADDRESS
    + b"</BaseURL></Representation></AdaptationSet></Period></MPD>\n",
    "vapoursynth": b"import vapoursynth as vs\nvs.core.std.BlankClip().set_output()\n",
    "avisynth": b'WavSource("' + OTHER + b'")\n',
    "lavfi": b"amovie=" + OTHER + b"\n",
    "subrip": b"1\n00:00:00,000 --> 00:00:01,000\none\n",
    "rtp": bytes([0x80, 0x00]) + bytes(170),
    "sap": bytes([0x20, 0, 0, 0, 127, 0, 0, 1]) + b"application/sdp\0v=0\n",
}  # fmt: skip
