"""Whole recordings: bounded when they are decoded, and answered by processors."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import Sequence
from http import HTTPStatus

import numpy as np

from digit_detector.processors import PROCESSORS, Answer, AudioProcessor, Processors
from digit_detector.webapp.faults import RefusedError, busy
from ml_training.audio import MAX_RATE, file_blocks
from ml_training.errors import EmptyAudioError, did_you_mean

ALL = "all"
_CHANNELS = 8
_log = logging.getLogger("digits.serve")


class Recordings:
    """Answers a few at a time; so many more may wait."""

    def __init__(self, processors: Processors, at_once: int, waiting: int, most_seconds: float) -> None:
        self.processors = processors
        self.reasons = {name: _told(name, why) for name, why in processors.unavailable.items()}
        self._most_seconds = most_seconds
        self._turns = asyncio.Semaphore(at_once)
        self._waiting, self._most_waiting = 0, waiting

    def chosen(self, method: str) -> Sequence[AudioProcessor]:
        """The processors of a name, or all of them. Raises RefusedError for a name that is none, or cannot run here."""
        if method == ALL:
            return list(self.processors.values())
        if method in self.processors:
            return [self.processors[method]]
        check_name(method)
        raise RefusedError(HTTPStatus.CONFLICT, "not_available", f"{method} cannot run here: {self.reasons[method]}")

    async def answer(self, content: bytes, method: str) -> tuple[float, list[tuple[str, Answer]]]:
        """Seconds of a recording, and what each processor says of it.

        Raises RefusedError, or an AudioError for what is no recording.
        """
        chosen = self.chosen(method)
        if self._waiting >= self._most_waiting:
            raise busy(f"{self._most_waiting} recordings wait already")
        self._waiting += 1
        try:
            async with self._turns:
                return await asyncio.to_thread(self._answer, content, chosen)
        finally:
            self._waiting -= 1

    def _answer(self, content: bytes, chosen: Sequence[AudioProcessor]) -> tuple[float, list[tuple[str, Answer]]]:
        wav, seconds = as_wav(content, self._most_seconds)
        return seconds, [(processor.name, processor.answer(wav)) for processor in chosen]


def _told(name: str, why: str) -> str:
    """Why a processor cannot run, without what the files of this machine are called."""
    if not PROCESSORS[name].ours:
        return why
    _log.warning("%s cannot run here: %s", name, why)
    return "the server has no model for it that can be used; its log says more"


def check_name(method: str) -> None:
    """Raise RefusedError for what is no processor's name."""
    if method not in PROCESSORS:
        hint = did_you_mean(method[:40], PROCESSORS) or f": expected one of {', '.join(PROCESSORS)}"
        raise RefusedError(HTTPStatus.NOT_FOUND, "no_method", f"there is no method of that name{hint}")


def as_wav(content: bytes, most_seconds: float) -> tuple[bytes, float]:
    """A recording of any format as the bytes of a WAV of one channel at its own rate, and how long it is in seconds.

    So a decoder hears it once, and no more of it than is allowed. Raises RefusedError or an AudioError.
    """
    import soundfile

    wav = io.BytesIO()
    file: soundfile.SoundFile | None = None
    rate = frames = 0
    with contextlib.ExitStack() as closing:
        for block_rate, block in file_blocks(content):
            rate = rate or block_rate
            if block_rate != rate or not 0 < rate <= MAX_RATE:  # seconds at a rate that no sound has bound nothing
                raise RefusedError(
                    HTTPStatus.UNPROCESSABLE_ENTITY, "bad_audio",
                    f"the recording has a sample rate of {block_rate} Hz: expected a single one, at most {MAX_RATE} Hz",
                )  # fmt: skip
            if block.shape[1] > _CHANNELS:
                raise RefusedError(
                    HTTPStatus.UNPROCESSABLE_ENTITY, "bad_audio",
                    f"the recording has {block.shape[1]} channels: expected {_CHANNELS} at most",
                )  # fmt: skip
            if file is None:
                file = closing.enter_context(soundfile.SoundFile(wav, "w", rate, 1, "FLOAT", format="WAV"))
            frames += len(block)
            if frames > most_seconds * rate:
                raise RefusedError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_long",
                    f"the recording is longer than {most_seconds:g} s: cut it to the words",
                )  # fmt: skip
            file.write(block.mean(axis=1, dtype=np.float32))
    if not frames:
        raise EmptyAudioError("the recording holds no samples: expected a spoken digit")
    return wav.getvalue(), frames / rate
