"""Search spaces: what they may say, and every fault at once."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from digit_detector.errors import ConfigError
from ml_training.config import TrainConfig
from ml_training.tuning.space import (
    FIXED,
    SPACES,
    Choices,
    Range,
    find_space,
    grid_size,
    load_space,
    parse_space,
    settings,
    with_values,
)

SPACE: dict[str, Any] = {
    "learning_rate": {"from": 0.001, "to": 0.1, "scale": "log"},
    "width": {"from": 0.5, "to": 1.5, "step": 0.5},
    "epochs": {"from": 2, "to": 6, "step": 2},
    "scheduler": ["cosine", "step"],
    "augmentation.speed": [[0.9, 1.1], [0.8, 1.25]],
}


def test_ranges_and_choices() -> None:
    space = parse_space(SPACE)
    assert space["learning_rate"] == Range(0.001, 0.1, log=True)
    assert space["epochs"] == Range(2, 6, step=2, whole=True)
    assert space["scheduler"] == Choices(("cosine", "step"))
    assert space["augmentation.speed"].grid() == [[0.9, 1.1], [0.8, 1.25]]


def test_a_grid_has_every_combination_once() -> None:
    space = parse_space(SPACE)
    columns = [values.grid() for values in space.values()]
    points = [dict(zip(space, point, strict=True)) for point in itertools.product(*columns)]
    assert len(points) == grid_size(space) == 5 * 3 * 3 * 2 * 2
    assert len({json.dumps(point) for point in points}) == len(points)
    assert [point["learning_rate"] for point in points[:: len(points) // 5]] == pytest.approx(
        [0.001, 0.00316227766, 0.01, 0.0316227766, 0.1]
    )
    assert {point["width"] for point in points} == {0.5, 1.0, 1.5}
    assert {point["epochs"] for point in points} == {2, 4, 6}
    assert parse_space({"batch_size": {"from": 2, "to": 4}})["batch_size"].grid() == [2, 3, 4]
    for point in points[:3]:
        assert TrainConfig(**with_values({}, point)).epochs == point["epochs"]


def test_values_go_over_settings_and_leave_the_others_of_augmentation() -> None:
    base = {"epochs": 3, "augmentation": {"shift": 0.5, "speed": [1.0, 1.0]}}
    found = with_values(base, {"learning_rate": 0.1, "augmentation.speed": [0.9, 1.1]})
    assert found == {"epochs": 3, "learning_rate": 0.1, "augmentation": {"shift": 0.5, "speed": [0.9, 1.1]}}
    assert base["augmentation"] == {"shift": 0.5, "speed": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ([], "expected a JSON object"),
        ({}, "expected a JSON object"),
        ({"learnin_rate": [1]}, "unknown setting 'learnin_rate', did you mean learning_rate?"),
        ({"data_dir": ["a"]}, "data_dir: cannot be searched"),
        ({"epochs": []}, "epochs: expected one value or more"),
        ({"epochs": [2, 2]}, "none of them twice"),
        ({"epochs": 5}, "epochs: expected a list of values, or"),
        ({"epochs": {"from": 1}}, "epochs: expected a list of values, or"),
        ({"epochs": {"from": 1, "to": 5, "by": 2}}, "epochs: expected a list of values, or"),
        ({"epochs": {"from": 5, "to": 1}}, "holds nothing"),
        ({"epochs": {"from": 1.5, "to": 5}}, "expected whole numbers"),
        ({"epochs": {"from": 0, "to": 5}}, "epochs: expected a number from 1"),
        ({"epochs": ["many"]}, "epochs: expected"),
        ({"scheduler": {"from": 1, "to": 2}}, "expected a list of values, or two numbers for a setting that is one"),
        ({"scheduler": ["cosine", "sine"]}, "scheduler: expected one of"),
        ({"learning_rate": {"from": 0, "to": 1, "scale": "log"}}, "needs numbers above 0"),
        ({"learning_rate": {"from": 1, "to": 2, "scale": "square"}}, "expected 'linear' or 'log'"),
        ({"learning_rate": {"from": 1, "to": 2, "step": 3}}, "at most 1"),
        ({"learning_rate": {"from": True, "to": 2}}, "two numbers"),
        ({"augmentation.speed": [[1.1, 0.9]]}, "the smaller number first"),
        ({"augmentation.speed": [0.9]}, "augmentation.speed"),
    ],
)
def test_what_cannot_be_searched(declared: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space(declared)
    assert expected in str(caught.value)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space({"nothing": [1], "epochs": {"from": 5, "to": 1}, "scheduler": ["sine"], "log_dir": ["a"]})
    assert len(caught.value.faults) == 4


def test_the_space_that_comes_along_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for typed in ("default", "default.json", "configs/spaces/default.json"):
        assert find_space(typed) == SPACES / "default.json"
    assert "learning_rate" in load_space("default")
    Path("default.json").write_text('{"epochs": [1, 2]}', encoding="utf-8")
    assert list(load_space("default.json")) == ["epochs"]
    with pytest.raises(ConfigError, match="by name there is default"):
        load_space("nothing")


def test_what_is_fixed_are_settings() -> None:
    assert settings().keys() >= FIXED
