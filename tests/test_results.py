"""Figures that results are made of."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest

from ml_training.config import TrainConfig
from ml_training.results import EpochRecord, Evaluation, PipelineResult, wilson_interval


def evaluation(said: list[int], heard: list[int], confidence: list[float] | None = None) -> Evaluation:
    """Clips of two speakers in turn; the rest of the probability goes to the next digit."""
    confidence = confidence or [0.9] * len(said)
    probabilities = np.zeros((len(said), 10), dtype=np.float32)
    for i, (digit, sure) in enumerate(zip(heard, confidence, strict=True)):
        probabilities[i, digit] = sure
        probabilities[i, (digit + 1) % 10] = 1 - sure
    return Evaluation(
        protocol="a test",
        files=tuple(f"{i}.wav" for i in range(len(said))),
        speakers=tuple("zoe" if i % 2 else "adam" for i in range(len(said))),
        labels=np.array(said, dtype=np.int64),
        probabilities=probabilities,
    )


SIX = evaluation([0, 1, 1, 2, 9, 9], [0, 1, 7, 2, 5, 3], [0.9, 0.8, 0.6, 0.9, 0.95, 0.6])


def test_counts() -> None:
    assert SIX.predicted.tolist() == [0, 1, 7, 2, 5, 3]
    assert (SIX.clips, SIX.errors) == (6, 3)
    assert SIX.accuracy == pytest.approx(0.5)
    assert SIX.confusion.sum() == 6
    assert SIX.confusion[1].tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    assert SIX.confusion[9, 5] == SIX.confusion[9, 3] == 1


def test_groups() -> None:
    assert SIX.accuracy_by_digit() == {0: (1, 1), 1: (1, 2), 2: (1, 1), 9: (0, 2)}
    assert SIX.accuracy_by_speaker() == {"adam": (1, 3), "zoe": (2, 3)}


def test_mistakes_come_most_confident_first_and_stay_in_order_where_equal() -> None:
    assert SIX.mistakes() == [4, 2, 5]


def test_no_clips() -> None:
    empty = evaluation([], [])
    assert (empty.clips, empty.errors, empty.mistakes()) == (0, 0, [])
    assert math.isnan(empty.accuracy)
    assert empty.interval == (0.0, 1.0)
    assert empty.accuracy_by_digit() == {}
    assert empty.accuracy_by_speaker() == {}
    assert empty.confusion.shape == (10, 10)


@pytest.mark.parametrize(
    ("right", "clips", "low", "high"),
    # Published values of the score interval: R. G. Newcombe (1998), Statistics in Medicine 17, 857-872, table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_matches_published_values(right: int, clips: int, low: float, high: float) -> None:
    assert wilson_interval(right, clips) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_is_symmetric_and_narrows() -> None:
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
    widths = [high - low for low, high in (wilson_interval(9 * n, 10 * n) for n in (1, 10, 100))]
    assert all(wide > narrow for wide, narrow in pairwise(widths))


def test_summary_is_json_and_complete() -> None:
    record = EpochRecord(1, 2.0, 0.5, 1.5, 0.6, 0.003, 4.0)
    result = PipelineResult(
        pipeline="mfcc", config=TrainConfig(), history=(record,), test=SIX,
        mistake_waveforms=np.zeros((3, 8000), dtype=np.float32), best_epoch=1, stopped="all epochs done",
        parameters=10, model_bytes=20, latency_ms=1.0, train_seconds=4.0, peak_memory_mb=100.0, model_file="m.onnx",
    )  # fmt: skip
    summary = json.loads(json.dumps(result.summary()))
    assert summary["history"] == [vars(record)]
    assert summary["pipeline"] == "mfcc"
    test = summary["test"]
    assert (test["clips"], test["errors"], test["accuracy"]) == (6, 3, 0.5)
    assert test["interval_95"] == pytest.approx(wilson_interval(3, 6))
    assert test["by_digit"]["9"] == {"right": 0, "clips": 2}
    assert test["by_speaker"]["zoe"] == {"right": 2, "clips": 3}
    assert [m["file"] for m in test["mistakes"]] == ["4.wav", "2.wav", "5.wav"]
    assert test["mistakes"][0]["digit"] == 9
    assert test["mistakes"][0]["heard"] == 5
    assert test["mistakes"][0]["confidence"] == pytest.approx(0.95)
    assert np.array(test["confusion"]).shape == (10, 10)
