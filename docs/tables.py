"""Write the tables of ml_training/README.md that follow from the code: settings, and what each pipeline trains with.

    python docs/tables.py          # rewrite them
    python docs/tables.py --check  # leave with 1 when they are out of date

Needs the extra [train], because the networks are built to count their parameters.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import typing
from pathlib import Path
from typing import Any

from ml_training.config import AugmentationConfig, TrainConfig
from ml_training.pipelines import PIPELINE_REGISTRY

README = Path(__file__).resolve().parents[1] / "ml_training" / "README.md"


def settings_table(cls: type, prefix: str = "") -> str:
    """One row for each setting of a dataclass: flag, what it takes, default, meaning."""
    hints = typing.get_type_hints(cls)
    rows = ["| setting | takes | default | what it does |", "|---|---|---|---|"]
    for f in dataclasses.fields(cls):
        kind = next(k for k in typing.get_args(hints[f.name]) or (hints[f.name],) if k is not type(None))
        if typing.get_origin(hints[f.name]) is tuple:
            kind = tuple
        if dataclasses.is_dataclass(kind):
            rows.append(f"| `{prefix}{f.name}` | the settings below | per pipeline | {f.metadata['help']} |")
            continue
        default = "" if f.default is None else f"`{_shown(f.default)}`"
        rows.append(f"| `--{prefix}{f.name}` | {_takes(prefix, f, kind)} | {default} | {f.metadata['help']} |")
    return "\n".join(rows)


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
    for pipeline in PIPELINE_REGISTRY.values():
        r, parameters = pipeline.recipe, sum(p.numel() for p in pipeline.build().parameters())
        rows.append(
            f"| `{pipeline.name}` | {r.epochs} | {r.batch_size} | {r.learning_rate:g} | {r.weight_decay:g} "
            f"| {parameters:,} |"
        )
    own = [line for p in PIPELINE_REGISTRY.values() if (line := _own_augmentation(p.name, p.recipe.augmentation))]
    return "\n".join(rows + (["", *own] if own else []))


def _own_augmentation(name: str, augmentation: AugmentationConfig) -> str:
    """Which settings of augmentation a recipe has for itself; empty where none."""
    usual = AugmentationConfig()
    own = {f.name: getattr(augmentation, f.name) for f in dataclasses.fields(usual)}
    shown = [f"`{key}` {_shown(value)}" for key, value in own.items() if value != getattr(usual, key)]
    return f"`{name}` augments with {', '.join(shown)}; the rest as below.\n" if shown else ""


def updated(text: str) -> str:
    """The README with its tables as the code has them."""
    tables = {
        "settings": settings_table(TrainConfig),
        "augmentation": settings_table(AugmentationConfig, "augmentation."),
        "recipes": recipes_table(),
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        assert text.count(begin) == text.count(end) == 1, f"the README needs one pair of markers for {name}"
        text = re.sub(f"{begin}.*?{end}", lambda _, t=f"{begin}\n{table}\n{end}": t, text, flags=re.DOTALL)
    return text


def main() -> int:
    before = README.read_text(encoding="utf-8")
    after = updated(before)
    if "--check" in sys.argv[1:]:
        if after != before:
            print(f"{README} is out of date: python docs/tables.py", file=sys.stderr)
        return int(after != before)
    README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
