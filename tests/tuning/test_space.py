"""Search spaces: what they may declare, and every fault at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from digit_detector.errors import ConfigError
from ml_training.config import TrainConfig
from ml_training.tuning.space import FIXED, SPACES, find_space, grid, load_space, parse_space, settings, with_values

distributions = pytest.importorskip("optuna.distributions")

SPACE: dict[str, Any] = {
    "learning_rate": {"from": 0.001, "to": 0.1, "scale": "log"},
    "width": {"from": 0.5, "to": 1.5, "step": 0.5},
    "epochs": {"from": 2, "to": 6, "step": 2},
    "scheduler": ["cosine", "step"],
    "augmentation.speed": [[0.9, 1.1], [0.8, 1.25]],
}


def test_ranges_and_choices_become_distributions() -> None:
    space = parse_space(SPACE)
    assert space["learning_rate"] == distributions.FloatDistribution(0.001, 0.1, log=True)
    assert space["epochs"] == distributions.IntDistribution(2, 6, step=2)
    assert space["augmentation.speed"] == distributions.CategoricalDistribution(["[0.9, 1.1]", "[0.8, 1.25]"])


def test_grid() -> None:
    values = grid(SPACE)
    assert values["learning_rate"] == pytest.approx([0.001, 0.00316227766, 0.01, 0.0316227766, 0.1])
    assert values["width"] == [0.5, 1.0, 1.5]
    assert values["epochs"] == [2, 4, 6]
    assert [json.loads(text) for text in values["scheduler"]] == ["cosine", "step"]
    assert grid({"batch_size": {"from": 2, "to": 4}}) == {"batch_size": [2, 3, 4]}
    assert len(grid({"epochs": {"from": 1, "to": 20, "step": 1}})["epochs"]) == 20
    assert grid({"width": {"from": 1, "to": 2}}) == {"width": [1.0, 1.25, 1.5, 1.75, 2.0]}


def test_values_replace_settings_and_leave_the_others_of_augmentation() -> None:
    base = {"epochs": 3, "augmentation": {"time_shift": 0.5, "speed": [1.0, 1.0]}}
    merged = with_values(base, {"learning_rate": 0.1, "augmentation.speed": [0.9, 1.1]})
    assert merged == {"epochs": 3, "learning_rate": 0.1, "augmentation": {"time_shift": 0.5, "speed": [0.9, 1.1]}}
    assert base["augmentation"] == {"time_shift": 0.5, "speed": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ([], "expected a JSON object"),
        ({}, "expected a JSON object"),
        ({"learnin_rate": [1]}, "'learnin_rate', did you mean learning_rate?"),
        ({"data_dir": ["a"]}, "data_dir: cannot be searched"),
        ({"epochs": []}, "epochs: expected one value or more"),
        ({"epochs": [2, 2]}, "none of them twice"),
        ({"epochs": 5}, "epochs: expected a list of values, or"),
        ({"epochs": {"from": 1}}, "epochs: expected a list of values, or"),
        ({"epochs": {"from": 1, "to": 5, "by": 2}}, "epochs: expected a list of values, or"),
        ({"epochs": {"from": 5, "to": 1}}, "epochs: `low <= high`"),
        ({"epochs": {"from": 1.5, "to": 5}}, "expected whole numbers"),
        ({"epochs": {"from": 0, "to": 5}}, "epochs: expected a number from 1"),
        ({"epochs": ["many"]}, "epochs: expected"),
        ({"scheduler": {"from": 1, "to": 2}}, "scheduler: expected a list of values"),
        ({"scheduler": ["cosine", "sine"]}, "scheduler: expected one of"),
        ({"learning_rate": {"from": 0, "to": 1, "scale": "log"}}, "learning_rate: `low > 0`"),
        ({"learning_rate": {"from": 1, "to": 2, "scale": "square"}}, "learning_rate: expected a list of values, or"),
        ({"learning_rate": {"from": 1, "to": 2, "step": 3}}, "more than one value"),
        ({"learning_rate": {"from": True, "to": 2}}, "two numbers"),
        ({"augmentation.speed": [[1.1, 0.9]]}, "the smaller number first"),
        ({"augmentation.speed": [0.9]}, "augmentation.speed"),
    ],
)
def test_faults(declared: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space(declared)
    assert expected in str(caught.value)


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space({"nothing": [1], "epochs": {"from": 5, "to": 1}, "scheduler": ["sine"], "log_dir": ["a"]})
    assert len(caught.value.faults) == 4


def test_the_space_of_the_package_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("default", "default.json", "configs/spaces/default.json"):
        assert find_space(name) == SPACES / "default.json"
    assert "learning_rate" in load_space("default")
    Path("default.json").write_text('{"epochs": [1, 2]}', encoding="utf-8")
    assert load_space("default.json") == {"epochs": [1, 2]}
    with pytest.raises(ConfigError, match="default"):
        load_space("nothing")


def test_fixed_settings_exist() -> None:
    assert settings().keys() >= FIXED
    assert TrainConfig(**with_values({}, {"augmentation.speed": [0.9, 1.1]})).augmentation is not None
