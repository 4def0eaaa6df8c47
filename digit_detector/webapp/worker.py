"""A process that hears live streams, so that Python's lock is never shared between networks and sockets.

It reads messages from standard input, a HEADER and so many bytes of 16-bit samples each, and writes a line of JSON for
every round: what was heard of each stream that something came of. The first line, when it is ready, tells of none.
So do its heartbeats: the loop that computes writes them, so that a loop that hangs stops them.
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
from digit_detector.streaming.engine import Engine
from digit_detector.streaming.pool import DetectorPool
from digit_detector.streaming.detector import BLOCK_SECONDS
from digit_detector.streaming.thresholds import Thresholds

HEADER = struct.Struct("<BIII")  # what to do, number of the stream, its rate in Hz, bytes that follow
FEED, END, DROP = range(3)
HEARTBEAT = b"[]\n"
_MAX_ROUND_AUDIO = 20.0  # seconds of audio, of all streams, in one round: it stays far shorter than a missing heartbeat
_ROUND_SECONDS = 0.016  # seconds: what came meanwhile is heard at once, which costs the networks less than one by one


@dataclass
class _Stream:
    rate: int
    waiting: deque[bytes] = field(default_factory=deque)
    chunks: int = 0  # that were heard
    ended: bool = False


class StreamWorker:
    """The streams of this process. One thread takes messages in, another hears."""

    def __init__(self, engine: Engine) -> None:
        self._pool = DetectorPool(engine=engine, most_seconds=60.0)  # how much may wait is the server's to say
        self._streams: dict[int, _Stream] = {}
        self._inbox: deque[tuple[int, int, int, bytes]] = deque()
        self._wake = threading.Event()
        self._closed = False

    def read_messages(self, messages: BinaryIO) -> None:
        """Take messages in until there are no more."""
        while len(head := messages.read_messages(HEADER.size)) == HEADER.size:
            kind, number, rate, size = HEADER.unpack(head)
            self._inbox.append((kind, number, rate, messages.read_messages(size)))
            self._wake.set()
        self._closed = True
        self._wake.set()

    def run(self, out: BinaryIO, heartbeat_seconds: float) -> None:
        """Hear and tell until `read` has ended, with a heartbeat at least so often where there is nothing to tell."""
        out.write(HEARTBEAT)
        out.flush()
        wrote = time.monotonic()
        while True:
            self._wake.wait(max(0.0, wrote + heartbeat_seconds - time.monotonic()))
            self._wake.clear()
            if self._closed:
                return
            began = time.monotonic()
            updates = self.run_round()
            if self._inbox:
                self._wake.set()
            if updates or time.monotonic() >= wrote + heartbeat_seconds:
                out.write(json.dumps(updates).encode() + b"\n")
                out.flush()
                wrote = time.monotonic()
            time.sleep(max(0.0, _ROUND_SECONDS - (time.monotonic() - began)))

    def run_round(self) -> list[dict[str, object]]:
        """Hear what came until now, _ROUND_AUDIO at most -> what is told of it."""
        fed: dict[int, _Stream] = {}
        updates: list[dict[str, object]] = []
        taken = 0.0  # seconds of audio
        while self._inbox and taken < _MAX_ROUND_AUDIO:
            kind, number, rate, samples = self._inbox.popleft()
            taken += len(samples) / 2 / rate
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
            detector = self._pool.detector(number)
            detections, seconds = detected.get(number, []), detector.blocks * BLOCK_SECONDS
            if stream.ended:
                detections += self._pool.flush(number)
                del self._streams[number]
            updates.append({
                "stream": number, "pieces": stream.chunks, "seconds": seconds,
                "level_db": detector.energy.level_db, "voice": float(detector.voice), "ended": stream.ended,
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


def main() -> int:
    """Hear until standard input ends; the command line is one JSON object of what Engine takes."""
    for sent in (signal.SIGINT, signal.SIGTERM):  # to all of a terminal or a service: the server ends, and then this
        signal.signal(sent, signal.SIG_IGN)
    options = json.loads(sys.argv[1])
    worker = StreamWorker(Engine(options["model_dir"], options["pipelines"], Thresholds(**options["thresholds"]), options["spotter"]))
    threading.Thread(target=worker.read_messages, args=(sys.stdin.buffer,), daemon=True).start()
    worker.run(sys.stdout.buffer, options["heartbeat_seconds"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
