"""Sample recordings that come with the package: spoken by espeak-ng, CC0."""

from __future__ import annotations

from pathlib import Path

from digit_detector.errors import ConfigError

DIGITS = {"seven": "7", "three": "3", "phone_number": "4135550127"}  # name -> the spoken digits
EXAMPLES = tuple(name for name, digits in DIGITS.items() if len(digits) == 1)  # of one second, for `digits predict`


def example_recording(name: str) -> Path:
    """The file of a recording of DIGITS, 8 kHz, 16 bits. Raises ConfigError for another name."""
    if name not in DIGITS:
        raise ConfigError([f"example: expected one of {', '.join(DIGITS)}, got {name!r}"])
    return Path(__file__).parent / "samples" / f"{name}.flac"
