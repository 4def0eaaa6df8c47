"""Write what follows from the code: the table of recipes in docs/train.md, docs/settings.md and configs/default.json.

    python docs/tables.py          # rewrite them
    python docs/tables.py --check  # leave with 1 when they are out of date

Needs the extra [train], because the networks are built to count their parameters.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import typing
from pathlib import Path
from typing import Any

from ml_training.config import NAMED, AugmentationConfig, TrainConfig, to_dict
from ml_training.registry import get_pipeline, pipeline_names

TRAIN = Path(__file__).with_name("train.md")
SETTINGS = Path(__file__).with_name("settings.md")
DEFAULT = NAMED / "default.json"
HEAD = """# Every setting

Written by `python docs/tables.py` from the code. As a flag a setting is `--name`, in a JSON file `"name"`, and
those of augmentation are in an object of that name. A default of `null` is filled by the pipeline's recipe if it
has one. [Train](train.md) explains them. Names of version 0.1 (such as `words_dir` and `negative_share`) are
read too, with a note.
"""


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{v:g}" for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _takes(prefix: str, f: dataclasses.Field[Any], kind: Any) -> str:
    meta = f.metadata
    if meta.get("choices"):
        return ", ".join(f"`{value}`" for value in meta["choices"])
    if meta.get("word"):
        return f"`{meta['word']}` or a whole number above 0"
    if kind is bool:
        return f"`--{prefix}{f.name}` or `--no_{prefix}{f.name}`"
    names = {int: "whole number", float: "number", str: "text", tuple: "two numbers, low and high"}
    low, high = meta.get("low", -math.inf), meta.get("high", math.inf)
    limits = f", {_number(low)} to {_number(high)}" if low > -math.inf else ""
    return names[kind] + limits


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 and value == int(value) else f"{value:g}"


def recipes_table() -> str:
    """What each pipeline trains best with, and how large its network is."""
    rows = ["| pipeline | epochs | batch_size | learning_rate | weight_decay | parameters |", "|---|" + "---:|" * 5]
    for pipeline in map(get_pipeline, pipeline_names()):
        r, parameters = pipeline.recipe, sum(p.numel() for p in pipeline.build().parameters())
        rows.append(
            f"| `{pipeline.name}` | {r.epochs} | {r.batch_size} | {r.learning_rate:g} | {r.weight_decay:g} "
            f"| {parameters:,} |"
        )
    own = [
        line for p in map(get_pipeline, pipeline_names()) if (line := _own_augmentation(p.name, p.recipe.augmentation))
    ]
    return "\n".join(rows + (["", *own] if own else []))


def _own_augmentation(name: str, augmentation: AugmentationConfig) -> str:
    """Which settings of augmentation a recipe has for itself; empty where none."""
    usual = AugmentationConfig()
    own = {f.name: getattr(augmentation, f.name) for f in dataclasses.fields(usual)}
    shown = [f"`{key}` {_shown(value)}" for key, value in own.items() if value != getattr(usual, key)]
    return f"`{name}` augments with {', '.join(shown)}; the rest as below.\n" if shown else ""


def update_recipes(text: str) -> str:
    """docs/train.md with its table of recipes as the code has it."""
    begin, end = "<!-- recipes:begin -->", "<!-- recipes:end -->"
    assert text.count(begin) == text.count(end) == 1, "docs/train.md needs one pair of markers for recipes"
    table = recipes_table()
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL)


def whole_table(cls: type, prefix: str = "") -> str:
    """One row for each setting: name, type, range, default in JSON, what each pipeline takes where it is open, help."""
    hints = typing.get_type_hints(cls)
    recipes = {name: get_pipeline(name).recipe for name in pipeline_names()}
    rows = [
        f"| setting | type | range | default | {' | '.join(recipes)} | what it does |",
        "|---" * (5 + len(recipes)) + "|",
    ]
    for f in dataclasses.fields(cls):
        kinds = typing.get_args(hints[f.name]) if typing.get_origin(hints[f.name]) is not tuple else (tuple,)
        kind = next(k for k in kinds or (hints[f.name],) if k is not type(None))
        if dataclasses.is_dataclass(kind):
            cells = ["object", "the settings below", "`null`", *["its recipe"] * len(recipes)]
        else:
            own = (_own(r.augmentation if prefix else r, f) for r in recipes.values())
            cells = [TYPES[kind], _range(f, kind), f"`{json.dumps(f.default)}`", *own]
        rows.append(f"| `{prefix}{f.name}` | {' | '.join(cells)} | {f.metadata['help']} |")
    return "\n".join(rows)


TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text", tuple: "two numbers"}


def _own(recipe: Any, f: dataclasses.Field[Any]) -> str:
    return f"`{json.dumps(getattr(recipe, f.name))}`" if hasattr(recipe, f.name) else ""


def _range(f: dataclasses.Field[Any], kind: Any) -> str:
    if f.metadata.get("choices") or f.metadata.get("word"):
        return _takes("", f, kind)
    low, high = f.metadata.get("low", -math.inf), f.metadata.get("high", math.inf)
    return f"{_number(low)} to {_number(high)}" if low > -math.inf else ""


def settings_page() -> str:
    """docs/settings.md."""
    parts = [HEAD, whole_table(TrainConfig), "\n## Augmentation\n", whole_table(AugmentationConfig, "augmentation.")]
    return "\n".join(parts) + "\n"


def written() -> dict[Path, str]:
    """What every file should hold."""
    return {
        TRAIN: update_recipes(TRAIN.read_text(encoding="utf-8")),
        SETTINGS: settings_page(),
        DEFAULT: json.dumps(to_dict(TrainConfig()), indent=2) + "\n",
    }


def main() -> int:
    old = {path: text for path, text in written().items() if not path.is_file() or path.read_text("utf-8") != text}
    if "--check" in sys.argv[1:]:
        for path in old:
            print(f"{path} is out of date: python docs/tables.py", file=sys.stderr)
        return int(bool(old))
    for path, text in old.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
