"""Worker process: runs the live networks, so that they never hold the Python lock of the process that serves sockets.

Standard input carries messages: a HEADER, then as many bytes as it says: 16-bit samples, or the name of the context
with START. Standard output carries one line of JSON per round: a list with one update for each stream that received
audio. The first line, once the model is loaded, and every heartbeat are an empty list. The loop that computes writes
the heartbeats: they stop when it hangs.
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

from digit_detector.acoustic_file import BLOCK_SECONDS
from digit_detector.errors import DigitError
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.engine import Detection, Engine
from digit_detector.streaming.pool import DetectorPool
from digit_detector.webapp.child_process import READY

HEADER = struct.Struct("<BIII")  # kind of message, stream number, sample rate in Hz, bytes that follow
START, FEED, END, DROP = range(4)
_MAX_ROUND_SECONDS = 20.0  # audio of all streams in one round: computing it takes far less than a heartbeat timeout
_ROUND_SECONDS = 0.016  # wall time: audio of several streams is computed in one batch, which is cheaper


@dataclass
class _Stream:
    rate: int
    waiting: list[bytes] = field(default_factory=list)
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
        line, due = READY, 0.0
        while True:
            if line != READY or time.monotonic() >= due:
                out.write(line)
                out.flush()
                due = time.monotonic() + heartbeat_seconds
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            if self._closed:
                return
            started = time.monotonic()
            line = json.dumps(self.process_round()).encode() + b"\n"
            if self._inbox:
                self._wake.set()
            time.sleep(max(0.0, _ROUND_SECONDS - (time.monotonic() - started)))

    def process_round(self) -> list[dict[str, object]]:
        """Process the inbox, at most _MAX_ROUND_SECONDS of audio, and return one update per stream."""
        fed: dict[int, _Stream] = {}
        updates: list[dict[str, object]] = []
        seconds = 0.0
        while self._inbox and seconds < _MAX_ROUND_SECONDS:
            kind, number, rate, content = self._inbox.popleft()
            if kind == START:
                self._streams[number] = _Stream(rate)
                self._pool.open(number, content.decode())
            elif kind == DROP:
                self._drop(number)
                fed.pop(number, None)
            elif number in self._streams:  # otherwise it was dropped for a fault
                stream = fed[number] = self._streams[number]
                if kind == END:
                    stream.ended = True
                else:
                    stream.waiting.append(content)
                    seconds += len(content) / 2 / rate
        for number, stream in list(fed.items()):
            stream.chunks += len(stream.waiting)
            samples = b"".join(stream.waiting)
            stream.waiting.clear()
            try:
                self._pool.feed(number, np.frombuffer(samples, dtype="<i2"), stream.rate)
            except DigitError as error:
                updates.append({"stream": number, "fault": str(error)})
                self._drop(number)
                del fed[number]
        detected = self._pool.run()
        for number, stream in fed.items():
            state = self._pool.stream(number)
            detections, provisional = detected.get(number, []), self._pool.provisional(number)
            position = state.blocks * BLOCK_SECONDS
            if stream.ended:
                provisional = []
                detections += self._pool.flush(number)
                del self._streams[number]
            updates.append({
                "stream": number, "chunks": stream.chunks, "seconds": position,
                "level_db": state.level_db, "voice": state.voice, "ended": stream.ended,
                "detections": _as_rows(detections), "provisional": _as_rows(provisional),
            })  # fmt: skip
        return updates

    def _drop(self, number: int) -> None:
        if self._streams.pop(number, None) is not None:
            self._pool.close(number)


def _as_rows(detections: list[Detection]) -> list[list[float]]:
    return [[d.digit, d.confidence, d.start, d.end, d.delay] for d in detections]


def main() -> int:
    """Run until standard input ends. The command line is one JSON object: Engine's arguments and heartbeat_seconds."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole process group: the server closes stdin instead
        signal.signal(number, signal.SIG_IGN)
    options = json.loads(sys.argv[1])
    worker = StreamWorker(Engine(DetectorConfig(**options["config"]), options["model"]))
    threading.Thread(target=worker.read_messages, args=(sys.stdin.buffer,), daemon=True).start()
    worker.run(sys.stdout.buffer, options["heartbeat_seconds"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
