"""Inference over streams: batches the next block of each through the filters, the networks and the fusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from digit_detector.audio import SAMPLE_RATE, Floats, pad_or_trim
from digit_detector.classifier import DigitClassifier, load_classifier, model_file
from digit_detector.errors import ConfigError
from digit_detector.labels import MEL_CNN, MFCC, PRETRAINED, RAW_CNN
from digit_detector.spotter_file import FRAMES, HOP
from digit_detector.streaming.config import DetectorConfig, load_config
from digit_detector.streaming.fusion import FusionScores, fuse, mean_log_odds, product_argmax
from digit_detector.streaming.high_pass import high_pass
from digit_detector.streaming.peak_picker import Candidate, Detection
from digit_detector.streaming.spotter import load_spotter, stack
from digit_detector.streaming.stream_state import StreamState
from digit_detector.streaming.vad import load_voice_activity

__all__ = ["CONFIRMING", "Detection", "Engine", "available_pipelines", "missing_note"]

CONFIRMING = (MEL_CNN, RAW_CNN, MFCC)  # classifiers that verify candidates
_MAX_BATCH = 32  # streams: beyond, what a network computes no longer fits the cache of a core


class Engine:
    """The networks and the config, shared by any number of streams."""

    def __init__(
        self,
        model_dir: str | Path = PRETRAINED,
        pipelines: Sequence[str] | None = None,
        config: DetectorConfig | None = None,
        spotter_file: str | Path | None = None,
    ) -> None:
        """`pipelines` None uses those of CONFIRMING that the folder has; `spotter_file` None the bundled spotter.

        Raises ConfigError, ModelError, MissingExtraError.
        """
        self.config = config or load_config()
        self.allow_repeats = False  # whether a word may be reported twice, see Detection.repeats
        self._voice_activity = load_voice_activity()
        self._spotter = load_spotter(spotter_file)
        if pipelines is not None and (not pipelines or isinstance(pipelines, str)):
            raise ConfigError([f"pipelines: expected a list of names such as {CONFIRMING}, got {pipelines!r}"])
        self.pipelines = tuple(pipelines) if pipelines is not None else available_pipelines(model_dir)
        self.classifiers: list[DigitClassifier] = [load_classifier(model_dir, name) for name in self.pipelines]

    def new_stream(self) -> StreamState:
        return StreamState(self.config, self._voice_activity.SIZE, self._spotter.initial_state)

    def process(self, streams: Sequence[StreamState], blocks: Sequence[Floats]) -> list[list[Detection]]:
        """Process the next (256,) block of each stream -> the detections of each that it decides."""
        filtered, states = high_pass(
            stack(blocks), stack([stream.filter_state for stream in streams]), self.config.high_pass_hz
        )
        for stream, state in zip(streams, states, strict=True):
            stream.filter_state = state
        candidates: list[list[Candidate]] = [[] for _ in streams]
        due_vad = {i: due for i, stream in enumerate(streams) if (due := stream.push(filtered[i]))}
        due_spotter: dict[int, list[int]] = {}
        while due_vad:
            rows, numbers = _pop_first(due_vad)
            voices = self._run_vad([streams[i] for i in rows], numbers)
            for i, number, voice in zip(rows, numbers, voices, strict=True):
                if due := streams[i].on_vad(number, voice):
                    due_spotter.setdefault(i, []).extend(due)
        while due_spotter:
            rows, numbers = _pop_first(due_spotter)
            for i, new in zip(rows, self._run_spotter([streams[i] for i in rows], numbers), strict=True):
                candidates[i] += new
        return [
            [detection for candidate in each if (detection := self._verify(stream, candidate)) is not None]
            for stream, each in zip(streams, candidates, strict=True)
        ]

    def _run_vad(self, streams: Sequence[StreamState], numbers: Sequence[int]) -> list[float]:
        probabilities: list[float] = []
        for part in _split_batch(len(streams)):
            batch = streams[part]
            blocks = stack([s.block(n) for s, n in zip(batch, numbers[part], strict=True)])
            voices, states = self._voice_activity(blocks, stack([s.vad_state for s in batch]))
            for stream, state in zip(batch, states, strict=True):
                stream.vad_state = state if len(batch) == 1 else state.copy()  # a view would keep all
            probabilities += voices.tolist()
        return probabilities

    def _run_spotter(self, streams: Sequence[StreamState], numbers: Sequence[int]) -> list[list[Candidate]]:
        candidates: list[list[Candidate]] = []
        for part in _split_batch(len(streams)):
            batch = streams[part]
            blocks = stack([s.block(n) for s, n in zip(batch, numbers[part], strict=True)])
            posteriors, durations = self._spotter(blocks, [s.spotter_state for s in batch])
            largest = posteriors.reshape(len(batch), -1).max(axis=1).tolist()
            for row, (stream, number) in enumerate(zip(batch, numbers[part], strict=True)):
                candidates.append(stream.on_spotter(number, posteriors[row], largest[row], durations[row]))
        return candidates

    def _verify(self, stream: StreamState, candidate: Candidate) -> Detection | None:
        """The detection of a candidate whose confidence reaches the detection threshold, or None."""
        digit, scores = self.score_candidate(stream, candidate)
        confidence = fuse(scores, self.config)
        if confidence >= self.config.commit_confidence:
            stream.committed_until = int(candidate.last * HOP)
        if confidence < self.config.detection_threshold:
            return None
        end = candidate.last * HOP / SAMPLE_RATE
        # Frames come two at a time: a digit is decided when the block of its frame is there.
        decided = (candidate.frame // FRAMES + 1) * FRAMES * HOP / SAMPLE_RATE
        start = max(0.0, candidate.first * HOP / SAMPLE_RATE)
        detection = Detection(digit, confidence, start, end, decided - end)
        if not self.allow_repeats and detection.repeats(stream.last_detection, self.config.duplicate_seconds):
            return None
        stream.last_detection = detection
        return detection

    def score_candidate(self, stream: StreamState, candidate: Candidate) -> tuple[int, FusionScores]:
        """Run the classifiers on a candidate -> the digit of spotter and classifiers together, and its scores."""
        floor = self.config.probability_floor
        audio = pad_or_trim(stream.word_audio(candidate))[None]
        outputs = [classifier.predict_proba(audio) for classifier in self.classifiers]
        spotter = candidate.posteriors.tolist()
        posteriors = zip(*(probabilities[0].tolist() for probabilities, _ in outputs), strict=True)
        classifier = [mean_log_odds(each, floor) for each in posteriors]
        digit = product_argmax(spotter, classifier, floor)
        presence = mean_log_odds([float(digit_scores[0]) for _, digit_scores in outputs], floor)
        return digit, FusionScores(spotter[digit], presence, classifier[digit], stream.max_voice(candidate))


def available_pipelines(model_dir: str | Path) -> tuple[str, ...]:
    """The names of CONFIRMING that have a model in the folder. Raises ModelError if none has."""
    names = tuple(name for name in CONFIRMING if model_file(model_dir, name).is_file())
    if not names:
        load_classifier(model_dir, CONFIRMING[0])  # raises
    return names


def missing_note(model_dir: str | Path, pipelines: Sequence[str]) -> str:
    """A line that names the models of CONFIRMING missing from a folder; "" if none is."""
    missing = [name for name in CONFIRMING if name not in pipelines]
    if not missing:
        return ""
    return f"{model_dir} has no {', no '.join(missing)}: words are confirmed by {', '.join(pipelines)} alone"


def _pop_first(todo: dict[int, list[int]]) -> tuple[list[int], list[int]]:
    """The rows with blocks left, and the first block number of each, which is removed from `todo`."""
    rows = list(todo)
    numbers = [todo[i].pop(0) for i in rows]
    for i in rows:
        if not todo[i]:
            del todo[i]
    return rows, numbers


def _split_batch(count: int) -> list[slice]:
    """The fewest slices of at most _MAX_BATCH, of nearly equal size."""
    parts = -(-count // _MAX_BATCH)
    return [slice(count * i // parts, count * (i + 1) // parts) for i in range(parts)]
