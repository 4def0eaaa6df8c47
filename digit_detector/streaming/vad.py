"""What is worth listening to: blocks that stand out from the background, and speech."""

from __future__ import annotations

import math

import numpy as np

from digit_detector.audio import Floats

_SILENCE_DB = -78.0  # of full scale; below it nothing is heard
_ABOVE_DB = 3.0  # what a block must stand out from the background by
_RISES_DB = 0.05  # by which the background is taken for louder with every block, 1.6 dB a second
_FIRST_DB = -60.0  # what the background is taken for at first


class EnergyGate:
    """Open while something is louder than the background, and `held` blocks longer.

    The background is the quietest of late: it falls at once and rises slowly.
    """

    def __init__(self, held: int) -> None:
        self.held = held
        self.level_db = -120.0  # of the last block
        self._background_db = _FIRST_DB
        self._left = 0

    def hears(self, block: Floats) -> bool:
        """Whether it is open at this block (256,) of samples."""
        mean = float(np.add.reduce(block)) / len(block)
        power = max(float(block @ block) / len(block) - mean * mean, 1e-12)  # an offset is no sound
        self.level_db = level = 10.0 * math.log10(power)
        self._background_db = max(min(level, self._background_db + _RISES_DB), _SILENCE_DB)
        if level > self._background_db + _ABOVE_DB:
            self._left = self.held
        elif self._left:
            self._left -= 1
        return self._left > 0


class SpeechGate:
    """Open from where voice activity reaches `begins` until it stayed below half of that for `held` blocks."""

    def __init__(self, begins: float, held: int) -> None:
        self.begins, self.held = begins, held
        self._left = 0

    @property
    def is_open(self) -> bool:
        return self._left > 0

    def hears(self, voice: float) -> bool:
        """Whether it is open at a block with so much voice activity, 0 to 1."""
        if voice >= self.begins or (self._left and voice >= self.begins / 2):
            self._left = self.held
        elif self._left:
            self._left -= 1
        return self._left > 0

    def close(self) -> None:
        self._left = 0
