"""A search space: which settings may be which, declared in a JSON file.

{"learning_rate": {"from": 0.001, "to": 0.02, "scale": "log"},   any number between, on a logarithmic scale
 "width": {"from": 0.5, "to": 1.5, "step": 0.25},                these five
 "batch_size": [32, 64, 128],                                    one of these
 "augmentation.speed": [[0.9, 1.1], [0.8, 1.25]]}                one of these ranges
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digit_detector.errors import ConfigError, did_you_mean
from ml_training.config import NAMED, AugmentationConfig, TrainConfig

SPACES = NAMED / "spaces"  # those that come along
PREFIX = "augmentation."
GRID_POINTS = 5  # of a range without steps
MAX_GRID = 100_000
# What a search must not touch: what its trials are compared by, and what changes no result.
FIXED = frozenset({
    "pipeline", "dataset", "data_dir", "data_url", "extra_dir", "split", "held_out_speaker", "fold", "models_dir",
    "log_dir", "validation_share", "device", "threads", "cache", "waveforms", "keep_checkpoints", "resume", "promote",
    "mlflow", "words_dir", "teacher_dir", "augmentation", "augmentation.noise_dir", "compile",
})  # fmt: skip
_RANGE = {"from", "to", "scale", "step"}

Value = Any  # what JSON can say


@dataclass(frozen=True)
class Choices:
    """One of some values."""

    values: tuple[Value, ...]

    def grid(self) -> list[Value]:
        return list(self.values)

    def to_json(self) -> tuple[str, ...]:
        """Each value as JSON text, which Optuna takes as a category."""
        return tuple(json.dumps(value) for value in self.values)


@dataclass(frozen=True)
class Range:
    """A number between two, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def grid(self) -> list[Value]:
        if self.step is not None:
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            found = [self.low + self.step * i for i in range(count)]
        elif self.log:
            ratio = self.high / self.low
            found = [self.low * ratio ** (i / (GRID_POINTS - 1)) for i in range(GRID_POINTS)]
        else:
            found = [self.low + (self.high - self.low) * i / (GRID_POINTS - 1) for i in range(GRID_POINTS)]
        if self.whole:
            return list(dict.fromkeys(round(value) for value in found))
        return [float(f"{value:.12g}") for value in found]


Space = dict[str, Choices | Range]  # setting, with its prefix -> what it may be


def find_space(typed: str) -> Path:
    """The file that is meant: one at this path, or else one that comes along, by its name."""
    path = Path(typed).expanduser()
    named = SPACES / f"{path.stem}.json"
    is_name = path.parent in (Path(), Path("configs/spaces")) and path.suffix in ("", ".json")
    return named if is_name and named.is_file() and not path.is_file() else path


def load_space(typed: str) -> Space:
    """Read a search space. Raises ConfigError that lists every fault."""
    path = find_space(typed)
    try:
        declared = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        there = ", ".join(sorted(file.stem for file in SPACES.glob("*.json")))
        raise ConfigError([f"cannot read it: {error} (by name there is {there})"], str(path)) from error
    return parse_space(declared, str(path))


def parse_space(declared: Any, source: str = "search space") -> Space:
    """The space that decoded JSON declares. Raises ConfigError that lists every fault."""
    if not isinstance(declared, dict) or not declared:
        raise ConfigError([f"expected a JSON object of settings to search, got {json.dumps(declared)[:60]}"], source)
    faults: list[str] = []
    space: Space = {}
    known = settings()
    for name, what in declared.items():
        if name not in known:
            hint = did_you_mean(name, known)
            faults.append(f"unknown setting {name!r}{hint}" if hint else f"unknown setting {name!r}")
        elif name in FIXED:
            faults.append(f"{name}: cannot be searched, because trials are compared by it or it changes no result")
        else:
            found = _one(name, what, known[name], faults)
            if found is not None:
                space[name] = found
    for name, values in space.items():
        faults += _impossible(name, values)
    if faults:
        raise ConfigError(faults, source)
    return space


def settings() -> dict[str, Any]:
    """Every setting, those of augmentation with their prefix -> its type."""
    found: dict[str, Any] = {}
    for cls, prefix in ((TrainConfig, ""), (AugmentationConfig, PREFIX)):
        hints = typing.get_type_hints(cls)
        found |= {prefix + field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return found


def _one(name: str, what: Any, hint: Any, faults: list[str]) -> Choices | Range | None:
    if isinstance(what, list):
        if not what or len({json.dumps(value) for value in what}) < len(what):
            faults.append(f"{name}: expected one value or more, none of them twice, got {json.dumps(what)[:80]}")
            return None
        return Choices(tuple(what))
    if not isinstance(what, dict) or not {"from", "to"} <= what.keys() or not what.keys() <= _RANGE:
        faults.append(
            f'{name}: expected a list of values, or {{"from": LOW, "to": HIGH}} with "scale": "log" or "step", '
            f"got {json.dumps(what)[:80]}"
        )
        return None
    kinds = {*typing.get_args(hint), hint}
    whole = int in kinds and float not in kinds
    numbers = [what[key] for key in ("from", "to", "step") if key in what]
    good = all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    if not kinds & {int, float} or not good:
        faults.append(f"{name}: expected a list of values, or two numbers for a setting that is one")
        return None
    low, high, step, scale = what["from"], what["to"], what.get("step"), what.get("scale", "linear")
    own = []
    if not low < high:
        own.append(f"from {low} to {high} holds nothing: expected the smaller number first")
    if scale not in ("linear", "log"):
        own.append(f"scale {scale!r}: expected 'linear' or 'log'")
    if scale == "log" and (low <= 0 or step is not None):
        own.append("a logarithmic scale needs numbers above 0 and no step")
    if step is not None and not 0 < step <= high - low:
        own.append(f"step {step}: expected a number above 0, at most {high - low:g}")
    if whole and any(n != int(n) for n in numbers):
        own.append("expected whole numbers")
    faults += [f"{name}: {fault}" for fault in own]
    return None if own else Range(low, high, scale == "log", step, whole)


def _impossible(name: str, values: Choices | Range) -> list[str]:
    """What TrainConfig says of the extremes, each by itself."""
    tried = values.values if isinstance(values, Choices) else (values.low, values.high)
    faults = []
    for value in tried:
        try:
            TrainConfig(**with_values({}, {name: value}))
        except ConfigError as error:
            faults += error.faults
        except TypeError as error:
            faults.append(f"{name}: {json.dumps(value)}: {error}")
    return list(dict.fromkeys(faults))


def with_values(base: Mapping[str, Any], values: Mapping[str, Value]) -> dict[str, Any]:
    """Settings of TrainConfig, as its keyword arguments, with searched ones over them."""
    found = dict(base)
    inner = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}
    found |= {name: value for name, value in values.items() if not name.startswith(PREFIX)}
    if inner:
        found["augmentation"] = {**(found.get("augmentation") or {}), **inner}
    return found


def grid_size(space: Space) -> int:
    """Number of combinations of all settings."""
    return math.prod(len(values.grid()) for values in space.values())
