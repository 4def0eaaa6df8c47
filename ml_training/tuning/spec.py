"""The request for a search, checked before anything heavy is loaded, and what its processes share of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digit_detector.errors import ConfigError
from ml_training.config import TrainConfig
from ml_training.tuning.space import MAX_GRID, parse_space

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "halving", "none")
QUALITIES = ("validation", "cv", "loso")
COSTS = ("latency", "size")
DIRECTIONS = {**dict.fromkeys(QUALITIES, "maximize"), **dict.fromkeys(COSTS, "minimize")}
UNITS = {**dict.fromkeys(QUALITIES, "%"), "latency": "ms", "size": "kB"}


@dataclass(frozen=True)
class TuneRequest:
    """What to search, how, and where it goes."""

    config: TrainConfig  # settings that all trials share; names one pipeline
    space: Mapping[str, Any]  # as JSON declares it
    trials: int = 50
    sampler: str = SAMPLERS[0]
    pruner: str = PRUNERS[0]
    objectives: tuple[str, ...] = ("validation",)
    folds: int = 5  # of the objective cv
    workers: int = 1
    output: str = "tuning"
    storage: str = ""  # address of a database; "" for a journal in `output`

    def __post_init__(self) -> None:
        faults: list[str] = []
        for check in (lambda: check_objectives(self.objectives), lambda: parse_space(self.space)):
            try:
                check()
            except ConfigError as error:
                faults += error.faults
        if self.config.pipeline == "all":
            faults.append("pipeline: a search is for one: name it with --pipeline")
        if self.config.split != "official" and self.objectives[:1] != ("validation",):
            faults.append(f"split: objective {self.objectives[0]!r} decides it, leave it out")
        if self.config.resume is not None or self.config.fold or self.config.held_out_speaker:
            faults.append("resume, fold, held_out_speaker: a search decides these, leave them out")
        if self.sampler not in SAMPLERS:
            faults.append(f"sampler: expected one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        if self.pruner not in PRUNERS:
            faults.append(f"pruner: expected one of {', '.join(PRUNERS)}, got {self.pruner!r}")
        if not 1 <= self.trials <= MAX_GRID:
            faults.append(f"trials: expected a number from 1 to {MAX_GRID}, got {self.trials}")
        if not 1 <= self.workers <= 256:
            faults.append(f"workers: expected a number from 1 to 256, got {self.workers}")
        if not 2 <= self.folds <= 1000:
            faults.append(f"folds: expected a number from 2 to 1000, got {self.folds}")
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True)
class SearchSpec:
    """A search as plain values, the same for every process that works on it."""

    config: Mapping[str, Any]  # settings that all trials share
    space: Mapping[str, Any]  # as JSON declares it
    trials: int
    sampler: str
    pruner: str
    objectives: tuple[str, ...]
    folds: int
    seed: int
    data_hash: str
    output: str
    storage: str  # address of a database, or "" for a journal in `output`
    workers: int

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


def check_objectives(names: Sequence[str]) -> None:
    """Raises ConfigError where these cannot be searched for together."""
    faults = [
        f"objective: expected some of {', '.join(DIRECTIONS)}, got {name}" for name in names if name not in DIRECTIONS
    ]
    qualities = [name for name in names if name in QUALITIES]
    if not faults and (len(qualities) != 1 or names[0] not in QUALITIES or len(names) > 2):
        faults.append(
            f"objective: expected one of {', '.join(QUALITIES)}, alone or followed by one of {', '.join(COSTS)}, got "
            f"{' '.join(names) or 'none'}"
        )
    if not faults and len(names) > 1 and names[0] != "validation":
        faults.append(f"objective: {names[1]} is measured of the one model that 'validation' trains, got {names[0]!r}")
    if faults:
        raise ConfigError(faults)
