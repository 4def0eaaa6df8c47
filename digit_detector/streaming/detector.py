"""Digits in one stream of live sound: feed it, and get what was said."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from digit_detector.streaming.engine import CONFIRMING, Detection, Engine
from digit_detector.streaming.resampling import as_samples
from digit_detector.streaming.stream import BLOCK_SECONDS
from digit_detector.streaming.thresholds import Thresholds
from ml_training.audio import SAMPLE_RATE, Floats
from ml_training.inference import PRETRAINED

__all__ = ["Detection", "StreamingDetector"]


class StreamingDetector:
    """Hears one stream. However its sound is cut into pieces, the detections are the same.

    Threads may share one: each call is as if no other went on meanwhile.
    """

    def __init__(
        self,
        model_dir: str | Path = PRETRAINED,
        pipelines: Sequence[str] = CONFIRMING,
        thresholds: Thresholds | None = None,
        engine: Engine | None = None,
    ) -> None:
        """`model_dir` and `pipelines` name the classifiers that confirm each word, as in load_classifier.

        An `engine` that other streams use, too, has these already. Raises ConfigError, ModelError, or MissingExtraError
        without the [live] extra.
        """
        self.engine = engine or Engine(model_dir, pipelines, thresholds)
        self._lock = threading.Lock()
        self._stream = self.engine.stream()

    def feed(self, samples: Any, sample_rate: int = SAMPLE_RATE) -> list[Detection]:
        """More of the stream: (T,) or (T, channels) at `sample_rate` Hz, of any length -> digits that are known now.

        Floats around [-1, 1], or integers of full scale. Raises an AudioError for what is no sound; of that piece
        nothing was heard then, and the stream goes on. The rate may change from call to call.
        """
        wave, rate = as_samples(samples, sample_rate)
        with self._lock:
            return self._hear(self._stream.cut(self._stream.resampler.feed(wave, rate)))

    def flush(self) -> list[Detection]:
        """The stream has ended -> digits that were still open. What is fed next is a new stream, from second 0."""
        with self._lock:
            found = self._hear(self._stream.ending())
            self._stream = self.engine.stream()
            return found

    def reset(self) -> None:
        """Forget the stream: what is fed next is a new one, from second 0."""
        with self._lock:
            self._stream = self.engine.stream()

    @property
    def seconds(self) -> float:
        """How much of the stream was heard; a last piece of less than 32 ms waits for more."""
        return self._stream.blocks * BLOCK_SECONDS

    @property
    def level_db(self) -> float:
        """Level of the last 32 ms, dB of full scale."""
        return self._stream.energy.level_db

    @property
    def voice(self) -> float:
        """How probable speech is in the last 32 ms, 0 to 1."""
        return self._stream.voice

    def _hear(self, blocks: Sequence[Floats]) -> list[Detection]:
        found: list[Detection] = []
        for block in blocks:
            found += self.engine.hear([self._stream], [block])[0]
        return found
