"""Detection in many live streams, batched through the networks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import StreamError
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.detector import make_engine
from digit_detector.streaming.engine import Detection, Engine
from digit_detector.streaming.stream_state import StreamState


class DetectorPool:
    """Streams by key. `feed` only buffers audio; `run` processes what all streams were fed. Thread-safe."""

    def __init__(
        self, context: str | None = None, config: DetectorConfig | None = None, most_seconds: float = 30.0,
        model: str | Path | None = None, engine: Engine | None = None,
    ) -> None:  # fmt: skip
        """`most_seconds` of audio may be buffered for a stream; see StreamingDetector for the rest."""
        self.engine = engine or make_engine(context, config, model)
        self._most = most_seconds * SAMPLE_RATE
        self._lock = threading.Lock()
        self._streams: dict[Hashable, tuple[StreamState, deque[Floats]]] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, key: Hashable, context: str | None = None) -> None:
        """Open a stream; `context` replaces that of the pool. Raises StreamError if the key is in use, ConfigError."""
        with self._lock:
            if key in self._streams:
                raise StreamError(f"stream {key!r} is open already: close it first, or take another key")
            self._streams[key] = self.engine.new_stream(context), deque()

    def close(self, key: Hashable) -> None:
        """Discard a stream. Raises StreamError for an unknown key."""
        with self._lock:
            self._find(key)
            del self._streams[key]

    def feed(
        self, key: Hashable, samples: Any, sample_rate: int = SAMPLE_RATE, channels_first: bool | None = None
    ) -> None:
        """Buffer audio of a stream; see StreamingDetector.feed. Raises StreamError if too much is buffered."""
        with self._lock:
            stream, waiting = self._find(key)
            wave, rate = stream.reader.read(samples, sample_rate, channels_first)
            if sum(map(len, waiting)) + len(wave) * SAMPLE_RATE // rate > self._most:
                raise StreamError(
                    f"stream {key!r} is fed too fast: more than {self._most / SAMPLE_RATE:g} s wait; "
                    "call run, or feed no faster than real time"
                )
            waiting.extend(stream.split_blocks(stream.resampler.feed(wave, rate)))

    def run(self) -> dict[Hashable, list[Detection]]:
        """Process all buffered audio -> the detections of each stream that has any."""
        detections: dict[Hashable, list[Detection]] = {}
        with self._lock:
            while ready := [(key, stream, waiting) for key, (stream, waiting) in self._streams.items() if waiting]:
                blocks = [waiting.popleft() for _, _, waiting in ready]
                results = self.engine.process([stream for _, stream, _ in ready], blocks)
                for (key, _, _), result in zip(ready, results, strict=True):
                    if result:
                        detections.setdefault(key, []).extend(result)
        return detections

    def provisional(self, key: Hashable) -> list[Detection]:
        """The digits of a stream's utterance that has not ended, see StreamingDetector.provisional."""
        with self._lock:
            return self._find(key)[0].decoder.provisional

    def flush(self, key: Hashable) -> list[Detection]:
        """Process the rest of a stream, close it -> its last detections. Other streams wait for `run`.

        Raises what StreamingDetector.flush raises.
        """
        with self._lock:
            stream, waiting = self._find(key)
            blocks = [*waiting, *stream.flush_blocks()]
            detections = [d for block in blocks for d in self.engine.process([stream], [block])[0]]
            detections += stream.decoder.end_utterance()
            del self._streams[key]
            stream.reader.check_scale()
            return detections

    def stream(self, key: Hashable) -> StreamState:
        """The state of a stream: level, voice activity, blocks processed. Raises StreamError."""
        return self._find(key)[0]

    def _find(self, key: Hashable) -> tuple[StreamState, deque[Floats]]:
        if key not in self._streams:
            raise StreamError(f"no stream {key!r} is open: open it first")
        return self._streams[key]
