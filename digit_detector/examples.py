"""Recordings that come with the package, to try it with: spoken by espeak-ng, CC0."""

from __future__ import annotations

from pathlib import Path

from digit_detector.errors import ConfigError

SAID = {"seven": "7", "three": "3", "phone_number": "4135550127"}  # name -> the digits in it
EXAMPLES = tuple(name for name, digits in SAID.items() if len(digits) == 1)  # a second each, for `digits predict`


def example_recording(name: str) -> Path:
    """Where a recording of SAID lies, 8 kHz, 16 bits. Raises ConfigError for another name."""
    if name not in SAID:
        raise ConfigError([f"example: expected one of {', '.join(SAID)}, got {name!r}"])
    return Path(__file__).parent / "samples" / f"{name}.flac"
