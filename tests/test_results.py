"""The figures of an evaluation and their JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from digit_detector.evaluation.metrics import wilson_interval
from ml_training.config import TrainConfig
from ml_training.results import EpochRecord, Evaluation, PipelineResult


def evaluation(labels: list[int], predicted: list[int], confidence: list[float]) -> Evaluation:
    """Clips of two speakers in turn; the rest of the probability goes to the next digit."""
    probabilities = np.zeros((len(labels), 10), dtype=np.float32)
    for i, (digit, sure) in enumerate(zip(predicted, confidence, strict=True)):
        probabilities[i, digit] = sure
        probabilities[i, (digit + 1) % 10] = 1 - sure
    files = tuple(f"{i}.wav" for i in range(len(labels)))
    speakers = tuple("zoe" if i % 2 else "adam" for i in range(len(labels)))
    return Evaluation("a test", files, speakers, np.array(labels, dtype=np.int64), probabilities)


SIX = evaluation([0, 1, 1, 2, 9, 9], [0, 1, 7, 2, 5, 3], [0.9, 0.8, 0.6, 0.9, 0.95, 0.6])


def test_figures_of_six_clips() -> None:
    assert SIX.predicted.tolist() == [0, 1, 7, 2, 5, 3]
    assert (SIX.clips, SIX.errors, SIX.accuracy) == (6, 3, pytest.approx(0.5))
    assert SIX.confusion.sum() == 6
    assert SIX.confusion[1].tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    assert SIX.confusion[9, 5] == SIX.confusion[9, 3] == 1
    assert SIX.accuracy_by_digit() == {0: (1, 1), 1: (1, 2), 2: (1, 1), 9: (0, 2)}
    assert SIX.accuracy_by_speaker() == {"adam": (1, 3), "zoe": (2, 3)}
    assert SIX.mistakes() == [4, 2, 5], "the most confident first, equal ones in order"


def test_no_clips() -> None:
    empty = evaluation([], [], [])
    assert (empty.clips, empty.errors, empty.mistakes()) == (0, 0, [])
    assert math.isnan(empty.accuracy)
    assert empty.interval == (0.0, 1.0)
    assert (empty.accuracy_by_digit(), empty.accuracy_by_speaker(), empty.confusion.shape) == ({}, {}, (10, 10))


def test_a_summary_is_json_and_complete() -> None:
    record = EpochRecord(1, 2.0, 0.5, 1.5, 0.6, 0.003, 4.0)
    result = PipelineResult(
        pipeline="mfcc", config=TrainConfig(), history=(record,), test=SIX,
        mistake_waveforms=np.zeros((3, 8000), dtype=np.float32), best_epoch=1, stopped="all epochs done",
        parameters=10, model_bytes=20, latency_ms=1.0, train_seconds=4.0, peak_memory_mb=100.0, model_file="m.onnx",
        version=3,
    )  # fmt: skip
    summary = json.loads(json.dumps(result.summary()))
    assert set(summary) == {
        "pipeline", "best_epoch", "stopped", "parameters", "model_bytes", "latency_ms", "train_seconds",
        "peak_memory_mb", "model_file", "model_version", "temperature", "test", "history",
    }  # fmt: skip
    assert (summary["history"], summary["pipeline"], summary["model_version"]) == ([vars(record)], "mfcc", 3)
    test = summary["test"]
    assert (test["clips"], test["errors"], test["accuracy"]) == (6, 3, 0.5)
    assert test["interval_95"] == pytest.approx(wilson_interval(3, 6))
    assert test["by_digit"]["9"] == {"right": 0, "clips": 2}
    assert test["by_speaker"]["zoe"] == {"right": 2, "clips": 3}
    assert [clip["file"] for clip in test["misclassified"]] == ["4.wav", "2.wav", "5.wav"]
    first = {"file": "4.wav", "reference": 9, "hypothesis": 5, "confidence": pytest.approx(0.95)}
    assert test["misclassified"][0] == first
    assert np.array(test["confusion"]).shape == (10, 10)
