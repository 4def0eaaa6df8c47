"""Every constant of live detection, and the operating point. The web page reads the same as /models/detector.json."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digit_detector.errors import ConfigError

SHIPPED = Path(__file__).with_name("thresholds.json")
DIGITS, ANY = "digits", "any"
CONTEXTS = {
    DIGITS: "digits of utterances without other words, at the end of the utterance",
    ANY: "digits anywhere, also within sentences, at once",
}
THRESHOLDS = ("digits_threshold", "any_threshold", "other_ratio")  # chosen by `digits tune-threshold`


def _field(default: Any, least: float, most: float) -> Any:
    return dataclasses.field(default=default, metadata={"range": (least, most)})


@dataclass(frozen=True)
class DetectorConfig:
    """Constants of the live detector. Frames are 32 ms. Raises ConfigError that lists every fault."""

    # Operating point; see thresholds.json
    digits_threshold: float = _field(0.5, 0.0, 1.0)  # least mean confidence of an utterance in context "digits"
    any_threshold: float = _field(0.85, 0.0, 1.0)  # least confidence of a digit in context "any"
    other_ratio: float = _field(0.25, 0.0, 1.0)  # of other words among all words, above which an utterance is dropped

    context: str = dataclasses.field(default=DIGITS, metadata={"choices": tuple(CONTEXTS)})

    # Resampler and high-pass filter
    resampler_flatness: float = _field(0.9, 0.1, 0.99)  # passband edge, as a fraction of the lower Nyquist frequency
    resampler_attenuation_db: float = _field(60.0, 21.0, 150.0)  # of the stopband
    high_pass_hz: float = _field(40.0, 0.1, 1000.0)  # -3 dB frequency
    flush_seconds: float = _field(0.4, 0.0, 10.0)  # of the last sample, appended when a stream ends

    # Beam search
    beam_width: int = _field(8, 1, 100)  # hypotheses
    posterior_floor: float = _field(0.01, 0.0, 0.5)  # of a token that extends a hypothesis
    other_weight: float = _field(0.05, 0.0, 1.0)  # of the posterior of other words: digits are far more probable
    other_floor: float = _field(0.3, 0.0, 1.0)  # posterior from which a frame counts as another word
    commit_frames: int = _field(47, 4, 1000)  # after which a token of an utterance is decided

    # Context "digits"
    endpoint_seconds: float = _field(0.38, 0.03, 5.0)  # of silence that end an utterance
    speech_threshold: float = _field(0.5, 0.0, 1.0)  # of speech activity
    max_utterance_seconds: float = _field(20.0, 1.0, 600.0)
    guard_seconds: float = _field(0.3, 0.0, 10.0)  # after dropped speech, in which an utterance is dropped too

    # Context "any"
    any_frames: int = _field(3, 1, 100)  # from the largest posterior of a token to its report

    # Words
    pair_seconds: float = _field(1.0, 0.0, 10.0)  # between "oh", "double" or "triple" and its digit, at most
    token_seconds: float = _field(-0.09, -1.0, 1.0)  # mean delay of a token behind its word, whose end it precedes
    word_seconds: float = _field(0.4, 0.05, 2.0)  # longest duration given to a word

    # Confidence: logistic regression on the log-odds of the token's largest posterior
    confidence_offset: float = _field(0.0, -20.0, 20.0)
    confidence_scale: float = _field(1.0, 0.01, 20.0)

    def __post_init__(self) -> None:
        faults = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if choices := field.metadata.get("choices"):
                if value not in choices:
                    faults.append(f"{field.name}: expected one of {', '.join(choices)}, got {value!r}")
                continue
            least, most = field.metadata["range"]
            kinds, expected = ((int,), "a whole number") if field.type == "int" else ((int, float), "a number")
            if type(value) not in kinds or not least <= value <= most:
                faults.append(f"{field.name}: expected {expected} from {least:g} to {most:g}, got {value!r}")
        if faults:
            raise ConfigError(faults, "detector config")


def load_config(file: str | Path = SHIPPED, context: str = DIGITS) -> DetectorConfig:
    """The config with the thresholds of a file of `digits tune-threshold`. Raises ConfigError that names its faults."""
    try:
        content: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror or error}"], str(file)) from error
    except ValueError as error:
        raise ConfigError([f"invalid JSON: {error}"], str(file)) from error
    thresholds = content.get("thresholds") if isinstance(content, dict) else None
    if not isinstance(thresholds, dict) or thresholds.keys() != set(THRESHOLDS):
        names = ", ".join(THRESHOLDS)
        raise ConfigError(
            [f"expected thresholds {names}: a file of an earlier version does not fit, run digits tune-threshold"],
            str(file),
        )
    return DetectorConfig(**thresholds, context=context)
