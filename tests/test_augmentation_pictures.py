"""docs/augmentation.md shows every effect and names every setting; its pictures can be drawn anew."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from ml_training.config import AugmentationConfig

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "augmentation.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pictures() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "augmentation_pictures.py"))


def test_every_setting_is_named_and_every_effect_is_shown(pictures: dict[str, Any]) -> None:
    names = {f.name for f in dataclasses.fields(AugmentationConfig)} - {"enabled"}
    assert {name for name in names if f"`{name}`" not in TEXT} == set()
    drawn = {name for effect in pictures["EFFECTS"].values() for name in effect.settings}
    assert names - drawn == {"recorded_ratio"}
    shown = re.findall(r"\]\(images/augmentation_(\w+)\.png\)", TEXT)
    assert sorted(shown) == sorted(pictures["EFFECTS"])
    sizes = [(DOCS / "images" / f"augmentation_{name}.png").stat().st_size for name in shown]
    assert sum(sizes) < 400_000


@pytest.mark.parametrize("name", ["recorded_noise", "mixup", "spec_augment"])
def test_a_picture_is_drawn(name: str, pictures: dict[str, Any], tmp_path: Path) -> None:
    assert pictures["main"]([name, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert path.read_bytes().startswith(b"\x89PNG")
    before, _, after, _ = pictures["before_and_after"](name)
    assert ((before - after).abs().max() > 1e-3) == (name != "spec_augment"), "that one changes features alone"
