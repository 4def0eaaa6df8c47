"""Detection of spoken digits in one stream of audio."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.labels import PRETRAINED
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.engine import Detection, Engine
from digit_detector.streaming.stream_state import BLOCK_SECONDS

__all__ = ["Detection", "StreamingDetector"]


class StreamingDetector:
    """Detects digits in one stream, independent of how its audio is cut into pieces. Thread-safe."""

    def __init__(
        self, model_dir: str | Path = PRETRAINED, pipelines: Sequence[str] | None = None,
        config: DetectorConfig | None = None, engine: Engine | None = None, spotter: str | Path | None = None,
        thresholds: DetectorConfig | None = None,
    ) -> None:  # fmt: skip
        """`model_dir` and `pipelines` name the classifiers that verify each word, as in load_classifier.

        `pipelines` None uses those of CONFIRMING that the folder has. `config` None is the shipped one; load_config
        reads a file of `digits tune-threshold`. `spotter` is a file of `digits train-spotter`, by default the bundled
        one. An `engine` shared with other streams replaces all of these. `thresholds` is the deprecated name of
        `config`. Raises ConfigError, ModelError, or MissingExtraError without the [live] extra.
        """
        self.engine = engine or Engine(model_dir, pipelines, resolve_config(config, thresholds), spotter)
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
            detections = self._process(self._stream.flush_blocks())
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
        return self._stream.energy.level_db

    @property
    def voice(self) -> float:
        """Probability of speech in the last 32 ms."""
        return self._stream.voice

    def _process(self, blocks: Sequence[Floats]) -> list[Detection]:
        return [d for block in blocks for d in self.engine.process([self._stream], [block])[0]]


def resolve_config(config: DetectorConfig | None, thresholds: DetectorConfig | None) -> DetectorConfig | None:
    """`config`, or the value of its deprecated name."""
    if thresholds is None:
        return config
    warnings.warn("thresholds= is deprecated: pass config=", DeprecationWarning, stacklevel=3)
    return thresholds
