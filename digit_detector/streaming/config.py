"""Every constant of live detection, and the operating point. The web page reads the same as /models/detector.json."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digit_detector.errors import ConfigError

SHIPPED = Path(__file__).with_name("thresholds.json")
_EARLIER_KEYS = {"spotted": "spotter_threshold", "digit": "detection_threshold"}  # of 0.1


def _field(default: Any, least: float, most: float) -> Any:
    return dataclasses.field(default=default, metadata={"range": (least, most)})


@dataclass(frozen=True)
class DetectorConfig:
    """Constants of the live detector. Frames are 16 ms, blocks 32 ms. Raises ConfigError that lists every fault."""

    # Operating point, chosen by `digits tune-threshold`; see thresholds.json.
    spotter_threshold: float = dataclasses.field(metadata={"range": (0.0, 1.0)})  # of a candidate's smoothed posterior
    detection_threshold: float = dataclasses.field(metadata={"range": (0.0, 1.0)})  # of a reported digit's confidence

    # Resampler and high-pass filter
    resampler_flatness: float = _field(0.9, 0.1, 0.99)  # passband edge, as a fraction of the lower Nyquist frequency
    resampler_attenuation_db: float = _field(60.0, 21.0, 150.0)  # of the stopband
    high_pass_hz: float = _field(40.0, 0.1, 1000.0)  # -3 dB frequency

    # Energy gate; levels in dB of full scale
    energy_margin_db: float = _field(3.0, 0.0, 60.0)  # by which a block must exceed the background
    background_rise_db: float = _field(0.05, 0.0, 10.0)  # per block; it falls at once
    initial_background_db: float = _field(-60.0, -120.0, 0.0)
    min_background_db: float = _field(-78.0, -120.0, 0.0)
    energy_hangover_blocks: int = _field(20, 1, 1000)

    # Voice activity and speech gate
    vad_preroll_blocks: int = _field(10, 0, 60)  # before the energy gate opened
    speech_threshold: float = _field(0.005, 0.0, 1.0)  # voice activity that opens the gate: words begin faintly
    speech_release_ratio: float = _field(0.5, 0.0, 1.0)  # of speech_threshold, below which the hangover runs
    speech_hangover_blocks: int = _field(15, 1, 1000)
    spotter_preroll_blocks: int = _field(20, 0, 60)  # before the speech gate opened
    history_blocks: int = _field(64, 32, 1024)  # of audio and voice activity that a stream keeps
    flush_seconds: float = _field(0.4, 0.0, 10.0)  # of the last sample, appended when a stream ends

    # Peak picker
    smoothing_frames: int = _field(3, 1, 3)  # over which posteriors are averaged
    drop_ratio: float = _field(0.8, 0.0, 1.0)  # of its height, below which a peak is over
    max_hold_frames: int = _field(3, 1, 100)  # without a new maximum, after which a peak is over
    max_peak_frames: int = _field(12, 1, 1000)  # after which a peak is over in any case
    rearm_ratio: float = _field(0.5, 0.0, 1.0)  # of spotter_threshold, below which the same digit may peak again
    refractory_frames: int = _field(9, 0, 1000)  # between two candidates, at least
    min_word_frames: float = _field(4.0, 0.0, 60.0)
    latency_frames: float = _field(7.0, 0.0, 60.0)  # mean delay of a peak behind the end of its word
    duplicate_seconds: float = _field(0.264, 0.0, 10.0)  # in which the same digit is the same word

    # Audio that the classifiers verify
    margin_before_seconds: float = _field(0.35, 0.0, 1.0)
    margin_after_seconds: float = _field(0.18, 0.0, 1.0)
    min_margin_frames: float = _field(2.0, 0.0, 60.0)  # before a word, even where the word before it reaches into it
    commit_confidence: float = _field(0.5, 0.0, math.inf)  # from which a word's audio is kept from the next candidate

    # Fusion: a logistic regression on the log-odds of (spotter, presence, classifier, voice); benchmarks/evidence.py
    fusion_offset: float = _field(-1.39, -100.0, 100.0)
    fusion_weights: tuple[float, float, float, float] = _field((0.61, 0.52, 0.56, 0.29), -100.0, 100.0)
    probability_floor: float = _field(1e-4, 1e-12, 0.1)  # probabilities are clipped to [floor, 1 - floor]

    def __post_init__(self) -> None:
        if isinstance(self.fusion_weights, list):  # from JSON
            object.__setattr__(self, "fusion_weights", tuple(self.fusion_weights))
        faults = []
        for field in dataclasses.fields(self):
            value, (least, most) = getattr(self, field.name), field.metadata["range"]
            kinds, expected = ((int,), "a whole number") if field.type == "int" else ((int, float), "a number")
            values = [value]
            if field.name == "fusion_weights":
                values, expected = [*value] if isinstance(value, tuple) and len(value) == 4 else [None], "4 numbers"
            if not all(type(v) in kinds and least <= v <= most for v in values):
                faults.append(f"{field.name}: expected {expected} from {least:g} to {most:g}, got {value!r}")
        if not faults and max(self.vad_preroll_blocks, self.spotter_preroll_blocks) >= self.history_blocks:
            faults.append(f"history_blocks: expected more than both prerolls, got {self.history_blocks}")
        if faults:
            raise ConfigError(faults, "detector config")


def load_config(file: str | Path = SHIPPED) -> DetectorConfig:
    """The config with the thresholds of a file of `digits tune-threshold`. Raises ConfigError that names its faults."""
    try:
        content: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror or error}"], str(file)) from error
    except ValueError as error:
        raise ConfigError([f"invalid JSON: {error}"], str(file)) from error
    thresholds = content.get("thresholds") if isinstance(content, dict) else None
    if isinstance(thresholds, dict) and thresholds.keys() == _EARLIER_KEYS.keys():
        warnings.warn(
            f"{file}: the keys spotted and digit are now spotter_threshold and detection_threshold",
            FutureWarning, stacklevel=2,
        )  # fmt: skip
        thresholds = {new: thresholds[old] for old, new in _EARLIER_KEYS.items()}
    if not isinstance(thresholds, dict) or thresholds.keys() != set(_EARLIER_KEYS.values()):
        names = ", ".join(_EARLIER_KEYS.values())
        raise ConfigError([f"expected thresholds: {names}, as tune-threshold writes them"], str(file))
    return DetectorConfig(**thresholds)


def make_config(spotted: float, digit: float) -> DetectorConfig:
    """`Thresholds` of 0.1, with the names of its fields."""
    return DetectorConfig(spotter_threshold=spotted, detection_threshold=digit)
