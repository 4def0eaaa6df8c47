"""How misses and false alarms go against each other as the threshold moves, and which threshold to take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import DataError
from digit_detector.evaluation.scoring import Score, score
from digit_detector.evaluation.streams import TestStream
from digit_detector.files import write_atomically
from digit_detector.streaming.detector import StreamingDetector
from digit_detector.streaming.engine import Detection, Engine

STEPS = 400  # thresholds of a curve
_FEWEST = 0.3  # false alarms an hour that the axis begins with
_TOLD = 30 * SAMPLE_RATE  # samples between two reports


@dataclass(frozen=True, eq=False)
class ScoredStreams:
    """What was found, with how sure of it, in sound of which everything is known."""

    said: tuple[tuple[TestStream, list[Detection]], ...]  # streams of digits
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


def accept_all(engine: Engine) -> Engine:
    """The same engine that reports whatever it takes for a digit at all, however accept_all."""
    other = object.__new__(Engine)
    other.__dict__.update(engine.__dict__)
    other.thresholds = replace(engine.thresholds, digit=0.0)
    other.allow_repeats = True  # what repeats another depends on the threshold
    return other


def listen(
    engine: Engine,
    streams: Sequence[TestStream],
    quiet: Mapping[str, Floats],
    progress: Callable[[float], None] = lambda share: None,
) -> ScoredStreams:
    """Hear streams of digits, and (T,) of sounds without; anything found, however accept_all, is kept.

    `progress` is told now and then which share of all that is done.
    """
    engine = accept_all(engine)
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

    return ScoredStreams(
        tuple((stream, found_in(stream.samples)) for stream in streams),
        {kind: (found_in(sound), len(sound) / SAMPLE_RATE / 3600) for kind, sound in quiet.items()},
    )


def list_thresholds(heard: ScoredStreams) -> list[float]:
    """Ascending thresholds at which anything changes, at most STEPS of them."""
    detections = [d for _, found in heard.said for d in found] + [d for found, _ in heard.quiet.values() for d in found]
    values = np.unique([0.0, *(d.confidence for d in detections)])
    if len(values) > STEPS:
        values = np.quantile(values, np.linspace(0.0, 1.0, STEPS))
    return [float(value) for value in values]


def choose(heard: ScoredStreams, most: Mapping[str, float]) -> float:
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


def plot_det(heard: ScoredStreams, chosen: float, titles: dict[str, str], path: Path) -> None:
    """Write a PNG: digits missed against false alarms an hour of each kind of sound, with the chosen threshold."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.0), layout="constrained")
    axes = figure.subplots()
    steps = list_thresholds(heard)
    missed = [_missed(heard, threshold) for threshold in steps]
    for kind, colour in zip(heard.quiet, ("tab:blue", "tab:orange", "tab:green"), strict=False):
        alarms = [max(_FEWEST, heard.false_alarms(kind, threshold)) for threshold in steps]
        axes.plot(alarms, missed, color=colour, label=titles.get(kind, kind))
        at = max(_FEWEST, heard.false_alarms(kind, chosen))
        axes.plot([at], [_missed(heard, chosen)], "o", color=colour)
        axes.annotate(
            f"{heard.false_alarms(kind, chosen):.1f} an hour",
            (at, _missed(heard, chosen)),
            (6, 6),
            textcoords="offset points",
        )
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


def _missed(heard: ScoredStreams, threshold: float) -> float:
    found = heard.score(threshold)
    return max(0.1, 100.0 * (found.substituted + found.deleted) / max(1, found.said))


def table(heard: ScoredStreams, thresholds: Sequence[float]) -> str:
    """The curve at some thresholds as lines of text."""
    kinds = list(heard.quiet)
    lines = ["threshold  right %  missed %  mistaken %  " + "  ".join(f"{kind}, false alarms/h" for kind in kinds)]
    for threshold in thresholds:
        found = heard.score(threshold)
        said = max(1, found.said)
        alarms = "  ".join(f"{heard.false_alarms(kind, threshold):{len(kind) + 16}.1f}" for kind in kinds)
        lines.append(
            f"{threshold:9.2f}  {100 * found.right / said:7.1f}  {100 * found.deleted / said:8.1f}"
            f"  {100 * found.substituted / said:10.1f}  {alarms}"
        )
    return "\n".join(lines)
