"""Worker process: runs the live networks, so that they never hold the Python lock of the process that serves sockets.

Standard input carries messages: a HEADER, then as many bytes of 16-bit samples as it says. Standard output carries one
line of JSON per round: a list with one update for each stream that received audio. The first line, once the models are
loaded, and every heartbeat are an empty list. The loop that computes writes the heartbeats: they stop when it hangs.
"""

from __future__ import annotations

import json
import signal
import struct
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from digit_detector.errors import DigitError
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.engine import Engine
from digit_detector.streaming.pool import DetectorPool
from digit_detector.streaming.stream_state import BLOCK_SECONDS

HEADER = struct.Struct("<BIII")  # kind of message, stream number, sample rate in Hz, bytes that follow
FEED, END, DROP = range(3)
HEARTBEAT = b"[]\n"
_MAX_ROUND_SECONDS = 20.0  # audio of all streams in one round: computing it takes far less than a heartbeat timeout
_ROUND_SECONDS = 0.016  # wall time: audio of several streams is computed in one batch, which is cheaper


@dataclass
class _Stream:
    rate: int
    waiting: deque[bytes] = field(default_factory=deque)
    chunks: int = 0  # processed so far
    ended: bool = False


class StreamWorker:
    """The streams of this process. One thread reads messages, another runs the networks."""

    def __init__(self, engine: Engine) -> None:
        self._pool = DetectorPool(engine=engine, most_seconds=60.0)  # the server enforces the backlog limit
        self._streams: dict[int, _Stream] = {}
        self._inbox: deque[tuple[int, int, int, bytes]] = deque()
        self._wake = threading.Event()
        self._closed = False

    def read_messages(self, file: BinaryIO) -> None:
        """Put messages into the inbox until the end of the file."""
        while len(header := file.read(HEADER.size)) == HEADER.size:
            kind, number, rate, size = HEADER.unpack(header)
            self._inbox.append((kind, number, rate, file.read(size)))
            self._wake.set()
        self._closed = True
        self._wake.set()

    def run(self, out: BinaryIO, heartbeat_seconds: float) -> None:
        """Process rounds and write their updates until `read_messages` has returned; write a heartbeat when idle."""
        wrote = _write(out, HEARTBEAT)
        while True:
            self._wake.wait(max(0.0, wrote + heartbeat_seconds - time.monotonic()))
            self._wake.clear()
            if self._closed:
                return
            started = time.monotonic()
            updates = self.process_round()
            if self._inbox:
                self._wake.set()
            if updates or time.monotonic() >= wrote + heartbeat_seconds:
                wrote = _write(out, json.dumps(updates).encode() + b"\n")
            time.sleep(max(0.0, _ROUND_SECONDS - (time.monotonic() - started)))

    def process_round(self) -> list[dict[str, object]]:
        """Process the inbox, at most _MAX_ROUND_SECONDS of audio, and return one update per stream."""
        fed: dict[int, _Stream] = {}
        updates: list[dict[str, object]] = []
        seconds = 0.0
        while self._inbox and seconds < _MAX_ROUND_SECONDS:
            kind, number, rate, samples = self._inbox.popleft()
            seconds += len(samples) / 2 / rate
            if kind == DROP:
                self._drop(number)
                fed.pop(number, None)
                continue
            stream = self._streams.get(number)
            if stream is None:
                stream = self._streams[number] = _Stream(rate)
                self._pool.open(number)
            fed[number] = stream
            if kind == END:
                stream.ended = True
            else:
                stream.waiting.append(samples)
        for number, stream in list(fed.items()):
            try:
                self._feed(number, stream)
            except DigitError as error:
                updates.append({"stream": number, "fault": str(error)})
                self._drop(number)
                del fed[number]
        detected = self._pool.run()
        for number, stream in fed.items():
            state = self._pool.stream(number)
            detections, position = detected.get(number, []), state.blocks * BLOCK_SECONDS
            if stream.ended:
                detections += self._pool.flush(number)
                del self._streams[number]
            updates.append({
                "stream": number, "chunks": stream.chunks, "seconds": position,
                "level_db": state.energy.level_db, "voice": float(state.voice), "ended": stream.ended,
                "digits": [[d.digit, d.confidence, d.start, d.end, d.delay] for d in detections],
            })  # fmt: skip
        return updates

    def _feed(self, number: int, stream: _Stream) -> None:
        if stream.waiting:
            stream.chunks += len(stream.waiting)
            samples = np.frombuffer(b"".join(stream.waiting), dtype="<i2")
            stream.waiting.clear()
            self._pool.feed(number, samples, stream.rate)

    def _drop(self, number: int) -> None:
        if self._streams.pop(number, None) is not None:
            self._pool.close(number)


def _write(out: BinaryIO, line: bytes) -> float:
    """Write and flush a line; returns the monotonic time."""
    out.write(line)
    out.flush()
    return time.monotonic()


def main() -> int:
    """Run until standard input ends. The command line is one JSON object: Engine's arguments and heartbeat_seconds."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole process group: the server closes stdin instead
        signal.signal(number, signal.SIG_IGN)
    options = json.loads(sys.argv[1])
    config = DetectorConfig(**options["config"])
    worker = StreamWorker(Engine(options["model_dir"], options["pipelines"], config, options["spotter"]))
    threading.Thread(target=worker.read_messages, args=(sys.stdin.buffer,), daemon=True).start()
    worker.run(sys.stdout.buffer, options["heartbeat_seconds"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
