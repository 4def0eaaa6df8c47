"""A process that hears live streams, so that Python's lock is never shared between networks and sockets.

It reads messages from standard input, a HEAD and so many bytes of 16-bit samples each, and writes a line of JSON for
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
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.engine import Engine
from digit_detector.streaming.pool import DetectorPool
from digit_detector.streaming.stream_state import BLOCK_SECONDS

HEAD = struct.Struct("<BIII")  # what to do, number of the stream, its rate in Hz, bytes that follow
HEAR, END, FORGET = range(3)
HEARTBEAT = b"[]\n"
_ROUND_AUDIO = 20.0  # seconds of audio, of all streams, in one round: it stays far shorter than a missing heartbeat
_ROUND = 0.016  # seconds: what came meanwhile is heard at once, which costs the networks less than one by one


@dataclass
class _Line:
    rate: int
    waiting: deque[bytes] = field(default_factory=deque)
    pieces: int = 0  # that were heard
    ended: bool = False


class Ears:
    """The streams of this process. One thread takes messages in, another hears."""

    def __init__(self, engine: Engine) -> None:
        self._pool = DetectorPool(engine=engine, most_seconds=60.0)  # how much may wait is the server's to say
        self._lines: dict[int, _Line] = {}
        self._came: deque[tuple[int, int, int, bytes]] = deque()
        self._wake = threading.Event()
        self._over = False

    def read(self, messages: BinaryIO) -> None:
        """Take messages in until there are no more."""
        while len(head := messages.read(HEAD.size)) == HEAD.size:
            kind, number, rate, size = HEAD.unpack(head)
            self._came.append((kind, number, rate, messages.read(size)))
            self._wake.set()
        self._over = True
        self._wake.set()

    def work(self, out: BinaryIO, heartbeat_seconds: float) -> None:
        """Hear and tell until `read` has ended, with a heartbeat at least so often where there is nothing to tell."""
        out.write(HEARTBEAT)
        out.flush()
        wrote = time.monotonic()
        while True:
            self._wake.wait(max(0.0, wrote + heartbeat_seconds - time.monotonic()))
            self._wake.clear()
            if self._over:
                return
            began = time.monotonic()
            told = self.round()
            if self._came:
                self._wake.set()
            if told or time.monotonic() >= wrote + heartbeat_seconds:
                out.write(json.dumps(told).encode() + b"\n")
                out.flush()
                wrote = time.monotonic()
            time.sleep(max(0.0, _ROUND - (time.monotonic() - began)))

    def round(self) -> list[dict[str, object]]:
        """Hear what came until now, _ROUND_AUDIO at most -> what is told of it."""
        fed: dict[int, _Line] = {}
        told: list[dict[str, object]] = []
        taken = 0.0  # seconds of audio
        while self._came and taken < _ROUND_AUDIO:
            kind, number, rate, samples = self._came.popleft()
            taken += len(samples) / 2 / rate
            if kind == FORGET:
                self._forget(number)
                fed.pop(number, None)
                continue
            line = self._lines.get(number)
            if line is None:
                line = self._lines[number] = _Line(rate)
                self._pool.open(number)
            fed[number] = line
            if kind == END:
                line.ended = True
            else:
                line.waiting.append(samples)
        for number, line in list(fed.items()):
            try:
                self._feed(number, line)
            except DigitError as error:
                told.append({"stream": number, "fault": str(error)})
                self._forget(number)
                del fed[number]
        found = self._pool.run()
        for number, line in fed.items():
            stream = self._pool.stream(number)
            detections, seconds = found.get(number, []), stream.blocks * BLOCK_SECONDS
            if line.ended:
                detections += self._pool.flush(number)
                del self._lines[number]
            told.append({
                "stream": number, "pieces": line.pieces, "seconds": seconds,
                "level_db": stream.energy.level_db, "voice": float(stream.voice), "ended": line.ended,
                "digits": [[d.digit, d.confidence, d.start, d.end, d.delay] for d in detections],
            })  # fmt: skip
        return told

    def _feed(self, number: int, line: _Line) -> None:
        if line.waiting:
            line.pieces += len(line.waiting)
            samples = np.frombuffer(b"".join(line.waiting), dtype="<i2")
            line.waiting.clear()
            self._pool.feed(number, samples, line.rate)

    def _forget(self, number: int) -> None:
        if self._lines.pop(number, None) is not None:
            self._pool.close(number)


def main() -> int:
    """Hear until standard input ends; the command line is one JSON object of what Engine takes."""
    for sent in (signal.SIGINT, signal.SIGTERM):  # to all of a terminal or a service: the server ends, and then this
        signal.signal(sent, signal.SIG_IGN)
    asked = json.loads(sys.argv[1])
    ears = Ears(Engine(asked["model_dir"], asked["pipelines"], DetectorConfig(**asked["thresholds"]), asked["spotter"]))
    threading.Thread(target=ears.read, args=(sys.stdin.buffer,), daemon=True).start()
    ears.work(sys.stdout.buffer, asked["heartbeat_seconds"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
