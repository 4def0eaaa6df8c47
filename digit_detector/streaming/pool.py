"""Many live streams at once, whose sound goes through the networks together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import StreamError
from digit_detector.labels import PRETRAINED
from digit_detector.streaming.engine import Detection, Engine
from digit_detector.streaming.stream_state import StreamState
from digit_detector.streaming.thresholds import Thresholds


class DetectorPool:
    """Streams by key. `feed` only takes sound in; `run` hears what all of them were fed."""

    def __init__(
        self,
        model_dir: str | Path = PRETRAINED,
        pipelines: Sequence[str] | None = None,
        thresholds: Thresholds | None = None,
        most_seconds: float = 30.0,
        engine: Engine | None = None,
        spotter: str | Path | None = None,
    ) -> None:
        """`most_seconds` of sound may wait in a stream; see StreamingDetector for the rest."""
        self.engine = engine or Engine(model_dir, pipelines, thresholds, spotter)
        self._most = most_seconds * SAMPLE_RATE
        self._lock = threading.Lock()
        self._streams: dict[Hashable, tuple[StreamState, deque[Floats]]] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, key: Hashable) -> None:
        """A new stream. Raises StreamError where there is one of that key."""
        with self._lock:
            if key in self._streams:
                raise StreamError(f"stream {key!r} is open already: close it first, or take another key")
            self._streams[key] = self.engine.stream(), deque()

    def close(self, key: Hashable) -> None:
        """Forget a stream. Raises StreamError where there is none."""
        with self._lock:
            self._find(key)
            del self._streams[key]

    def feed(
        self, key: Hashable, samples: Any, sample_rate: int = SAMPLE_RATE, channels_first: bool | None = None
    ) -> None:
        """More of a stream; see StreamingDetector.feed. Raises StreamError where too much waits already."""
        with self._lock:
            stream, waiting = self._find(key)
            wave, rate = stream.reader.read(samples, sample_rate, channels_first)
            if sum(map(len, waiting)) + len(wave) * SAMPLE_RATE // rate > self._most:
                raise StreamError(
                    f"stream {key!r} is fed faster than it is heard: more than {self._most / SAMPLE_RATE:g} s wait; "
                    "call run, or feed no faster than real time"
                )
            waiting.extend(stream.cut(stream.resampler.feed(wave, rate)))

    def run(self) -> dict[Hashable, list[Detection]]:
        """Hear all that was fed until now -> what was said in each stream that something was said in."""
        found: dict[Hashable, list[Detection]] = {}
        with self._lock:
            while ready := [(key, stream, waiting) for key, (stream, waiting) in self._streams.items() if waiting]:
                blocks = [waiting.popleft() for _, _, waiting in ready]
                heard = self.engine.hear([stream for _, stream, _ in ready], blocks)
                for (key, _, _), detections in zip(ready, heard, strict=True):
                    if detections:
                        found.setdefault(key, []).extend(detections)
        return found

    def flush(self, key: Hashable) -> list[Detection]:
        """A stream has ended: what is left of it is heard, and it is closed. The others wait for `run`.

        Raises what StreamingDetector.flush raises.
        """
        with self._lock:
            stream, waiting = self._find(key)
            found: list[Detection] = []
            for block in (*waiting, *stream.ending()):
                found += self.engine.hear([stream], [block])[0]
            del self._streams[key]
            stream.reader.check_scale()
            return found

    def stream(self, key: Hashable) -> StreamState:
        """A stream as it stands: its level, its voice activity, how much was heard. Raises StreamError."""
        return self._find(key)[0]

    def _find(self, key: Hashable) -> tuple[StreamState, deque[Floats]]:
        found = self._streams.get(key)
        if found is None:
            raise StreamError(f"no stream {key!r} is open: open it first")
        return found
