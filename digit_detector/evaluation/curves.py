"""How misses and false alarms go against each other as the threshold moves, and which threshold to take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import DataError
from digit_detector.evaluation.scoring import Score, score
from digit_detector.evaluation.streams import Stream
from digit_detector.streaming.detector import StreamingDetector
from digit_detector.streaming.engine import Detection, Engine

STEPS = 400  # thresholds of a curve
_TOLD = 30 * SAMPLE_RATE  # samples between two reports


@dataclass(frozen=True, eq=False)
class Heard:
    """What was found, with how sure of it, in sound of which everything is known."""

    said: tuple[tuple[Stream, list[Detection]], ...]  # streams of digits
    quiet: Mapping[str, tuple[list[Detection], float]]  # kind of sound without digits -> what was found, hours

    def score(self, threshold: float) -> Score:
        """Of all streams of digits, where only what is at least so sure counts."""
        return sum(
            (score(stream.digits, reported(found, threshold)) for stream, found in self.said),
            Score(),
        )

    def false_alarms(self, kind: str, threshold: float) -> float:
        """An hour of a kind of sound without digits."""
        found, hours = self.quiet[kind]
        return len(reported(found, threshold)) / hours


def reported(found: Sequence[Detection], threshold: float) -> list[Detection]:
    """What an engine of that threshold would have reported of all that one without any did."""
    kept: list[Detection] = []
    for detection in found:
        if detection.confidence >= threshold and not detection.repeats(kept[-1] if kept else None):
            kept.append(detection)
    return kept


def unsure(engine: Engine) -> Engine:
    """The same engine that reports whatever it takes for a digit at all, however unsure."""
    other = object.__new__(Engine)
    other.__dict__.update(engine.__dict__)
    other.thresholds = replace(engine.thresholds, digit=0.0)
    other.repeating = True  # what repeats another depends on the threshold
    return other


def listen(
    engine: Engine,
    streams: Sequence[Stream],
    quiet: Mapping[str, Floats],
    progress: Callable[[float], None] = lambda share: None,
) -> Heard:
    """Hear streams of digits, and (T,) of sounds without; anything found, however unsure, is kept.

    `progress` is told now and then which share of all that is done.
    """
    engine = unsure(engine)
    total = sum(len(sound) for sound in (*(stream.samples for stream in streams), *quiet.values()))
    done = 0

    def found_in(samples: Floats) -> list[Detection]:
        nonlocal done
        detector, found = StreamingDetector(engine=engine), []
        for first in range(0, len(samples), _TOLD):
            piece = samples[first : first + _TOLD]
            found += detector.feed(piece)
            done += len(piece)
            progress(done / total)
        return found + detector.flush()

    return Heard(
        tuple((stream, found_in(stream.samples)) for stream in streams),
        {kind: (found_in(sound), len(sound) / SAMPLE_RATE / 3600) for kind, sound in quiet.items()},
    )


def thresholds_of(heard: Heard) -> list[float]:
    """Ascending thresholds at which anything changes, at most STEPS of them."""
    detections = [d for _, found in heard.said for d in found] + [d for found, _ in heard.quiet.values() for d in found]
    values = np.unique([0.0, *(d.confidence for d in detections)])
    if len(values) > STEPS:
        values = np.quantile(values, np.linspace(0.0, 1.0, STEPS))
    return [float(value) for value in values]


def choose(heard: Heard, most: Mapping[str, float]) -> float:
    """The lowest threshold, in hundredths, at which no kind of sound gives more false alarms an hour than `most` says.

    Raises DataError where there is none.
    """
    for step in range(1, 100):
        threshold = step / 100
        if all(heard.false_alarms(kind, threshold) <= limit for kind, limit in most.items()):
            return threshold
    found = ", ".join(f"{heard.false_alarms(kind, 0.99):.1f} of {kind}" for kind in most)
    raise DataError(
        f"even at a threshold of 0.99 there are more false alarms an hour than asked for ({found}): ask for more"
    )
