"""Sources of live sound: a microphone, or a file, as fast as possible or in real time."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from digit_detector.audio import Floats, Warn, mono_blocks
from digit_detector.errors import MicrophoneError, MissingExtraError

STDIN = "-"  # as the name of a file
PIECE_SECONDS = 0.032  # of sound that comes at a time
_TIMEOUT = 5.0  # seconds without sound after which a microphone is considered disconnected
_SILENCE = 3.0  # seconds of zeros after which a microphone is considered muted
_MAX_WAITING = 200  # pieces; later ones are lost, and counted


def read_file(
    path: str, realtime: bool, warn: Warn | None = None, encoding: str | None = None, raw_rate: int | None = None
) -> Iterator[tuple[int, Floats]]:
    """Pieces (frames,) of a recording, or of STDIN, with their rate. Raises AudioError.

    `encoding` and `raw_rate` are of sound without a header, as in load_audio. `warn` is called with a message if the
    recording is shorter than its header says; without it that is an error.
    """
    started, played = time.monotonic(), 0.0
    for rate, block in mono_blocks(sys.stdin.buffer if path == STDIN else path, encoding, raw_rate, warn=warn):
        size = max(1, int(PIECE_SECONDS * rate)) if realtime else len(block)
        for first in range(0, len(block), size):
            piece = block[first : first + size]
            if realtime:
                played += len(piece) / rate
                time.sleep(max(0.0, started + played - time.monotonic()))
            yield rate, piece


class Microphone:
    """Endless pieces of a microphone's sound, with its rate. A context manager and an iterator."""

    def __init__(self, device: int | str | None = None) -> None:
        """Raises MissingExtraError without the [mic] extra, MicrophoneError without such a microphone."""
        self._sound = _sounddevice()
        self._pieces: queue.Queue[Floats] = queue.Queue(maxsize=_MAX_WAITING)
        self.lost = 0  # pieces that came while too many waited
        try:
            info = self._sound.query_devices(device, "input")
            self.name, self.rate = str(info["name"]), int(info["default_samplerate"])
            self._stream = self._sound.InputStream(
                device=device, channels=1, samplerate=self.rate, blocksize=int(PIECE_SECONDS * self.rate),
                dtype="float32", callback=self._enqueue,
            )  # fmt: skip
        except (self._sound.PortAudioError, ValueError) as error:
            raise _make_error(error, device) from error

    def __enter__(self) -> Microphone:
        try:
            self._stream.start()
        except self._sound.PortAudioError as error:
            raise _make_error(error, self.name) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.abort()
        self._stream.close()

    def __iter__(self) -> Iterator[tuple[int, Floats]]:
        while True:
            try:
                yield self.rate, self._pieces.get(timeout=_TIMEOUT)
            except queue.Empty:
                raise MicrophoneError(
                    f"no sound came from {self.name} for {_TIMEOUT:g} s: check that it is connected and not muted"
                ) from None

    def _enqueue(self, samples: Floats, *_: object) -> None:
        try:
            self._pieces.put_nowait(samples.copy())
        except queue.Full:
            self.lost += 1


def note_silence(pieces: Iterable[tuple[int, Floats]], note: Warn) -> Iterator[tuple[int, Floats]]:
    """The pieces; calls `note` once if they are zeros for _SILENCE seconds."""
    silent, noted = 0.0, False
    for rate, piece in pieces:
        yield rate, piece
        silent = 0.0 if piece.any() else silent + len(piece) / rate
        if silent >= _SILENCE and not noted:
            note(f"only digital silence for {_SILENCE:g} s: check that the microphone is not muted and may be used")
            noted = True


def list_microphones() -> list[tuple[int, str, bool]]:
    """Number and name of every device that can record, and whether it is the default."""
    sound = _sounddevice()
    try:
        return [
            (number, str(device["name"]), number == sound.default.device[0])
            for number, device in enumerate(sound.query_devices())
            if device["max_input_channels"] > 0
        ]
    except sound.PortAudioError as error:
        raise _make_error(error, None) from error


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise MissingExtraError("listening to a microphone", "mic") from None
    except OSError as error:
        message = f"{error}: install PortAudio, on Debian and Ubuntu with apt install libportaudio2"
        raise MicrophoneError(message) from error
    return sounddevice


def _make_error(error: Exception, device: object) -> MicrophoneError:
    which = "no microphone can" if device is None else f"microphone {device!r} cannot"
    return MicrophoneError(f"{which} be used ({error}): connect one, allow access to it, or see digits listen --list")
