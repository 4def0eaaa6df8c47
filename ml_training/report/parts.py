"""The drawn and sounding parts of the report: learning curves, outlines of clips, WAV files."""

from __future__ import annotations

import io
import math
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio import SAMPLE_RATE
from ml_training.results import EpochRecord

MAX_POINTS = 400  # of a curve


@dataclass(frozen=True)
class Line:
    """A curve as an SVG path."""

    name: str
    path: str


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A picture of two curves over the epochs, in the units of its viewBox."""

    title: str
    description: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    best: tuple[float, float] | None
    best_epoch: int
    width: int = 400
    height: int = 238
    left: int = 40
    right: int = 390
    top: int = 12
    bottom: int = 196


def draw_curves(history: Sequence[EpochRecord], best_epoch: int) -> tuple[Chart, Chart]:
    """Loss and accuracy over the epochs, training and validation."""
    return (
        _draw(history, best_epoch, "Loss", lambda r: r.train_loss, lambda r: r.validation_loss, ""),
        _draw(
            history,
            best_epoch,
            "Accuracy",
            lambda r: 100 * r.train_accuracy,
            lambda r: 100 * r.validation_accuracy,
            " %",
        ),
    )


def _draw(
    records: Sequence[EpochRecord],
    best_epoch: int,
    title: str,
    of_training: Callable[[EpochRecord], float],
    of_validation: Callable[[EpochRecord], float],
    unit: str,
) -> Chart:
    stride = max(1, math.ceil(len(records) / MAX_POINTS))
    history = [r for i, r in enumerate(records, 1) if i % stride == 0 or i in (1, len(records))]
    series = {"training": [of_training(r) for r in history], "validation": [of_validation(r) for r in history]}
    values = [v for curve in series.values() for v in curve if math.isfinite(v)] or [0.0, 1.0]
    epochs = [r.epoch for r in history] or [1]
    frame = Chart(title, "", (), (), (), None, best_epoch)
    y_low, y_high, y_ticks = nice_axis(min(values), 100.0 if unit else max(values))

    def x(epoch: float) -> float:
        return frame.left + (frame.right - frame.left) * (epoch - epochs[0]) / max(1, epochs[-1] - epochs[0])

    def y(value: float) -> float:
        return frame.bottom - (frame.bottom - frame.top) * (value - y_low) / (y_high - y_low)

    def path(curve: Sequence[float]) -> str:
        steps, joined = [], False
        for epoch, value in zip(epochs, curve, strict=False):
            if math.isfinite(value):
                point = f"{x(epoch):.1f} {y(value):.1f}"
                steps.append(f"L{point}" if joined else f"M{point}h0")  # h0: alone between two gaps it is still a dot
            joined = math.isfinite(value)  # an epoch that diverged leaves a gap
        return "".join(steps)

    best = next((of_validation(r) for r in records if r.epoch == best_epoch), math.nan)
    words = f"{title} over {len(records)} epochs. "
    if math.isfinite(best):
        first = series["validation"][0]
        words += f"Validation goes from {first:.3g}{unit} to {best:.3g}{unit} at the best epoch, {best_epoch}."
    _, _, ticks = nice_axis(epochs[0], max(epochs[-1], epochs[0] + 1), whole=True)
    # The first epoch and every round one that leaves room for it.
    x_ticks = [epochs[0], *(t for t in ticks if t <= epochs[-1] and x(t) - frame.left > 20)]
    return Chart(
        title=title + (", %" if unit else ""),
        description=words,
        lines=tuple(Line(name, path(curve)) for name, curve in series.items()),
        x_ticks=tuple(Tick(x(t), f"{t:g}") for t in x_ticks),
        y_ticks=tuple(Tick(y(t), f"{t:g}") for t in y_ticks),
        best=(x(best_epoch), y(best)) if math.isfinite(best) else None,
        best_epoch=best_epoch,
    )


def nice_axis(low: float, high: float, whole: bool = False) -> tuple[float, float, list[float]]:
    """Round ends and about five ticks at 1, 2 or 5 times a power of ten for values in [low, high]."""
    span = (high - low) or max(abs(high), 1.0) * 0.1
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return first * step, last * step, [round(i * step, 10) for i in range(first, last + 1)]


def listenable_wav(samples: NDArray[np.float32]) -> bytes:
    """A clip (T,) as a 16-bit WAV file, its loudest sample at 90 % of full scale."""
    peak = float(np.abs(samples).max(initial=0.0))
    whole = np.round(samples * (0.9 * 32767 / peak if peak else 0.0)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(whole.tobytes())
    return buffer.getvalue()


def outline(samples: NDArray[np.float32], bars: int = 80) -> str:
    """A clip (T,) as an SVG path of upright strokes, `bars` wide and 32 high."""
    peaks = np.array([np.abs(part).max(initial=0.0) for part in np.array_split(samples, bars)])
    heights = np.maximum(0.5, 15 * peaks / (peaks.max() or 1.0))
    return "".join(f"M{x}.5 {16 - h:.1f}v{2 * h:.1f}" for x, h in enumerate(heights))
