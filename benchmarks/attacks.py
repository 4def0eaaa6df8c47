"""Uploads made to harm: what they do to another client's upload and live stream, and to the server's memory.

python benchmarks/attacks.py                       every attack, from another address and from the same one
python benchmarks/attacks.py --only flac hang_up   some of them; --update-docs writes the table of docs/web.md

Server, attackers and the client that is measured run on this machine, at addresses of 127.0.0.0/8. The client
uploads a word again and again while it streams digits over a WebSocket; each attack goes on as long.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import json
import os
import socket
import statistics
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from web_load import PIECE, RATE, Server, sound, write_table

from digit_detector.audio import SAMPLE_RATE
from ml_training.data.tts import VOICES, say

CLIENT, OTHER = "127.0.0.1", "127.0.0.2"
_AT_ONCE = 8  # uploads of an attacker
_EVERY = 1.0  # seconds from one volley to the next
_PAUSE = 0.1  # seconds between two uploads of the client
_PATIENCE = 30.0  # seconds for an answer
_KEPT_BYTES = 60_000_000
_FASTEST = 768_000  # Hz


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each attack")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="some of the attacks")
    parser.add_argument("--out", help="a JSON file for the figures")
    parser.add_argument("--update-docs", action="store_true")
    args = parser.parse_args()
    attacks = make_attacks(args.only)
    with Server() as server:
        found = measure(server, attacks, args.seconds)
    print(json.dumps(found, indent=2))
    print(table(found))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=2) + "\n")
    if args.update_docs:
        write_table("attacks", table(found))
    return 0


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        "| attack | answers | median upload, times alone: attacked from another address / its own | longest, ms "
        "| digits lost | server, decoder, most MB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in found["attacks"]:
        runs = [row[kind] for kind in ("other", "same") if kind in row]
        cells = (
            row["title"], ", ".join(row["other"]["answers"]), " / ".join(f"{run['ratio']:.1f}" for run in runs),
            " / ".join(f"{run['most_ms']:.0f}" for run in runs), str(sum(run["lost"] for run in runs)),
            ", ".join(f"{max(run[of] for run in runs):.0f}" for of in ("server_mb", "decoder_mb")),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    alone = found["alone"]
    lines.append(
        f"| none: {alone['ms']:.1f} ms an upload, {alone['digits']} digits | 200 | 1 | {alone['most_ms']:.0f} | 0 "
        f"| {alone['server_mb']:.0f}, {alone['decoder_mb']:.0f} |"
    )
    return "\n".join(lines) + "\n"


# --- what is sent --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """Uploads that are sent at once, every second anew."""

    title: str
    volley: list[bytes]
    same: bool = True  # from the address of the client, too
    hang_up: bool = False  # half of them in the middle of the upload, half of them after it
    downloads: int = 0  # of kept sound, which nobody reads


def make_attacks(names: Sequence[str]) -> dict[str, Attack]:
    """Those of these names; all of them take a minute to make."""
    dearest = partial(zeros, 192_000, 8, 60, "FLAC", "PCM_16", compression_level=1.0)
    makers: dict[str, Callable[[], Attack]] = {
        "flac": lambda: Attack(
            "FLAC, 60 s of 8 channels at 655,350 Hz",
            [zeros(655_350, 8, 60, "FLAC", "PCM_16", compression_level=1.0)] * _AT_ONCE,
        ),
        "opus": lambda: Attack(
            "Opus, 2 MB of 255 channels", [lengthen(zeros(8000, 255, 1, "OGG", "OPUS"), 2_000_000)] * _AT_ONCE
        ),
        "vorbis": lambda: Attack(
            "Vorbis, 46 kB of 255 channels", [lengthen(zeros(8000, 255, 4, "OGG", "VORBIS"), 46_000)] * _AT_ONCE
        ),
        "sdp": lambda: Attack("SDP that opens ports", [sdp(1), sdp(1000)] * (_AT_ONCE // 2)),
        "playlists": lambda: Attack("lists of files and addresses", playlists()),
        "hz1": lambda: Attack("WAV that says 1 Hz", [wav_of(1, 1, np.zeros(3500, "<i2").tobytes())] * _AT_ONCE),
        "huge": lambda: Attack(
            "float WAV of 3e38", [wav_of(3, 8000, np.tile([3e38, -3e38], 6000).astype("<f4").tobytes())] * _AT_ONCE
        ),
        "tag": lambda: Attack("MP3 with a tag of 7 MB", [id3(7_000_000) + zeros(16_000, 1, 1, "MP3", None)] * 2),
        "dearest": lambda: Attack("the dearest FLAC that is taken", [dearest()] * _AT_ONCE, same=False),
        "hang_up": lambda: Attack("clients that hang up", [dearest()] * _AT_ONCE, hang_up=True),
        "unread": lambda: Attack("30 downloads of 60 MB, unread", [], downloads=30),
    }  # fmt: skip
    return {name: make() for name, make in makers.items() if name in names or not names}


def zeros(rate: int, channels: int, seconds: int, kind: str, subtype: str | None, **options: Any) -> bytes:
    file = io.BytesIO()
    block = np.zeros((1 << 18 if channels <= 8 else 1 << 12, channels), np.int16)
    with soundfile.SoundFile(file, "w", rate, channels, subtype, format=kind, **options) as out:
        left = rate * seconds
        while left:
            count = min(left, len(block))
            out.write(block[:count])
            left -= count
    return file.getvalue()


def lengthen(ogg: bytes, size: int) -> bytes:
    """An Ogg stream whose sound is repeated until it has about so many bytes (RFC 3533, section 6)."""
    pages, place = [], 0
    while place < len(ogg):
        lengths = ogg[place + 27 : place + 27 + ogg[place + 26]]
        end = place + 27 + len(lengths) + sum(lengths)
        pages.append(ogg[place:end])
        place = end
    heads = [page for page in pages if struct.unpack_from("<q", page, 6)[0] <= 0]
    sounds = pages[len(heads) :]
    span = struct.unpack_from("<q", sounds[-1], 6)[0]
    many = [*heads]
    times = max(1, (size - sum(map(len, heads))) // sum(map(len, sounds)))
    for turn in range(times):
        for number, page in enumerate(sounds):
            last = turn == times - 1 and number == len(sounds) - 1
            granule = struct.unpack_from("<q", page, 6)[0] + turn * span
            new = bytearray(page)
            new[5] = 4 if last else 0
            struct.pack_into("<q", new, 6, granule)
            struct.pack_into("<II", new, 18, len(many), 0)
            struct.pack_into("<I", new, 22, _ogg_sum(new))
            many.append(bytes(new))
    return b"".join(many)


def _ogg_sum(page: bytes | bytearray) -> int:
    total = 0
    for byte in page:
        total = (total << 8 & 0xFFFFFFFF) ^ _OGG_SUMS[total >> 24 ^ byte]
    return total


def _sum_of(byte: int) -> int:
    total = byte << 24
    for _ in range(8):
        total = total << 1 & 0xFFFFFFFF ^ (0x04C11DB7 if total & 0x80000000 else 0)
    return total


_OGG_SUMS = [_sum_of(byte) for byte in range(256)]


def sdp(tracks: int) -> bytes:
    head = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    return (
        head + "".join(f"m=audio {20_000 + 2 * i} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n" for i in range(tracks))
    ).encode()


def playlists() -> list[bytes]:
    address = "http://127.0.0.1:9/x"
    return [
        b"ffconcat version 1.0\nfile private/diary.wav\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}.ts\n#EXT-X-ENDLIST\n".encode(),
        f'<?xml version="1.0"?><MPD type="static"><BaseURL>{address}</BaseURL></MPD>'.encode(),
        f"[playlist]\nFile1={address}\nNumberOfEntries=1\n".encode(),
    ]


def wav_of(code: int, rate: int, samples: bytes) -> bytes:
    width = 2 if code == 1 else 4
    about = struct.pack("<HHIIHH", code, 1, rate, rate * width, width, 8 * width)
    chunks = b"fmt " + struct.pack("<I", len(about)) + about + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def id3(size: int) -> bytes:
    """A tag with one picture."""
    frame = b"APIC" + struct.pack(">I", size) + b"\0\0" + bytes(size)
    whole = len(frame)
    return b"ID3\3\0\0" + bytes(whole >> shift & 0x7F for shift in (21, 14, 7, 0)) + frame


# --- the client that is measured, and the attackers ----------------------------------------------


def ask(port: int, client: str, head: str, body: bytes = b"", hang_up_after: int | None = None) -> bytes:
    """A request -> the answer. Or so many bytes of it, and none."""
    whole = f"{head} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n".encode()
    whole += f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE, source_address=(client, 0)) as link:
        link.sendall(whole[:hang_up_after])
        if hang_up_after is not None:
            return b""
        answer = b""
        while part := link.recv(1 << 16):
            answer += part
    return answer


def form(recording: bytes) -> bytes:
    field_of = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    return (
        field_of % (b"method", b"")
        + b"ml_cnn\r\n"
        + field_of % (b"file", b'; filename="x"')
        + recording
        + b"\r\n--b--\r\n"
    )


def status(answer: bytes) -> str:
    return answer[9:12].decode() or "hung up"


def upload_for(port: int, seconds: float) -> tuple[list[float], int]:
    """How long each upload of a word took, in ms, and how many were not answered right."""
    file = io.BytesIO()
    soundfile.write(file, say([(VOICES[1], "seven")], seed=3)[0], SAMPLE_RATE, format="WAV")
    body, times, wrong = form(file.getvalue()), [], 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        answer = ask(port, CLIENT, "POST /process_audio", body)
        times.append(1e3 * (time.perf_counter() - began))
        wrong += b'"digit":7' not in answer
        time.sleep(_PAUSE)
    return times, wrong


def stream_for(port: int, seconds: float, digits: list[int]) -> None:
    """Digits over noise, in real time."""
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}/ws", max_size=None) as link:
        link.send(json.dumps({"type": "start", "sample_rate": RATE}))

        def listen() -> None:
            for message in link:
                event = json.loads(message)
                if event["type"] == "digit":
                    digits.append(event["digit"])
                elif event["type"] == "stopped":
                    return

        listening = threading.Thread(target=listen, daemon=True)
        listening.start()
        began = time.monotonic()
        for number, piece in enumerate(PIECES[: int(seconds / PIECE)]):
            time.sleep(max(0.0, began + number * PIECE - time.monotonic()))
            link.send(piece)
        link.send('{"type":"stop"}')
        listening.join(timeout=_PATIENCE)


PIECES = [piece[8:] for piece in sound()]  # without the head of a frame


@dataclass
class Attacker:
    """Sends volleys until it is told to stop."""

    port: int
    attack: Attack
    client: str
    session: str
    answers: Counter[str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        links = [self.download(i) for i in range(self.attack.downloads)]
        while not self.over.wait(_EVERY):
            threads = [threading.Thread(target=self.send, args=(i,)) for i in range(len(self.attack.volley))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for link in links:
            self.answers[status(link.recv(12))] += 1
            link.close()

    def send(self, number: int) -> None:
        body = form(self.attack.volley[number])
        cut = None
        if self.attack.hang_up:
            cut = len(body) // 2 if number % 2 else len(body) + 1000  # after all of it, the head's 200 bytes included
        try:
            answered = status(ask(self.port, self.client, "POST /process_audio", body, cut))
        except OSError as error:
            answered = type(error).__name__
        self.answers["none" if self.attack.hang_up else answered] += 1

    def download(self, number: int) -> socket.socket:
        client = self.client if self.client == CLIENT else f"127.0.0.{2 + number % 8}"
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.bind((client, 0))
        link.connect(("127.0.0.1", self.port))
        link.sendall(f"GET /sessions/{self.session}/audio HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
        return link


def kept_session(port: int) -> str:
    """A session with a recording of 60 MB."""
    from websockets.sync.client import connect

    head = (
        f"POST /sessions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    )
    asked = b'{"keep_audio": true}'
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as link:
        link.sendall(f"{head}Content-Length: {len(asked)}\r\n\r\n".encode() + asked)
        answer = b""
        while part := link.recv(1 << 16):
            answer += part
    name: str = json.loads(answer.partition(b"\r\n\r\n")[2])["id"]
    with connect(f"ws://127.0.0.1:{port}/ws?session={name}", max_size=None) as link:
        link.send(json.dumps({"type": "start", "sample_rate": _FASTEST}))
        threading.Thread(target=lambda: list(link), daemon=True).start()
        piece, began = bytes(1 << 16), time.monotonic()
        for number in range(_KEPT_BYTES >> 16):
            time.sleep(max(0.0, began + number * len(piece) / (2 * 1.8 * _FASTEST) - time.monotonic()))
            link.send(piece)
    return name


class Memory:
    """The most that the server and each decoder took since it began to look."""

    def __init__(self, server: int) -> None:
        self._server = server
        self.decoder_mb = 0.0
        self._over = threading.Event()
        with contextlib.suppress(OSError):
            Path(f"/proc/{server}/clear_refs").write_text("5")  # of VmHWM
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._looking.start()

    def stop(self) -> tuple[float, float]:
        self._over.set()
        self._looking.join()
        return _most_mb(self._server), self.decoder_mb

    def _look(self) -> None:
        while not self._over.wait(0.02):
            with contextlib.suppress(OSError):  # it has ended
                for pid in Path(f"/proc/{self._server}/task/{self._server}/children").read_text().split():
                    if b"decode_worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        self.decoder_mb = max(self.decoder_mb, _most_mb(int(pid)))


def _most_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0  # it has ended


def measure(server: Server, attacks: dict[str, Attack], seconds: float) -> dict[str, Any]:
    """All attacks on one server, each from another address and from that of the client."""
    session = kept_session(server.port) if any(attack.downloads for attack in attacks.values()) else ""
    alone = during(server, None, CLIENT, seconds, session)
    rows = []
    for name, attack in attacks.items():
        row: dict[str, Any] = {"name": name, "title": attack.title}
        for kind, client in (("other", OTHER), ("same", CLIENT))[: 1 + attack.same]:
            row[kind] = found = during(server, attack, client, seconds, session)
            found["ratio"] = found["ms"] / alone["ms"]
            found["lost"] = lost(alone["detected"], found["detected"])
            print(f"{name} from {client}: {found}", file=sys.stderr, flush=True)
        rows.append(row)
    return {"cores": os.cpu_count(), "seconds": seconds, "alone": alone, "attacks": rows}


def during(server: Server, attack: Attack | None, client: str, seconds: float, session: str) -> dict[str, Any]:
    """What the client sees meanwhile."""
    memory = Memory(server.pid)
    attacker = Attacker(server.port, attack, client, session) if attack else None
    digits: list[int] = []
    threads = [threading.Thread(target=stream_for, args=(server.port, seconds, digits), daemon=True)]
    if attacker:
        threads.append(threading.Thread(target=attacker.run, daemon=True))
    for thread in threads:
        thread.start()
    times, wrong = upload_for(server.port, seconds)
    if attacker:
        attacker.over.set()
    for thread in threads:
        thread.join()
    server_mb, decoder_mb = memory.stop()
    return {
        "ms": statistics.median(times), "most_ms": max(times), "uploads": len(times), "wrong": wrong,
        "detected": "".join(map(str, digits)), "digits": len(digits), "server_mb": server_mb, "decoder_mb": decoder_mb,
        "answers": dict(attacker.answers.most_common()) if attacker else {},
    }  # fmt: skip


def lost(alone: str, during: str) -> int:
    """How many digits of the first are not in the second, in their order."""
    matcher = difflib.SequenceMatcher(None, alone, during, autojunk=False)
    return len(alone) - sum(block.size for block in matcher.get_matching_blocks())


if __name__ == "__main__":
    sys.exit(main())
