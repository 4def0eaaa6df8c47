"""Streams through the networks: the next block of each, as many at a time as they are good for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from digit_detector.streaming.decision import Candidate, Evidence, confidence, pooled
from digit_detector.streaming.models import LARGEST_BATCH, spotter, voice_activity
from digit_detector.streaming.stream import FRAMES, Stream
from digit_detector.streaming.thresholds import Thresholds, load_thresholds
from ml_training.audio import SAMPLE_RATE, Floats, fit
from ml_training.config import MEL_CNN, RAW_CNN
from ml_training.deploy.spotter_file import HOP
from ml_training.errors import ConfigError
from ml_training.inference import PRETRAINED, DigitClassifier, load_classifier

__all__ = ["CONFIRMING", "Detection", "Engine"]

CONFIRMING = (MEL_CNN, RAW_CNN)  # who hears each word by itself


@dataclass(frozen=True)
class Detection:
    """A digit that was said."""

    digit: int
    confidence: float  # 0 to 1
    start: float  # seconds in the stream
    end: float
    delay: float  # seconds of the stream from the end of the word until it was known

    @property
    def reported(self) -> float:
        """Seconds in the stream until it was known."""
        return self.end + self.delay


class Engine:
    """The networks and what they must be sure of; shared by any number of streams."""

    def __init__(
        self,
        model_dir: str | Path = PRETRAINED,
        pipelines: Sequence[str] = CONFIRMING,
        thresholds: Thresholds | None = None,
        spotter_file: Path | None = None,
    ) -> None:
        self.thresholds = thresholds or load_thresholds()
        self._voice = voice_activity()
        self._spotter = spotter(spotter_file)
        if not pipelines or isinstance(pipelines, str):
            raise ConfigError([f"pipelines: expected a list of names such as {CONFIRMING}, got {pipelines!r}"])
        self.classifiers: list[DigitClassifier] = [load_classifier(model_dir, pipeline) for pipeline in pipelines]

    def stream(self) -> Stream:
        return Stream(self.thresholds, self._voice.SIZE, self._spotter.size)

    def hear(self, streams: Sequence[Stream], blocks: Sequence[Floats]) -> list[list[Detection]]:
        """The next block of each stream -> what each now knows to have been said."""
        candidates: list[list[Candidate]] = [[] for _ in streams]
        voicing = {i: todo for i, s in enumerate(streams) if (todo := s.take(blocks[i]))}
        spotting: dict[int, list[int]] = {}
        while voicing:
            rows, numbers = _next(voicing)
            for i, number, voice in zip(rows, numbers, self._voices([streams[i] for i in rows], numbers), strict=True):
                if todo := streams[i].heard_voice(number, voice):
                    spotting.setdefault(i, []).extend(todo)
        while spotting:
            rows, numbers = _next(spotting)
            for i, found in zip(rows, self._spot([streams[i] for i in rows], numbers), strict=True):
                candidates[i] += found
        return [
            [d for c in found if (d := self._confirmed(stream, c)) is not None] if found else []
            for stream, found in zip(streams, candidates, strict=True)
        ]

    def _voices(self, streams: Sequence[Stream], numbers: Sequence[int]) -> list[float]:
        said: list[float] = []
        for part in _parts(len(streams)):
            some = streams[part]
            blocks = _rows([s.block(n) for s, n in zip(some, numbers[part], strict=True)])
            voices, states = self._voice(blocks, _rows([s.voice_state for s in some]))
            for stream, state in zip(some, states, strict=True):
                stream.voice_state = state if len(some) == 1 else state.copy()
            said += voices.tolist()
        return said

    def _spot(self, streams: Sequence[Stream], numbers: Sequence[int]) -> list[list[Candidate]]:
        found: list[list[Candidate]] = []
        for part in _parts(len(streams)):
            some = streams[part]
            blocks = _rows([s.block(n) for s, n in zip(some, numbers[part], strict=True)])
            probabilities, durations, states = self._spotter(blocks, _rows([s.word_state for s in some]))
            largest = probabilities.reshape(len(some), -1).max(axis=1).tolist()
            for row, (stream, number) in enumerate(zip(some, numbers[part], strict=True)):
                stream.word_state = states[row] if len(some) == 1 else states[row].copy()  # a view would keep all
                found.append(stream.heard_words(number, probabilities[row], largest[row], durations[row]))
        return found

    def _confirmed(self, stream: Stream, candidate: Candidate) -> Detection | None:
        """A candidate with a voice in it that the classifiers, which hear the word by itself, do not doubt."""
        if stream.voice_of(candidate) < self.thresholds.voice:
            return None
        sure = confidence(self.evidence(stream, candidate))
        if sure < self.thresholds.digit:
            return None
        end = candidate.last * HOP / SAMPLE_RATE
        # Frames come two at a time: a digit is known when the block of its frame is there.
        known = (candidate.frame // FRAMES + 1) * FRAMES * HOP / SAMPLE_RATE
        return Detection(candidate.digit, sure, max(0.0, candidate.first * HOP / SAMPLE_RATE), end, known - end)

    def evidence(self, stream: Stream, candidate: Candidate) -> Evidence:
        """What the spotter and the classifiers say of a word."""
        second = fit(stream.word(candidate))[None]
        heard = [classifier.hear(second) for classifier in self.classifiers]
        return Evidence(
            spotted=candidate.score,
            is_digit=pooled([float(digit_scores[0]) for _, digit_scores in heard]),
            classified=pooled([float(probabilities[0, candidate.digit]) for probabilities, _ in heard]),
        )


def _rows(parts: Sequence[Floats]) -> Floats:
    """Equally long arrays as the rows of one; np.stack does the same in twice the time."""
    return np.concatenate(parts).reshape(len(parts), -1)


def _next(todo: dict[int, list[int]]) -> tuple[list[int], list[int]]:
    """The first block of each that has some left; what is done is taken away."""
    rows = list(todo)
    numbers = [todo[i].pop(0) for i in rows]
    for i in rows:
        if not todo[i]:
            del todo[i]
    return rows, numbers


def _parts(count: int) -> list[slice]:
    return [slice(i, i + LARGEST_BATCH) for i in range(0, count, LARGEST_BATCH)]
