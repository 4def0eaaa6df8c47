"""Detection error trade-off: misses against false alarms over the thresholds, and their choice.

The acoustic model runs once over each recording; its posteriors are decoded again for every operating point.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import DataError
from digit_detector.evaluation.scoring import Score, score
from digit_detector.evaluation.streams import TestStream
from digit_detector.files import write_atomically
from digit_detector.streaming.config import ANY, DIGITS, DetectorConfig
from digit_detector.streaming.decoder import Decoder, Detection
from digit_detector.streaming.engine import Engine

OTHER_RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)  # candidates
STEPS = 400  # thresholds of a curve
_BATCH = 32  # recordings
_MIN_ALARMS = 0.3  # false alarms an hour at which the axis begins
_COLOURS = ("tab:blue", "tab:orange", "tab:green")
_STYLES = {DIGITS: "-", ANY: "--"}


@dataclass(frozen=True, eq=False)
class Frames:
    """Output of the acoustic model for a recording of F frames."""

    posteriors: Floats  # (F, 15)
    speech: Floats  # (F,)
    seconds: float  # of the recording

    def decode(self, config: DetectorConfig) -> list[Detection]:
        """What a detector with this config reports."""
        decoder = Decoder(config)
        rows = zip(self.posteriors, self.speech.tolist(), strict=True)
        return [d for row, speech in rows for d in decoder.push(row.tolist(), speech)] + decoder.end_utterance()


@dataclass(frozen=True, eq=False)
class Outputs:
    """Output of the acoustic model for recordings of known content."""

    digits: tuple[tuple[TestStream, Frames], ...]
    negatives: Mapping[str, tuple[Frames, ...]]  # kind of audio without digits -> recordings

    def detect(self, config: DetectorConfig) -> Detections:
        """Decode everything with thresholds of confidence 0, which accept all that any other would."""
        config = replace(config, digits_threshold=0.0, any_threshold=0.0)
        return Detections(
            config,
            tuple((stream, frames.decode(config)) for stream, frames in self.digits),
            {
                kind: ([d for frames in each for d in frames.decode(config)], sum(f.seconds for f in each) / 3600)
                for kind, each in self.negatives.items()
            },
        )


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections at any confidence, in one context and with one other_ratio."""

    config: DetectorConfig
    digits: tuple[tuple[TestStream, list[Detection]], ...]
    negatives: Mapping[str, tuple[list[Detection], float]]  # kind of audio without digits -> detections, hours

    def score(self, threshold: float) -> Score:
        """Counts over all streams of digits at a threshold."""
        return sum((score(stream.digits, self.accept(found, threshold)) for stream, found in self.digits), Score())

    def false_alarms_per_hour(self, kind: str, threshold: float) -> float:
        """Detections per hour in a kind of audio without digits."""
        detections, hours = self.negatives[kind]
        return len(self.accept(detections, threshold)) / hours

    def accept(self, detections: Sequence[Detection], threshold: float) -> list[Detection]:
        """`accept` in the context of these detections."""
        return accept(detections, threshold, self.config.context)

    def thresholds(self) -> list[float]:
        """Ascending thresholds at which anything changes, at most STEPS of them."""
        lists = [each for _, each in self.digits] + [each for each, _ in self.negatives.values()]
        groups = [group for each in lists for group in group_utterances(each, self.config.context)]
        values = np.unique([0.0, *(_mean_confidence(group) for group in groups)])
        if len(values) > STEPS:
            values = np.quantile(values, np.linspace(0.0, 1.0, STEPS))
        return [float(value) for value in values]


@dataclass(frozen=True, eq=False)
class OperatingPoint:
    """Detections with a chosen threshold of confidence."""

    detections: Detections
    threshold: float

    def score(self) -> Score:
        return self.detections.score(self.threshold)

    def false_alarms_per_hour(self, kind: str) -> float:
        return self.detections.false_alarms_per_hour(kind, self.threshold)


def accept(detections: Sequence[Detection], threshold: float, context: str) -> list[Detection]:
    """The detections that a detector with a threshold reports, out of those of one with threshold 0."""
    groups = group_utterances(detections, context)
    return [detection for group in groups if _mean_confidence(group) >= threshold for detection in group]


def group_utterances(detections: Sequence[Detection], context: str) -> list[list[Detection]]:
    """The detections of each utterance, which are reported at once; in context any each by itself."""
    if context == ANY:
        return [[detection] for detection in detections]
    return [list(group) for _, group in itertools.groupby(detections, lambda each: round(each.reported, 4))]


def _mean_confidence(detections: Sequence[Detection]) -> float:
    return sum(detection.confidence for detection in detections) / len(detections)


class _Recorder(Decoder):
    """Stores what a decoder gets."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__(config)
        self.posteriors: list[Sequence[float]] = []
        self.speech: list[float] = []

    def push(self, posteriors: Sequence[float], speech: float) -> list[Detection]:
        self.frame += 1
        self.posteriors.append(np.asarray(posteriors, dtype=np.float32).tolist())
        self.speech.append(speech)
        return []


def run_acoustic_model(
    engine: Engine, recordings: Sequence[Floats], progress: Callable[[int], None] = lambda samples: None
) -> list[Frames]:
    """The output for each (T,) recording at 8 kHz, to its end; calls `progress` with the samples of each batch."""
    outputs: list[Frames] = []
    for first in range(0, len(recordings), _BATCH):
        batch = recordings[first : first + _BATCH]
        streams, blocks, recorders = [], [], []
        for samples in batch:
            stream, recorder = engine.new_stream(), _Recorder(engine.config)
            stream.decoder = recorder
            blocks.append([*stream.split_blocks(samples), *stream.flush_blocks()])
            streams.append(stream)
            recorders.append(recorder)
        for place in range(max(map(len, blocks))):
            rows = [row for row, each in enumerate(blocks) if place < len(each)]
            engine.process([streams[row] for row in rows], [blocks[row][place] for row in rows])
        outputs += [
            Frames(np.array(r.posteriors, np.float32), np.array(r.speech), len(samples) / SAMPLE_RATE)
            for r, samples in zip(recorders, batch, strict=True)
        ]
        progress(sum(map(len, batch)))
    return outputs


def run(
    engine: Engine, streams: Sequence[TestStream], negatives: Mapping[str, Sequence[Floats]],
    progress: Callable[[float], None] = lambda fraction: None,
) -> Outputs:  # fmt: skip
    """The acoustic model's output for streams of digits and for (T,) recordings without; reports the fraction done."""
    recordings = [*(stream.samples for stream in streams), *(each for kind in negatives.values() for each in kind)]
    total, done = sum(map(len, recordings)), 0

    def count(samples: int) -> None:
        nonlocal done
        done += samples
        progress(done / total)

    outputs = iter(run_acoustic_model(engine, recordings, count))
    return Outputs(
        tuple((stream, next(outputs)) for stream in streams),
        {kind: tuple(next(outputs) for _ in each) for kind, each in negatives.items()},
    )


def choose_threshold(detections: Detections, limits: Mapping[str, float]) -> float:
    """The lowest threshold, in hundredths, at which no kind exceeds its limit of false alarms per hour.

    Raises DataError if there is none.
    """
    for step in range(1, 100):
        threshold = step / 100
        if all(detections.false_alarms_per_hour(kind, threshold) <= limit for kind, limit in limits.items()):
            return threshold
    alarms = ", ".join(f"{detections.false_alarms_per_hour(kind, 0.99):.1f} of {kind}" for kind in limits)
    raise DataError(
        f"context {detections.config.context}: even at a threshold of 0.99 there are too many false alarms per hour "
        f"({alarms}): allow more"
    )


def choose_any(outputs: Outputs, config: DetectorConfig, limits: Mapping[str, float]) -> OperatingPoint:
    """any_threshold for the limits of false alarms per hour. Raises DataError."""
    detections = outputs.detect(replace(config, context=ANY))
    return OperatingPoint(detections, choose_threshold(detections, limits))


def choose_digits(
    outputs: Outputs, config: DetectorConfig, limits: Mapping[str, float],
    progress: Callable[[float], None] = lambda fraction: None,
) -> OperatingPoint:  # fmt: skip
    """other_ratio and digits_threshold: of the ratios that stay within the limits the most accurate. Raises DataError.

    Among equally accurate ones the lowest, which drops most sentences.
    """
    points, errors = [], []
    for done, ratio in enumerate(OTHER_RATIOS, 1):
        detections = outputs.detect(replace(config, context=DIGITS, other_ratio=ratio))
        try:
            points.append(OperatingPoint(detections, choose_threshold(detections, limits)))
        except DataError as error:
            errors.append(error)
        progress(done / len(OTHER_RATIOS))
    if not points:
        raise errors[0]
    return max(points, key=lambda point: point.score().accuracy)


def plot_det(points: Sequence[OperatingPoint], titles: Mapping[str, str], path: Path) -> None:
    """Write a PNG: digits missed against false alarms per hour of each kind, in each context; dots: the thresholds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.0), layout="constrained")
    axes = figure.subplots()
    for point in points:
        detections, context = point.detections, point.detections.config.context
        thresholds = detections.thresholds()
        missed = [_miss_percent(detections, threshold) for threshold in thresholds]
        for kind, colour in zip(detections.negatives, _COLOURS, strict=False):
            alarms = [max(_MIN_ALARMS, detections.false_alarms_per_hour(kind, threshold)) for threshold in thresholds]
            label = f"context {context}: {titles.get(kind, kind)}"
            axes.plot(alarms, missed, _STYLES[context], color=colour, label=label)
            chosen_alarms = point.false_alarms_per_hour(kind)
            place = (max(_MIN_ALARMS, chosen_alarms), _miss_percent(detections, point.threshold))
            axes.plot(*([value] for value in place), "o", color=colour)
            axes.annotate(f"{chosen_alarms:.1f} an hour", place, (6, 6), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="false alarms an hour", ylabel="digits missed or mistaken, %")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
    axes.set_title("Detection error trade-off; dots: the chosen thresholds")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    write_atomically(path, content.getvalue())


def _miss_percent(detections: Detections, threshold: float) -> float:
    counts = detections.score(threshold)
    return max(0.1, 100.0 * (counts.substituted + counts.deleted) / max(1, counts.reference))


def format_table(detections: Detections, thresholds: Sequence[float]) -> str:
    """The curve at some thresholds as lines of text."""
    kinds = list(detections.negatives)
    lines = ["threshold  right %  missed %  mistaken %  " + "  ".join(f"{kind}, false alarms/h" for kind in kinds)]
    for threshold in thresholds:
        counts = detections.score(threshold)
        scale = 100 / max(1, counts.reference)
        alarms = (f"{detections.false_alarms_per_hour(kind, threshold):{len(kind) + 16}.1f}" for kind in kinds)
        lines.append(
            f"{threshold:9.2f}  {scale * counts.correct:7.1f}  {scale * counts.deleted:8.1f}"
            f"  {scale * counts.substituted:10.1f}  {'  '.join(alarms)}"
        )
    return "\n".join(lines)
