"""Settings: wrong values, and the configurations that come with the package."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest

from digit_detector.errors import ConfigError
from digit_detector.labels import MEL_CNN, MFCC, PIPELINES, model_folder
from ml_training.config import (
    MAX_VOICES,
    NAMED,
    AugmentationConfig,
    TrainConfig,
    find_config,
    load_config,
    named_configs,
)
from ml_training.data.tts import VOICES

ROOT = Path(__file__).resolve().parents[1]


def faults_of(**settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**settings)
    return caught.value.faults


@pytest.mark.parametrize(
    "field", [f for f in dataclasses.fields(TrainConfig) if "high" in f.metadata], ids=lambda field: field.name
)
def test_ranges_are_inclusive(field: dataclasses.Field[Any]) -> None:
    name, low, high = field.name, field.metadata["low"], field.metadata["high"]
    if high == float("inf"):
        return
    for inside in (low, high):
        assert getattr(TrainConfig(**{name: inside}), name) == inside
    step = 1 if isinstance(low, int) and isinstance(high, int) else 1e-3
    for outside in (low - step, high + step):
        (fault,) = faults_of(**{name: outside})
        assert fault.startswith(f"{name}: expected a number from ")
        assert fault.endswith(f"got {outside}")


def test_every_fault_is_listed() -> None:
    faults = faults_of(
        pipeline="mel", epochs=0, seed="one", held_out_speaker="theo", keep_checkpoints="none",
        augmentation=AugmentationConfig(noise_probability=2.0, speed=(1.2, 0.9)),
    )  # fmt: skip
    assert sorted(fault.split(":")[0] for fault in faults) == [
        "augmentation.noise_probability", "augmentation.speed", "epochs",
        "held_out_speaker is only for split 'speaker', not 'official'", "keep_checkpoints", "pipeline", "seed",
    ]  # fmt: skip
    assert str(ConfigError(faults, "my.json")).startswith("7 faults in my.json: ")
    assert "did you mean mel_cnn" in str(ConfigError(faults))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        *(({"learning_rate": value}, "expected a number, got") for value in (float("nan"), float("inf"))),
        *(({"keep_checkpoints": value}, "expected 'all' or a whole number above 0")
          for value in ("0", "00", "-1", "1.5", "", "²", "٣", "9" * 5000, "latest")),
        *(({"resume": value}, "expected 'latest' or a whole number above 0")
          for value in ("0", "first", "²", "-3", "all")),
        ({"epochs": 2.0}, "a whole number, got 2.0"), ({"epochs": True}, "a whole number, got True"),
        ({"learning_rate": "0.1"}, "a number, got '0.1'"), ({"models_dir": 3}, "text in quotes, got 3"),
        ({"models_dir": None}, "text in quotes, got None"), ({"augmentation": 3}, "an object, got 3"),
        ({"split": "speaker"}, "needs held_out_speaker"), ({"split": "fold", "fold": "4/3"}, "got '4/3'"),
        ({"dataset": "synthetic", "synthetic_ratio": 0.5}, "synthetic_ratio is for recordings"),
        ({"augmentation": {"sped": 1}}, "unknown setting 'augmentation.sped', did you mean augmentation.speed?"),
        ({"augmentation": {"speed": [2, 1]}}, "augmentation.speed: expected the smaller number first, got 2 1"),
        ({"mlflow": "http://user:secret@host"}, "MLFLOW_TRACKING_PASSWORD"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_values(settings: dict[str, Any], expected: str) -> None:
    (fault,) = faults_of(**settings)
    assert expected in fault


def test_names_that_follow_from_settings() -> None:
    assert TrainConfig().pipelines == PIPELINES
    assert TrainConfig(pipeline="mel_cnn").pipelines == ("mel_cnn",)
    assert model_folder("models", MFCC) == Path("models/mfcc_classifier")
    assert len(VOICES) == MAX_VOICES


# --- named configurations ------------------------------------------------------------------------


def test_each_named_configuration_loads_by_name_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(named_configs()) == ["best", "default", "fast", "gpu", "tiny"]
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        for name in named_configs():
            expected = TrainConfig(**json.loads((NAMED / f"{name}.json").read_text(encoding="utf-8")))
            for path in (name, f"configs/{name}.json", f"{name}.json"):
                assert TrainConfig(**load_config(path)) == expected
    assert TrainConfig(**load_config("default")) == TrainConfig()
    assert 1 <= load_config("fast")["epochs"] <= 30
    with pytest.raises(ConfigError, match=r"by name there are best, default, fast, gpu, tiny"):
        load_config("fats")


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fast.json").write_text('{"epochs": 7}')
    assert load_config("fast.json")["epochs"] == 7 != load_config("fast")["epochs"]
    (tmp_path / "fast").mkdir()
    assert find_config("fast") == NAMED / "fast.json", "a folder is no file of settings"
    assert find_config("other/fast.json") == Path("other/fast.json")


def test_best_is_how_the_shipped_model_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIGIT_CORPORA_DIR", os.sep)
    ship = runpy.run_path(str(ROOT / "benchmarks" / "ship.py"))
    settings: dict[str, Any] = ship["settings"](MEL_CNN, ship["SEED"], ship["EPOCHS"][MEL_CNN], **ship["OWN"][MEL_CNN])
    for folder in ship["CORPORA"]:  # these are the user's to name
        (settings["augmentation"] if folder == "noise_dir" else settings).pop(folder)
    assert load_config("best") == settings
