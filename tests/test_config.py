"""Settings: what is refused and how it is said, and what names follow from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from digit_detector.errors import ConfigError
from digit_detector.labels import MFCC, PIPELINES, model_folder
from ml_training.config import MAX_VOICES, AugmentationConfig, TrainConfig
from ml_training.data.tts import VOICES


def faults_of(**settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**settings)
    return caught.value.faults


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        (f.name, f.metadata["low"], f.metadata["high"])
        for f in dataclasses.fields(TrainConfig)
        if f.metadata.get("high", float("inf")) != float("inf")
    ],
)
def test_ranges_are_inclusive(name: str, low: float, high: float) -> None:
    for inside in (low, high):
        assert getattr(TrainConfig(**{name: inside}), name) == inside
    step = 1 if isinstance(low, int) and isinstance(high, int) else 1e-3
    for outside in (low - step, high + step):
        (fault,) = faults_of(**{name: outside})
        assert fault.startswith(f"{name}: expected a number from ")
        assert fault.endswith(f"got {outside}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rates_are_finite(value: float) -> None:
    assert faults_of(learning_rate=value) == [f"learning_rate: expected a number, got {value}"]


def test_every_fault_is_listed() -> None:
    faults = faults_of(
        pipeline="mel", epochs=0, seed="one", held_out_speaker="theo", keep_checkpoints="none",
        augmentation=AugmentationConfig(noise_probability=2.0, speed=(1.2, 0.9)),
    )  # fmt: skip
    assert faults == [
        "epochs: expected a number from 1 to 100000, got 0",
        "seed: expected a whole number, got 'one'",
        "keep_checkpoints: expected 'all' or a whole number above 0, got 'none'",
        "augmentation.speed: expected the smaller number first, got 1.2 0.9",
        "augmentation.noise_probability: expected a number from 0 to 1, got 2.0",
        "pipeline: expected one of all, mfcc, mel_cnn, raw_cnn or module:ATTRIBUTE, got 'mel', did you mean mel_cnn?",
        "held_out_speaker is only for split 'speaker', not 'official'",
    ]


def test_message_counts_faults_and_names_the_source() -> None:
    assert str(ConfigError(["a", "b"], "my.json")) == "2 faults in my.json: a; b"
    assert str(ConfigError(["a"])) == "1 fault in settings: a"


def test_speaker_split_needs_a_speaker() -> None:
    assert faults_of(split="speaker") == ["split 'speaker' needs held_out_speaker, the one to test on"]
    assert TrainConfig(split="speaker", held_out_speaker="theo").held_out_speaker == "theo"


@pytest.mark.parametrize("value", ["0", "00", "-1", "1.5", "", "²", "٣", "9" * 5000, "latest"])
def test_keep_checkpoints_is_all_or_a_number(value: str) -> None:
    (fault,) = faults_of(keep_checkpoints=value)
    assert fault.startswith("keep_checkpoints: expected 'all' or a whole number above 0")


@pytest.mark.parametrize("value", ["0", "first", "²", "-3", "all"])
def test_resume_is_latest_or_an_epoch(value: str) -> None:
    (fault,) = faults_of(resume=value)
    assert fault.startswith("resume: expected 'latest' or a whole number above 0")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", 2.0, "a whole number"), ("epochs", True, "a whole number"), ("learning_rate", "0.1", "a number"),
        ("models_dir", 3, "text in quotes"), ("models_dir", None, "text in quotes"),
        ("keep_checkpoints", 3, "text in quotes"), ("augmentation", 3, "an object"),
    ],
)  # fmt: skip
def test_types_are_checked_in_python_too(name: str, value: Any, expected: str) -> None:
    assert faults_of(**{name: value}) == [f"{name}: expected {expected}, got {value!r}"]


def test_partial_augmentation_is_checked_whole() -> None:
    assert faults_of(augmentation={"shift": 2, "sped": 1, "speed": [2, 1]}) == [
        "unknown setting 'augmentation.sped', did you mean augmentation.speed?",
        "augmentation.speed: expected the smaller number first, got 2 1",
        "augmentation.shift: expected a number from 0 to 1, got 2.0",
    ]


def test_synthetic_voices_are_mixed_with_recordings_only() -> None:
    (fault,) = faults_of(dataset="synthetic", synthetic_share=0.5)
    assert fault.startswith("synthetic_share is for recordings")
    assert len(VOICES) == MAX_VOICES


def test_pipelines_of_a_run() -> None:
    assert TrainConfig().pipelines == PIPELINES
    assert TrainConfig(pipeline="mel_cnn").pipelines == ("mel_cnn",)


def test_model_folder() -> None:
    assert model_folder("models", MFCC) == Path("models/mfcc_classifier")
