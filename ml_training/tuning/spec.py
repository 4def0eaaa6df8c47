"""What to search: checked before anything heavy is loaded, and shared by all processes of a search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digit_detector.errors import ConfigError
from ml_training.config import TrainConfig, to_dict
from ml_training.tuning.space import MAX_GRID, parse_space

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "halving", "none")
QUALITIES = ("validation", "cv", "loso")
COSTS = ("latency", "size")
DIRECTIONS = {**dict.fromkeys(QUALITIES, "maximize"), **dict.fromkeys(COSTS, "minimize")}
UNITS = {"latency": "ms", "size": "kB"}


@dataclass(frozen=True)
class SearchSpec:
    """A search as plain values. Raises ConfigError that lists every fault."""

    config: Mapping[str, Any]  # settings of TrainConfig that all trials share; they name one pipeline
    space: Mapping[str, Any]  # as JSON declares it
    trials: int = 50
    sampler: str = SAMPLERS[0]
    pruner: str = PRUNERS[0]
    objectives: tuple[str, ...] = ("validation",)
    folds: int = 5  # of the objective cv
    workers: int = 1
    output: str = "tuning"
    storage: str = ""  # address of a database; "" for a journal in `output`
    data_hash: str = ""  # of the recordings, once they are loaded

    def __post_init__(self) -> None:
        config = TrainConfig(**self.config)
        object.__setattr__(self, "config", to_dict(config))
        faults = _objective_faults(self.objectives)
        try:
            parse_space(self.space)
        except ConfigError as error:
            faults += error.faults
        if config.pipeline == "all":
            faults.append("pipeline: a search is for one pipeline: name it with --pipeline")
        if config.split != "official" and self.objectives[:1] != ("validation",):
            faults.append(f"split: objective {' '.join(self.objectives[:1])!r} decides it, leave it out")
        if config.resume is not None or config.fold or config.held_out_speaker:
            faults.append("resume, fold, held_out_speaker: a search decides these, leave them out")
        for name, value, names in (("sampler", self.sampler, SAMPLERS), ("pruner", self.pruner, PRUNERS)):
            if value not in names:
                faults.append(f"{name}: expected one of {', '.join(names)}, got {value!r}")
        for name, number, least, most in (
            ("trials", self.trials, 1, MAX_GRID), ("workers", self.workers, 1, 256), ("folds", self.folds, 2, 1000),
        ):  # fmt: skip
            if not least <= number <= most:
                faults.append(f"{name}: expected a number from {least} to {most}, got {number}")
        if faults:
            raise ConfigError(faults)

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def folder(self) -> Path:
        return Path(self.output)

    @property
    def directions(self) -> tuple[str, ...]:
        return tuple(DIRECTIONS[name] for name in self.objectives)

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:05}"

    def fingerprint(self) -> dict[str, Any]:
        """Everything that must be the same for a search to go on, as JSON gives it back."""
        from ml_training.evaluation.cross_validation import PER_FOLD
        from ml_training.training.checkpoint import FREE_SETTINGS

        values = {
            "space": self.space, "sampler": self.sampler, "pruner": self.pruner, "seed": self.seed,
            "settings": {k: v for k, v in self.config.items() if k not in FREE_SETTINGS and k not in PER_FOLD},
            "objectives": self.objectives, "data_hash": self.data_hash,
            "folds": self.folds if self.objectives[0] == "cv" else None,
        }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


def _objective_faults(names: tuple[str, ...]) -> list[str]:
    unknown = [f"objective: expected some of {', '.join(DIRECTIONS)}, got {n}" for n in names if n not in DIRECTIONS]
    if unknown:
        return unknown
    if not names or names[0] not in QUALITIES or any(n not in COSTS for n in names[1:]) or len(names) > 2:
        expected = f"one of {', '.join(QUALITIES)}, alone or followed by one of {', '.join(COSTS)}"
        return [f"objective: expected {expected}, got {' '.join(names) or 'none'}"]
    if len(names) > 1 and names[0] != "validation":
        return [f"objective: {names[1]} is measured on the model that 'validation' trains, got {names[0]!r}"]
    return []
