"""Made-up but plausible results, for plots and reports."""

import math

import numpy as np
import pytest

from digit_detector.labels import MEL_CNN, MFCC, PIPELINES, RAW_CNN
from ml_training.config import AugmentationConfig, TrainConfig
from ml_training.results import Count, DataSummary, EpochRecord, Evaluation, ModelScore, PipelineResult, ProtocolResult

SPEAKERS = ("george", "jackson", "lucas")


def curve(epochs, best):
    """Learning curves whose validation loss is lowest at epoch `best`."""
    return tuple(
        EpochRecord(
            epoch=e, train_loss=0.7 + 1.6 * math.exp(-e / 4), train_accuracy=0.88 - 0.7 * math.exp(-e / 4),
            validation_loss=0.5 + 1.7 * math.exp(-e / 4) + 3 * abs(e - best) / epochs,
            validation_accuracy=0.99 - 0.8 * math.exp(-e / 4), learning_rate=0.003, seconds=4.0,
        )
        for e in range(1, epochs + 1)
    )  # fmt: skip


def made_up(pipeline, errors, *, speakers=SPEAKERS, epochs=20):
    """A result with `errors` wrong answers, each one digit too high; each misclassified clip is another tone."""
    rows = [(d, s, i) for s in speakers for d in range(10) for i in range(5)]
    labels = np.array([d for d, _, _ in rows], dtype=np.int64)
    predicted = labels.copy()
    wrong = np.linspace(0, len(rows) - 1, errors).astype(int) if errors else np.array([], dtype=int)
    predicted[wrong] = (labels[wrong] + 1) % 10
    probabilities = np.full((len(rows), 10), 0.01, dtype=np.float32)
    probabilities[np.arange(len(rows)), labels] += 0.1
    probabilities[np.arange(len(rows)), predicted] += np.linspace(0.6, 0.9, len(rows), dtype=np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    time = np.arange(8000) / 8000
    tones = [0.01 * np.sin(2 * np.pi * (200 + 20 * n) * time) * np.hanning(8000) for n in range(errors)]
    known = pipeline if pipeline in PIPELINES else "all"
    return PipelineResult(
        pipeline=pipeline,
        config=TrainConfig(pipeline=known, epochs=epochs, augmentation=AugmentationConfig()),
        history=curve(epochs, epochs // 2),
        test=Evaluation("official split, test part", tuple(f"{d}_{s}_{i}.wav" for d, s, i in rows),
                        tuple(s for _, s, _ in rows), labels, probabilities),
        mistake_waveforms=np.array(tones, dtype=np.float32).reshape(errors, 8000),
        best_epoch=epochs // 2, stopped="all epochs done", parameters=98_314, model_bytes=412_201, latency_ms=0.91,
        train_seconds=81.0, peak_memory_mb=742.3, model_file=f"models/{pipeline}_classifier/model.onnx",
    )  # fmt: skip


def protocol_result(protocol, scores=None, **changes):
    """An evaluation of two pipelines with three seeds, or of `scores`."""
    by_speaker = {"ann": Count(45, 50), "<b>ben</b>": Count(40, 50)}
    if scores is None:
        scores = tuple(
            ModelScore(p, s, Count(85, 100), by_speaker, {"1": Count(85, 100)}) for p in (MFCC, MEL_CNN) for s in "012"
        )
    values = {
        "protocol": protocol, "definition": "made up", "data": "people", "data_hash": "0123456789abcdef",
        "synthetic": False, "clips": 100, "speakers": 2, "seeds": ("0", "1", "2"), "version": "1.2.3",
        "git_commit": "a" * 40 + "-dirty", "created": "2030-01-02T03:04:05+00:00", "scores": scores,
    }  # fmt: skip
    return ProtocolResult(**{**values, **changes})


@pytest.fixture
def make_result():
    return made_up


@pytest.fixture
def make_protocol_result():
    return protocol_result


@pytest.fixture(scope="session")
def results():
    return [made_up(MFCC, 4), made_up(MEL_CNN, 1), made_up(RAW_CNN, 0)]


@pytest.fixture
def summary():
    return DataSummary(
        name="Free Spoken Digit Dataset", data_hash="0123456789abcdef", synthetic=False, clips=1500, speakers=SPEAKERS,
        hours=0.2, split="official", parts={"train": 1215, "validation": 135, "test": 150},
    )  # fmt: skip
