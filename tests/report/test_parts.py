"""The drawn and sounding parts of the report: curves inside their frames, round axes, outlines, what players play."""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ml_training.report.parts import MAX_POINTS, draw_curves, listenable_wav, nice_axis, outline
from ml_training.results import PipelineResult

MakeResult = Callable[..., PipelineResult]


def test_curves_stay_inside_their_frame(make_result: MakeResult) -> None:
    for epochs in (1, 2, 7, 60, 5 * MAX_POINTS + 3):
        history = make_result("mfcc", 0, epochs=epochs).history
        for chart in draw_curves(history, epochs):
            for line in chart.lines:
                points = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", line.path)]
                assert 1 <= len(points) <= MAX_POINTS + 2
                assert all(chart.left <= x <= chart.right and chart.top <= y <= chart.bottom for x, y in points)
                assert points[0][0] == chart.left
            assert chart.best is not None
            assert chart.left <= chart.best[0] <= chart.right
            assert chart.x_ticks[0].text == "1"
            assert f"over {epochs} epoch" in chart.description


def test_higher_is_up_and_later_is_right(make_result: MakeResult) -> None:
    loss, accuracy = draw_curves(make_result("mfcc", 0).history, 10)
    for chart, sign in ((loss, 1), (accuracy, -1)):
        training = [tuple(map(float, p)) for p in re.findall(r"[ML]([\d.]+) ([\d.]+)", chart.lines[0].path)]
        xs, ys = zip(*training, strict=True)
        assert list(xs) == sorted(xs)
        assert list(ys) == sorted(ys, reverse=sign < 0)  # SVG counts downwards: a falling loss has a rising y


def test_diverged_epochs_leave_a_gap(make_result: MakeResult) -> None:
    history = [
        replace(r, validation_loss=float("nan")) if r.epoch in (3, 5) else r for r in make_result("mfcc", 0).history
    ]
    loss, _ = draw_curves(history, 3)
    validation = loss.lines[1].path
    assert validation.count("M") == 3
    assert "h0" in validation  # epoch 4, alone between two gaps, is still a dot
    assert loss.best is None
    assert "nan" not in validation


def test_no_epochs_at_all() -> None:
    for chart in draw_curves([], 1):
        assert chart.best is None
        assert all(line.path == "" for line in chart.lines)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.53, 2.31), (97.2, 100), (1, 60), (5, 5), (0, 0), (1e-6, 3e-6), (-3, 12345)]
)
def test_nice_axis(low: float, high: float) -> None:
    start, end, ticks = nice_axis(low, high)
    assert start <= low <= high <= end
    assert ticks[0] == pytest.approx(start)
    assert ticks[-1] == pytest.approx(end)
    assert 2 <= len(ticks) <= 8
    step = (ticks[1] - ticks[0]) / 10 ** np.floor(np.log10((ticks[1] - ticks[0]) * 1.0000001))
    assert round(step, 6) in (1, 2, 5)


def test_silence_is_played_as_silence() -> None:
    with wave.open(io.BytesIO(listenable_wav(np.zeros(8000, dtype=np.float32)))) as file:
        assert not any(file.readframes(8000))


def test_outline_follows_the_loudness() -> None:
    samples = np.zeros(8000, dtype=np.float32)
    samples[4000:4100] = -0.2
    heights = [float(v) for v in re.findall(r"v([\d.]+)", outline(samples))]
    assert len(heights) == 80
    assert heights.index(max(heights)) == 40
    assert max(heights) == 30
    assert min(heights) == 1
