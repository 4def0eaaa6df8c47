"""Many WebSocket clients in real time on one server: how long a piece of sound takes, and what it costs.

python benchmarks/web_load.py                      100 clients for a minute
python benchmarks/web_load.py --seconds 300        for five; --update-docs writes the table of docs/web.md

Server and clients are processes of their own on this machine. A client sends digits over noise as the page does, 16-bit
samples at 48 kHz, 32 ms at a time; a round trip lasts from when a piece is sent until the server's status
counts it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from digit_detector.audio import SAMPLE_RATE
from ml_training.data.tts import VOICES, say

RATE = 48_000
PIECE = 0.032  # seconds
PAGE = Path(__file__).resolve().parents[1] / "docs" / "web.md"
_LOUD = 0.3
_ROUND_TRIP_MS = 50.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", help="a JSON file for the figures")
    parser.add_argument("--update-docs", action="store_true")
    args = parser.parse_args()
    pieces = sound()
    with Server(args.clients) as server:
        found = load(server, pieces, args.clients, args.seconds)
    print(json.dumps(found, indent=2))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=2) + "\n")
    if args.update_docs:
        write_table("load", table(found))
    return 0


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    trips, memory = found["round_trip_ms"], [megabytes for _, megabytes in found["server_mb"]]
    waits = " / ".join(str(trips[percentile]) for percentile in ("50", "99", "100"))
    within = f"share_within_{_ROUND_TRIP_MS:g}_ms"
    rows = {
        "clients, seconds, clients lost": f"{found['clients']}, {found['seconds']:g}, {found['lost']}",
        "pieces of 32 ms sent / processed": f"{found['pieces']:,} / {found['processed']:,}",
        "until the status that counts a piece, p50 / p99 / most, ms": waits,
        f"pieces processed within {_ROUND_TRIP_MS:g} ms, %": f"{100 * found[within]:.2f}",
        "cores that the server took / the clients": f"{found['server_cores']} / {found['client_cores']}",
        "memory of the server's processes at the beginning / end, MB": f"{memory[0]:.0f} / {memory[-1]:.0f}",
    }
    return "\n".join(["| | |", "|---|---:|", *(f"| {title} | {cell} |" for title, cell in rows.items())]) + "\n"


def write_table(name: str, table: str) -> None:
    """Put a table between its marks in docs/web.md."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = PAGE.read_text(encoding="utf-8").split(begin)
    PAGE.write_text(f"{before}{begin}\n{table}{end}{rest.split(end)[1]}", encoding="utf-8")


def sound() -> list[bytes]:
    """Half a minute of digits over noise, as frames of a WebSocket."""
    import soxr

    rng = np.random.default_rng(0)
    words = say([(VOICES[i % 8], word) for i, word in enumerate(["seven", "three", "nine", "zero", "four"] * 4)], 0)
    parts = []
    for word in words:
        parts += [word * (_LOUD / np.abs(word).max()), np.zeros(int(rng.uniform(0.5, 1.5) * SAMPLE_RATE))]
    wave = np.concatenate(parts) + 0.003 * rng.standard_normal(sum(map(len, parts)))
    high = np.clip(soxr.resample(wave.astype(np.float32), SAMPLE_RATE, RATE), -1, 1)
    size = round(PIECE * RATE)
    samples = (high * 32767).astype("<i2")
    return [framed(samples[i : i + size].tobytes(), 2) for i in range(0, len(samples) - size, size)]


def framed(payload: bytes, kind: int) -> bytes:
    """A frame of a client (RFC 6455, section 5.2), masked with zeros so that nothing has to be computed."""
    size = len(payload)
    head = bytes([0x80 | kind, 0x80 | size]) if size < 126 else struct.pack("!BBH", 0x80 | kind, 0x80 | 126, size)
    return head + bytes(4) + payload


class Server:
    """`digits serve`, and the processes that it starts."""

    def __init__(self, clients: int | None = None) -> None:
        """As many streams from one address as there are clients; otherwise with the usual limits."""
        many = (
            () if clients is None else ("--streams_per_client", str(clients), "--connections_per_client", str(clients))
        )
        self._limits = many

    def __enter__(self) -> Server:
        command = [
            sys.executable, "-m", "ml_training.cli", "serve", "--port", "0", "--no_browser",
            *self._limits,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.port = int(line.split("127.0.0.1:")[1].split()[0])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=15)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu_seconds(self) -> float:
        fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in self._pids]
        return sum(int(of[11]) + int(of[12]) for of in fields) / os.sysconf("SC_CLK_TCK")

    @property
    def megabytes(self) -> float:
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._pids)
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    @property
    def _pids(self) -> list[int]:
        """The server and the processes that hear for it."""
        own = self._process.pid
        return [own, *map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split())]


@dataclass(eq=False)
class Client:
    """One socket."""

    socket: socket.socket
    due: float  # when its next piece is to be sent
    next: int = 0  # the piece of the sound
    sent: list[float] = field(default_factory=list)  # when each was sent
    processed: int = 0  # pieces that the last status counts
    digits: int = 0
    unread: bytes = b""
    closed: bool = False


def connect(port: int, due: float, first: int) -> Client:
    link = socket.create_connection(("127.0.0.1", port), timeout=10)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(os.urandom(16)).decode()
    link.sendall(
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += link.recv(4096)
    assert b" 101 " in answer.split(b"\r\n")[0], answer
    link.sendall(framed(json.dumps({"type": "start", "sample_rate": RATE, "protocol": 2}).encode(), 1))
    link.setblocking(False)
    return Client(link, due, first, unread=answer.split(b"\r\n\r\n", 1)[1])


def load(server: Server, pieces: list[bytes], count: int, seconds: float) -> dict[str, Any]:
    """So many clients for so long -> what was measured."""
    rng = np.random.default_rng(1)
    begin = time.monotonic() + 1.0
    clients = [
        connect(server.port, begin + float(rng.uniform(0, 1)), int(rng.integers(len(pieces)))) for _ in range(count)
    ]
    selector = selectors.DefaultSelector()
    for client in clients:
        selector.register(client.socket, selectors.EVENT_READ, client)
    trips: list[float] = []
    memory: list[tuple[float, float]] = []
    late = 0
    cpu, own = server.cpu_seconds, time.process_time()
    end = begin + seconds
    look = begin + 5.0
    while (now := time.monotonic()) < end + 0.5:
        if now < end:
            for client in clients:
                if client.due <= now and not client.closed:
                    late += now - client.due > 0.02
                    client.sent.append(time.monotonic())
                    client.socket.send(pieces[client.next])
                    client.next = (client.next + 1) % len(pieces)
                    client.due += PIECE
        soonest = min((client.due for client in clients if not client.closed), default=end)
        for key, _ in selector.select(max(0.0, min(soonest - time.monotonic(), 0.01))):
            read(key.data, trips)
            if key.data.closed:
                selector.unregister(key.data.socket)
        if now > look:
            memory.append((round(now - begin, 1), round(server.megabytes, 1)))
            look += 5.0
    took = time.monotonic() - begin
    found = {
        "clients": count, "seconds": seconds, "lost": sum(client.closed for client in clients),
        "pieces": sum(len(client.sent) for client in clients), "processed": sum(client.processed for client in clients),
        "digits": sum(client.digits for client in clients),
        "round_trip_ms": {str(p): round(1e3 * float(np.percentile(trips, p)), 1) for p in (50, 90, 99, 99.9, 100)},
        f"share_within_{_ROUND_TRIP_MS:g}_ms": float(np.mean(np.array(trips) * 1e3 <= _ROUND_TRIP_MS)),
        "sent_late": late, "server_cores": round((server.cpu_seconds - cpu) / took, 2),
        "client_cores": round((time.process_time() - own) / took, 2), "server_mb": memory[:: max(1, len(memory) // 10)],
    }  # fmt: skip
    for client in clients:
        client.socket.close()
    return found


def read(client: Client, trips: list[float]) -> None:
    """Messages of the server (never masked, here always short)."""
    now = time.monotonic()
    try:
        data = client.socket.recv(1 << 16)
    except BlockingIOError:
        return
    except OSError:
        data = b""
    client.closed = not data
    data = client.unread + data
    while len(data) >= 2:
        kind, size, skip = data[0] & 15, data[1], 2
        if size == 126:
            if len(data) < 4:
                break
            size, skip = struct.unpack("!H", data[2:4])[0], 4
        if len(data) < skip + size:
            break
        payload, data = data[skip : skip + size], data[skip + size :]
        if kind == 8:
            client.closed = True
        elif kind == 9:  # who does not answer a ping is taken for gone
            client.socket.send(framed(payload, 10))
        elif kind == 1:
            message = json.loads(payload)
            if message["type"] == "status":
                trips += [now - sent for sent in client.sent[client.processed : message["frames"]]]
                client.processed = message["frames"]
            elif message["type"] == "digit":
                client.digits += 1
            elif message["type"] == "error":
                print(message, file=sys.stderr)
    client.unread = data


if __name__ == "__main__":
    sys.exit(main())
