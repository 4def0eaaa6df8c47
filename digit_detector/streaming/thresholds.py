"""What a detector must be sure of before it reports: one place, one file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digit_detector.errors import ConfigError

SHIPPED = Path(__file__).with_name("thresholds.json")


@dataclass(frozen=True)
class Thresholds:
    """All from 0 to 1. The shipped ones were chosen by `digits tune-threshold`; thresholds.json says on what."""

    spotted: float  # what the spotter's probability that a digit has just ended must reach for it to be looked at
    digit: float  # what the confidence in a digit must reach for it to be reported

    def __post_init__(self) -> None:
        faults = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
                faults.append(f"{field.name}: expected a number from 0 to 1, got {value!r}")
        if faults:
            raise ConfigError(faults, "thresholds")


def load_thresholds(file: str | Path = SHIPPED) -> Thresholds:
    """Those of a file that `digits tune-threshold` wrote. Raises ConfigError that names what is wrong with it."""
    try:
        said: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror or error}"], str(file)) from error
    except ValueError as error:
        raise ConfigError([f"is no JSON: {error}"], str(file)) from error
    found = said.get("thresholds") if isinstance(said, dict) else None
    names = {field.name for field in dataclasses.fields(Thresholds)}
    if not isinstance(found, dict) or found.keys() != names:
        raise ConfigError(
            [f"expected thresholds: {', '.join(sorted(names))}, as tune-threshold writes them"], str(file)
        )
    return Thresholds(**found)
