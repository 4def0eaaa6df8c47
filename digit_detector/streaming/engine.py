"""Streams through the networks: the next block of each, as many at a time as they are good for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from digit_detector.audio import SAMPLE_RATE, Floats, fit
from digit_detector.classifier import DigitClassifier, load_classifier, model_file
from digit_detector.errors import ConfigError
from digit_detector.labels import MEL_CNN, MFCC, PRETRAINED, RAW_CNN
from digit_detector.spotter_file import FRAMES, HOP
from digit_detector.streaming.high_pass import high_pass
from digit_detector.streaming.peak_picker import (
    Candidate,
    Detection,
    FusionScores,
    confidence,
    mean_log_odds,
    product_argmax,
)
from digit_detector.streaming.spotter import LARGEST_BATCH, batch_of, load_voice_activity, spotter
from digit_detector.streaming.stream_state import StreamState
from digit_detector.streaming.thresholds import Thresholds, load_thresholds

__all__ = ["CONFIRMING", "Detection", "Engine", "available_pipelines", "missing_note"]

CONFIRMING = (MEL_CNN, RAW_CNN, MFCC)  # who hears each word by itself
COMMIT_CONFIDENCE = 0.5  # confidence from which a digit explains its sound, whatever has to be reached to be reported


class Engine:
    """The networks and what they must be sure of; shared by any number of streams."""

    def __init__(
        self,
        model_dir: str | Path = PRETRAINED,
        pipelines: Sequence[str] | None = None,
        thresholds: Thresholds | None = None,
        spotter_file: str | Path | None = None,
    ) -> None:
        """`pipelines` None takes those of CONFIRMING that the folder has; `spotter_file` None the spotter that ships.

        Raises ConfigError, ModelError, MissingExtraError.
        """
        self.thresholds = thresholds or load_thresholds()
        self.allow_repeats = False  # whether a word may be reported twice, see Detection.repeats
        self._voice = load_voice_activity()
        self._spotter = spotter(spotter_file)
        if pipelines is not None and (not pipelines or isinstance(pipelines, str)):
            raise ConfigError([f"pipelines: expected a list of names such as {CONFIRMING}, got {pipelines!r}"])
        self.pipelines = tuple(pipelines) if pipelines is not None else available_pipelines(model_dir)
        self.classifiers: list[DigitClassifier] = [load_classifier(model_dir, name) for name in self.pipelines]

    def stream(self) -> StreamState:
        return StreamState(self.thresholds, self._voice.SIZE, self._spotter.quiet)

    def hear(self, streams: Sequence[StreamState], blocks: Sequence[Floats]) -> list[list[Detection]]:
        """The next block of each stream -> what each now knows to have been said."""
        filtered, states = high_pass(batch_of(blocks), batch_of([stream.filter_state for stream in streams]))
        for stream, state in zip(streams, states, strict=True):
            stream.filter_state = state
        candidates: list[list[Candidate]] = [[] for _ in streams]
        voicing = {i: todo for i, s in enumerate(streams) if (todo := s.take(filtered[i]))}
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

    def _voices(self, streams: Sequence[StreamState], numbers: Sequence[int]) -> list[float]:
        said: list[float] = []
        for part in _parts(len(streams)):
            some = streams[part]
            blocks = batch_of([s.block(n) for s, n in zip(some, numbers[part], strict=True)])
            voices, states = self._voice(blocks, batch_of([s.voice_state for s in some]))
            for stream, state in zip(some, states, strict=True):
                stream.voice_state = state if len(some) == 1 else state.copy()  # a view would keep all
            said += voices.tolist()
        return said

    def _spot(self, streams: Sequence[StreamState], numbers: Sequence[int]) -> list[list[Candidate]]:
        found: list[list[Candidate]] = []
        for part in _parts(len(streams)):
            some = streams[part]
            blocks = batch_of([s.block(n) for s, n in zip(some, numbers[part], strict=True)])
            probabilities, durations = self._spotter(blocks, [s.word_state for s in some])
            largest = probabilities.reshape(len(some), -1).max(axis=1).tolist()
            for row, (stream, number) in enumerate(zip(some, numbers[part], strict=True)):
                found.append(stream.heard_words(number, probabilities[row], largest[row], durations[row]))
        return found

    def _confirmed(self, stream: StreamState, candidate: Candidate) -> Detection | None:
        """A candidate that the classifiers, which hear the word by itself, do not doubt."""
        digit, evidence = self.evidence(stream, candidate)
        sure = confidence(evidence)
        if sure >= COMMIT_CONFIDENCE:
            stream.committed_until = int(candidate.last * HOP)
        if sure < self.thresholds.digit:
            return None
        end = candidate.last * HOP / SAMPLE_RATE
        # Frames come two at a time: a digit is known when the block of its frame is there.
        known = (candidate.frame // FRAMES + 1) * FRAMES * HOP / SAMPLE_RATE
        found = Detection(digit, sure, max(0.0, candidate.first * HOP / SAMPLE_RATE), end, known - end)
        if found.repeats(stream.reported) and not self.allow_repeats:
            return None
        stream.reported = found
        return found

    def evidence(self, stream: StreamState, candidate: Candidate) -> tuple[int, FusionScores]:
        """Which digit the spotter and the classifiers together take a word for, and what speaks for it."""
        second = fit(stream.word(candidate))[None]
        heard = [classifier.hear(second) for classifier in self.classifiers]
        spotted = candidate.spotted.tolist()
        classified = [mean_log_odds(shares) for shares in zip(*(said[0].tolist() for said, _ in heard), strict=True)]
        digit = product_argmax(spotted, classified)
        is_digit = mean_log_odds([float(digit_scores[0]) for _, digit_scores in heard])
        return digit, FusionScores(spotted[digit], is_digit, classified[digit], stream.voice_of(candidate))


def available_pipelines(model_dir: str | Path) -> tuple[str, ...]:
    """Those of CONFIRMING that have a model in the folder. Raises ModelError where none has."""
    found = tuple(name for name in CONFIRMING if model_file(model_dir, name).is_file())
    if not found:
        load_classifier(model_dir, CONFIRMING[0])  # says what is missing, and what to do
    return found


def missing_note(model_dir: str | Path, pipelines: Sequence[str]) -> str:
    """What to say where `pipelines` are all that a folder has of CONFIRMING; "" where none is missing."""
    missing = [name for name in CONFIRMING if name not in pipelines]
    if not missing:
        return ""
    return f"{model_dir} has no {', no '.join(missing)}: words are confirmed by {', '.join(pipelines)} alone"


def _next(todo: dict[int, list[int]]) -> tuple[list[int], list[int]]:
    """The first block of each that has some left; what is done is taken away."""
    rows = list(todo)
    numbers = [todo[i].pop(0) for i in rows]
    for i in rows:
        if not todo[i]:
            del todo[i]
    return rows, numbers


def _parts(count: int) -> list[slice]:
    """As few as LARGEST_BATCH allows, and as equal as they can be."""
    parts = -(-count // LARGEST_BATCH)
    return [slice(count * i // parts, count * (i + 1) // parts) for i in range(parts)]
