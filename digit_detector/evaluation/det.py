"""Detection error trade-off: misses against false alarms over the threshold, and the choice of a threshold."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import DataError
from digit_detector.evaluation.scoring import Score, score
from digit_detector.evaluation.streams import TestStream
from digit_detector.files import write_atomically
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.detector import StreamingDetector
from digit_detector.streaming.engine import Detection, Engine

STEPS = 400  # thresholds of a curve
_MIN_ALARMS = 0.3  # false alarms an hour at which the axis begins
_PROGRESS = 30 * SAMPLE_RATE  # samples between two reports


@dataclass(frozen=True, eq=False)
class ScoredStreams:
    """Detections at any confidence in audio of known content."""

    digits: tuple[tuple[TestStream, list[Detection]], ...]
    negatives: Mapping[str, tuple[list[Detection], float]]  # kind of audio without digits -> detections, hours
    duplicate_seconds: float = DetectorConfig.duplicate_seconds

    def score(self, threshold: float) -> Score:
        """Counts over all streams of digits at a threshold."""
        return sum((score(s.digits, self.accept(detections, threshold)) for s, detections in self.digits), Score())

    def false_alarms_per_hour(self, kind: str, threshold: float) -> float:
        """Detections per hour in a kind of audio without digits."""
        detections, hours = self.negatives[kind]
        return len(self.accept(detections, threshold)) / hours

    def accept(self, detections: Sequence[Detection], threshold: float) -> list[Detection]:
        return accept(detections, threshold, self.duplicate_seconds)


def accept(
    detections: Sequence[Detection], threshold: float, duplicate_seconds: float = DetectorConfig.duplicate_seconds
) -> list[Detection]:
    """The detections that an engine with a threshold reports, out of those of one with threshold 0."""
    accepted: list[Detection] = []
    for detection in detections:
        last = accepted[-1] if accepted else None
        if detection.confidence >= threshold and not detection.repeats(last, duplicate_seconds):
            accepted.append(detection)
    return accepted


def accept_all(engine: Engine) -> Engine:
    """A copy of the engine that reports every candidate, repeated ones included."""
    other = object.__new__(Engine)
    other.__dict__.update(engine.__dict__)
    other.config = replace(engine.config, detection_threshold=0.0)
    other.allow_repeats = True  # which ones repeat another depends on the threshold
    return other


def run(
    engine: Engine, streams: Sequence[TestStream], negatives: Mapping[str, Floats],
    progress: Callable[[float], None] = lambda fraction: None,
) -> ScoredStreams:  # fmt: skip
    """Detect at threshold 0 in streams of digits and in (T,) audio without; calls `progress` with the fraction done."""
    engine = accept_all(engine)
    total = sum(len(audio) for audio in (*(stream.samples for stream in streams), *negatives.values()))
    done = 0

    def detect(samples: Floats) -> list[Detection]:
        nonlocal done
        detector, detections = StreamingDetector(engine=engine), []
        for first in range(0, len(samples), _PROGRESS):
            piece = samples[first : first + _PROGRESS]
            detections += detector.feed(piece)
            done += len(piece)
            progress(done / total)
        return detections + detector.flush()

    return ScoredStreams(
        tuple((stream, detect(stream.samples)) for stream in streams),
        {kind: (detect(audio), len(audio) / SAMPLE_RATE / 3600) for kind, audio in negatives.items()},
        engine.config.duplicate_seconds,
    )


def list_thresholds(scored: ScoredStreams) -> list[float]:
    """Ascending thresholds at which anything changes, at most STEPS of them."""
    lists = [each for _, each in scored.digits] + [each for each, _ in scored.negatives.values()]
    values = np.unique([0.0, *(detection.confidence for detections in lists for detection in detections)])
    if len(values) > STEPS:
        values = np.quantile(values, np.linspace(0.0, 1.0, STEPS))
    return [float(value) for value in values]


def choose_threshold(scored: ScoredStreams, limits: Mapping[str, float]) -> float:
    """The lowest threshold, in hundredths, at which no kind exceeds its limit of false alarms per hour.

    Raises DataError if there is none.
    """
    for step in range(1, 100):
        threshold = step / 100
        if all(scored.false_alarms_per_hour(kind, threshold) <= limit for kind, limit in limits.items()):
            return threshold
    alarms = ", ".join(f"{scored.false_alarms_per_hour(kind, 0.99):.1f} of {kind}" for kind in limits)
    raise DataError(f"even at a threshold of 0.99 there are too many false alarms per hour ({alarms}): allow more")


def plot_det(scored: ScoredStreams, chosen: float, titles: dict[str, str], path: Path) -> None:
    """Write a PNG: digits missed against false alarms per hour of each kind, with the chosen threshold marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.0), layout="constrained")
    axes = figure.subplots()
    thresholds = list_thresholds(scored)
    missed = [_miss_percent(scored, threshold) for threshold in thresholds]
    for kind, colour in zip(scored.negatives, ("tab:blue", "tab:orange", "tab:green"), strict=False):
        alarms = [max(_MIN_ALARMS, scored.false_alarms_per_hour(kind, threshold)) for threshold in thresholds]
        axes.plot(alarms, missed, color=colour, label=titles.get(kind, kind))
        chosen_alarms = scored.false_alarms_per_hour(kind, chosen)
        point = (max(_MIN_ALARMS, chosen_alarms), _miss_percent(scored, chosen))
        axes.plot(*([value] for value in point), "o", color=colour)
        axes.annotate(f"{chosen_alarms:.1f} an hour", point, (6, 6), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="false alarms an hour", ylabel="digits missed or mistaken, %")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
    axes.set_title(f"Detection error trade-off; dots: the threshold of {chosen:.2f}")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    write_atomically(path, content.getvalue())


def _miss_percent(scored: ScoredStreams, threshold: float) -> float:
    counts = scored.score(threshold)
    return max(0.1, 100.0 * (counts.substituted + counts.deleted) / max(1, counts.reference))


def format_table(scored: ScoredStreams, thresholds: Sequence[float]) -> str:
    """The curve at some thresholds as lines of text."""
    kinds = list(scored.negatives)
    lines = ["threshold  right %  missed %  mistaken %  " + "  ".join(f"{kind}, false alarms/h" for kind in kinds)]
    for threshold in thresholds:
        counts = scored.score(threshold)
        scale = 100 / max(1, counts.reference)
        alarms = (f"{scored.false_alarms_per_hour(kind, threshold):{len(kind) + 16}.1f}" for kind in kinds)
        lines.append(
            f"{threshold:9.2f}  {scale * counts.correct:7.1f}  {scale * counts.deleted:8.1f}"
            f"  {scale * counts.substituted:10.1f}  {'  '.join(alarms)}"
        )
    return "\n".join(lines)
