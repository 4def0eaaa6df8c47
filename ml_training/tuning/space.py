"""A search space, declared in a JSON file: setting -> the values it may take.

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
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from digit_detector.errors import ConfigError, MissingExtraError, did_you_mean
from ml_training.config import NAMED, RENAMED_SETTINGS, AugmentationConfig, TrainConfig

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SPACES = NAMED / "spaces"  # those of the package
PREFIX = "augmentation."
GRID_POINTS = 5  # of a range without steps
MAX_GRID = 100_000
# Settings that trials are compared by, or that change no result.
FIXED = frozenset({
    "pipeline", "dataset", "data_dir", "data_url", "extra_digits_dir", "non_digit_dir", "teacher_dir", "split", "fold",
    "held_out_speaker", "models_dir", "log_dir", "validation_ratio", "device", "threads", "cache", "clip_storage",
    "keep_checkpoints", "resume", "promote", "mlflow", "augmentation", "augmentation.noise_dir", "compile",
})  # fmt: skip

Space = dict[str, "BaseDistribution"]  # setting, with its prefix -> its values; categories are JSON texts


def find_space(name: str) -> Path:
    """The file at this path, or else the space of the package with this name."""
    path = Path(name).expanduser()
    named = SPACES / f"{path.stem}.json"
    is_name = path.parent in (Path(), Path("configs/spaces")) and path.suffix in ("", ".json")
    return named if is_name and named.is_file() and not path.is_file() else path


def load_space(name: str) -> dict[str, Any]:
    """Read and check a search space; returns the JSON object. Raises ConfigError that lists every fault."""
    path = find_space(name)
    try:
        declared = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        names = ", ".join(sorted(file.stem for file in SPACES.glob("*.json")))
        raise ConfigError([f"cannot read it: {error} (named spaces: {names})"], str(path)) from error
    if isinstance(declared, dict):
        declared = {RENAMED_SETTINGS.get(name, name): values for name, values in declared.items()}
    parse_space(declared, str(path))
    return dict(declared)


def parse_space(declared: Any, source: str = "search space") -> Space:
    """The space that decoded JSON declares. Raises ConfigError that lists every fault."""
    if not isinstance(declared, Mapping) or not declared:
        raise ConfigError([f"expected a JSON object of settings to search, got {json.dumps(declared)[:60]}"], source)
    import_optuna()
    faults: list[str] = []
    space: Space = {}
    known = settings()
    for name, values in declared.items():
        if name not in known:
            faults.append(f"unknown setting {name!r}{did_you_mean(name, known)}")
        elif name in FIXED:
            faults.append(f"{name}: cannot be searched, because trials are compared by it or it changes no result")
        else:
            try:
                space[name] = _parse_values(values, {*typing.get_args(known[name]), known[name]})
            except ValueError as error:
                faults.append(f"{name}: {error}")
    faults += [fault for name, values in space.items() for fault in _config_faults(name, values)]
    if faults:
        raise ConfigError(faults, source)
    return space


def settings() -> dict[str, Any]:
    """Every setting, those of augmentation with their prefix -> its type."""
    types: dict[str, Any] = {}
    for cls, prefix in ((TrainConfig, ""), (AugmentationConfig, PREFIX)):
        hints = typing.get_type_hints(cls)
        types |= {prefix + field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return types


def _parse_values(declared: Any, types: set[Any]) -> BaseDistribution:
    """Raises ValueError that says what is wrong."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    got = f"got {json.dumps(declared)[:80]}"
    if isinstance(declared, list):
        texts = [json.dumps(value) for value in declared]
        if not texts or len(set(texts)) < len(texts):
            raise ValueError(f"expected one value or more, none of them twice, {got}")
        return CategoricalDistribution(texts)
    scale = declared.get("scale", "linear") if isinstance(declared, dict) else None
    if scale not in ("linear", "log") or not {"from", "to"} <= declared.keys() <= {"from", "to", "scale", "step"}:
        form = '{"from": LOW, "to": HIGH} with "scale": "log" or "step": NUMBER'
        raise ValueError(f"expected a list of values, or {form}, {got}")
    low, high, step = declared["from"], declared["to"], declared.get("step")
    numbers = [number for number in (low, high, step) if number is not None]
    if not types & {int, float} or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        raise ValueError(f"expected a list of values, or two numbers for a setting that is a number, {got}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about steps that do not reach the upper end
        if float in types:
            return _with_several_values(FloatDistribution(low, high, log=scale == "log", step=step))
        if any(number != int(number) for number in numbers):
            raise ValueError(f"expected whole numbers, {got}")
        return _with_several_values(IntDistribution(low, high, log=scale == "log", step=1 if step is None else step))


def _with_several_values(values: BaseDistribution) -> BaseDistribution:
    if values.single():
        raise ValueError("expected a range of more than one value")
    return values


def _config_faults(name: str, values: Any) -> list[str]:
    """The faults that TrainConfig finds in each value, of a range in its ends."""
    faults = []
    for value in map(json.loads, values.choices) if hasattr(values, "choices") else (values.low, values.high):
        try:
            TrainConfig(**with_values({}, {name: value}))
        except ConfigError as error:
            faults += error.faults
        except TypeError as error:
            faults.append(f"{name}: {json.dumps(value)}: {error}")
    return list(dict.fromkeys(faults))


def with_values(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of TrainConfig: `base`, with searched values over them."""
    inner = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}
    merged = {**base, **{name: value for name, value in values.items() if not name.startswith(PREFIX)}}
    if inner:
        merged["augmentation"] = {**(merged.get("augmentation") or {}), **inner}
    return merged


def grid(declared: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of each setting that a grid search tries; their combinations are its trials."""
    return {name: _grid_values(values, declared[name]) for name, values in parse_space(declared).items()}


def _grid_values(values: Any, declared: Any) -> list[Any]:
    if isinstance(declared, list):
        return list(values.choices)
    if declared.get("step") is not None:
        points = values.low + values.step * np.arange(round((values.high - values.low) / values.step) + 1)
    else:
        points = (np.geomspace if values.log else np.linspace)(values.low, values.high, GRID_POINTS)
    whole = isinstance(values.step, int)
    return list(dict.fromkeys(round(point) if whole else float(f"{point:.12g}") for point in points))


def import_optuna() -> Any:
    """Optuna without its log. Raises MissingExtraError."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("a search", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return optuna
