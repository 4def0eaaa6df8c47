"""Digits in one stream of live sound: feed it, and get what was said."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.labels import PRETRAINED
from digit_detector.streaming.engine import Detection, Engine
from digit_detector.streaming.stream_state import BLOCK_SECONDS
from digit_detector.streaming.thresholds import Thresholds

__all__ = ["Detection", "StreamingDetector"]


class StreamingDetector:
    """Hears one stream. However its sound is cut into pieces, the detections are the same.

    Threads may share one: each call is as if no other went on meanwhile.
    """

    def __init__(
        self,
        model_dir: str | Path = PRETRAINED,
        pipelines: Sequence[str] | None = None,
        thresholds: Thresholds | None = None,
        engine: Engine | None = None,
        spotter: str | Path | None = None,
    ) -> None:
        """`model_dir` and `pipelines` name the classifiers that confirm each word, as in load_classifier.

        `pipelines` None takes those of CONFIRMING that the folder has. `spotter` is a file of `digits train-spotter` in
        the place of the one that ships. An `engine` that other streams use, too, has all of these already. Raises
        ConfigError, ModelError, or MissingExtraError without the [live] extra.
        """
        self.engine = engine or Engine(model_dir, pipelines, thresholds, spotter)
        self._lock = threading.Lock()
        self._stream = self.engine.stream()

    def feed(self, samples: Any, sample_rate: int = SAMPLE_RATE, channels_first: bool | None = None) -> list[Detection]:
        """More of the stream: (T,), (T, channels) or (channels, T) at `sample_rate` Hz -> digits that are known now.

        Floats around [-1, 1], or integers of full scale. Of two axes the one longer than 32 is time; where neither is,
        the longer, if it comes first; else as in earlier pieces, or as `channels_first` says. Raises an AudioError for
        what is no sound; of that piece nothing was heard then, and the stream goes on. The rate may change.
        """
        with self._lock:
            wave, rate = self._stream.reader.read(samples, sample_rate, channels_first)
            return self._hear(self._stream.cut(self._stream.resampler.feed(wave, rate)))

    def flush(self) -> list[Detection]:
        """The stream has ended -> digits that were still open. What is fed next is a new stream, from second 0.

        Raises UndecodableAudioError where all that came were 32-bit integers that hold 16-bit values.
        """
        with self._lock:
            found = self._hear(self._stream.ending())
            ended, self._stream = self._stream, self.engine.stream()
            ended.reader.check_scale()
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
