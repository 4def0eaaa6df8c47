"""Speaks with espeak-ng, in a process of its own: python espeak_worker.py LIBRARY DATA SEED.

Standard input is a JSON list of [voice, text, rate, pitch, range]; standard output is, for each of them, the number
of samples (4 bytes, little-endian), the samples (16 bit, 22,050 Hz), the number of words and where each begins.
espeak-ng keeps its state in global variables that outlast its termination, so only a fresh process speaks
the same words the same way twice. Nothing but the standard library is imported, so it starts fast.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

SAMPLE_RATE = 22050  # Hz, of every espeak-ng voice

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples arrive in a callback before espeak_Synth returns
_DONT_EXIT = 1 << 15  # espeakINITIALIZE_DONT_EXIT
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_NO_CLIPPING = 50  # of 100, the usual volume, at which the loudest voices are cut off
_CHARACTERS = 1  # POS_CHARACTER
_UTF8 = 1  # espeakCHARS_UTF8

_WORD = 1  # espeakEVENT_WORD
_NO_MORE = 0  # espeakEVENT_LIST_TERMINATED


class _Event(ctypes.Structure):
    """espeak_EVENT, of which only the kind and the sample count here."""

    _fields_ = (
        ("kind", ctypes.c_int), ("identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("name", ctypes.c_char * 8),
    )  # fmt: skip


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """espeak-ng's library, initialised once."""

    def __init__(self, library: str, data: str, seed: int) -> None:
        self._heard = bytearray()
        self._words: list[int] = []
        self._callback = _Callback(self._hear)  # kept: ctypes does not
        self._lib = ctypes.CDLL(library)
        self._lib.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
            ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        rate = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DONT_EXIT)
        if rate != SAMPLE_RATE:
            raise RuntimeError(f"espeak-ng did not start with the data in {data} (it answered {rate})")
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._lib.espeak_SetSynthCallback(self._callback)

    def _hear(self, samples: int | None, count: int, events: Any) -> int:
        if samples and count > 0:
            self._heard += ctypes.string_at(samples, 2 * count)
        at = 0
        while events and events[at].kind != _NO_MORE:
            if events[at].kind == _WORD:
                self._words.append(events[at].sample)
            at += 1
        return 0

    def say(self, voice: str, text: str, rate: int, pitch: int, pitch_range: int) -> tuple[bytes, list[int]]:
        """16-bit samples at 22,050 Hz, and at which of them words begin.

        `rate` is in words a minute, the others go from 0 to 100.
        """
        self._heard.clear()
        self._words.clear()
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((_RATE, rate), (_VOLUME, _NO_CLIPPING), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        words = text.encode()
        if self._lib.espeak_Synth(words, len(words) + 1, 0, _CHARACTERS, 0, _UTF8, None, None) != 0:
            raise RuntimeError(f"espeak-ng could not say {text!r} as {voice!r}")
        return bytes(self._heard), list(self._words)


def main(library: str, data: str, seed: str) -> int:
    espeak = Espeak(library, data, int(seed))
    for voice, text, rate, pitch, pitch_range in json.load(sys.stdin):
        samples, words = espeak.say(voice, text, rate, pitch, pitch_range)
        numbers = b"".join(number.to_bytes(4, "little") for number in (len(words), *words))
        sys.stdout.buffer.write((len(samples) // 2).to_bytes(4, "little") + samples + numbers)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (OSError, RuntimeError, AttributeError) as error:  # AttributeError: the library lacks a function
        sys.exit(str(error))
