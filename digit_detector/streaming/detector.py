"""Detection of spoken digits in one stream of audio."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from digit_detector.acoustic_file import BLOCK_SECONDS
from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import ConfigError
from digit_detector.streaming.config import DetectorConfig, load_config
from digit_detector.streaming.engine import Detection, Engine

__all__ = ["Detection", "StreamingDetector"]


class StreamingDetector:
    """Detects digits in one stream, independent of how its audio is cut into pieces. Thread-safe."""

    def __init__(
        self, context: str | None = None, config: DetectorConfig | None = None, model: str | Path | None = None,
        engine: Engine | None = None,
    ) -> None:  # fmt: skip
        """`context` is "digits" (default): a digit counts in an utterance of digits alone, and is reported at its end;
        or "any": digits anywhere, within sentences too, reported at once.

        `config` None is the shipped one; load_config reads a file of `digits tune-threshold`. `model` is a file of
        `digits train-live`, by default the bundled one. An `engine` shared with other streams replaces all of these.
        Raises ConfigError, ModelError.
        """
        self.engine = engine or make_engine(context, config, model)
        self._lock = threading.Lock()
        self._stream = self.engine.new_stream()

    def feed(self, samples: Any, sample_rate: int = SAMPLE_RATE, channels_first: bool | None = None) -> list[Detection]:
        """Process (T,), (T, channels) or (channels, T) samples at `sample_rate` Hz -> the digits decided by them.

        Floats around [-1, 1], or integers of full scale. Of two axes the one longer than 32 is time; if neither is, the
        layout is that of earlier pieces, or (T, channels) if T is larger. `channels_first` overrides it. The rate may
        change. Raises an AudioError for invalid samples: that piece is skipped, and the stream continues.
        """
        with self._lock:
            wave, rate = self._stream.reader.read(samples, sample_rate, channels_first)
            return self._process(self._stream.split_blocks(self._stream.resampler.feed(wave, rate)))

    def flush(self) -> list[Detection]:
        """End the stream -> the digits that were still undecided. The next feed begins a new stream at second 0.

        Raises UndecodableAudioError if all samples were 32-bit integers that hold 16-bit values.
        """
        with self._lock:
            detections = self._process(self._stream.flush_blocks()) + self._stream.decoder.end_utterance()
            ended, self._stream = self._stream, self.engine.new_stream()
            ended.reader.check_scale()
            return detections

    def reset(self) -> None:
        """Discard the stream; the next feed begins a new one at second 0."""
        with self._lock:
            self._stream = self.engine.new_stream()

    @property
    def seconds(self) -> float:
        """Seconds processed; a remainder of less than 32 ms waits for more."""
        return self._stream.blocks * BLOCK_SECONDS

    @property
    def level_db(self) -> float:
        """Level of the last 32 ms in dB of full scale."""
        return self._stream.level_db

    @property
    def voice(self) -> float:
        """Probability of speech in the last 32 ms."""
        return self._stream.voice

    @property
    def provisional(self) -> list[Detection]:
        """The digits of an utterance that has not ended; its end may change or drop them. Empty in context "any"."""
        with self._lock:
            return self._stream.decoder.provisional

    def _process(self, blocks: Sequence[Floats]) -> list[Detection]:
        return [d for block in blocks for d in self.engine.process([self._stream], [block])[0]]


def make_engine(context: str | None, config: DetectorConfig | None, model: str | Path | None) -> Engine:
    """An engine of the given parts. Raises ConfigError where `context` contradicts `config`."""
    if config is None:
        config = load_config() if context is None else load_config(context=context)
    elif context not in (None, config.context):
        raise ConfigError([f"context: {context!r}, but that of config is {config.context!r}: pass one"], "detector")
    return Engine(config, model)
