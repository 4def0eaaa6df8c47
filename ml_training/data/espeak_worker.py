"""Speaks with espeak-ng, in a process of its own: python espeak_worker.py LIBRARY DATA SEED.

Standard input is a JSON list of [voice, text, rate, pitch, range]. Standard output is, for each of them, the number of
samples and that of words (4 bytes each, little-endian), the samples (16 bits, 22,050 Hz) and where each word begins.
espeak-ng keeps its state in global variables that outlast its termination, so only a fresh process speaks the same
words the same way twice. Only the standard library is imported, for a fast start.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
from typing import Any

SAMPLE_RATE = 22050  # Hz, of every espeak-ng voice

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples arrive in a callback before espeak_Synth returns
_DONT_EXIT = 1 << 15  # espeakINITIALIZE_DONT_EXIT
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_NO_CLIPPING = 50  # of 100, the default volume, which clips the loudest voices
_CHARACTERS, _UTF8 = 1, 1  # POS_CHARACTER, espeakCHARS_UTF8
_NO_MORE, _WORD = 0, 1  # espeakEVENT_LIST_TERMINATED, espeakEVENT_WORD


class _Event(ctypes.Structure):
    """espeak_EVENT."""

    _fields_ = (
        ("kind", ctypes.c_int), ("identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("name", ctypes.c_char * 8),
    )  # fmt: skip


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """espeak-ng's library, initialised once."""

    def __init__(self, library: str, data: str, seed: int) -> None:
        self._samples = bytearray()
        self._words: list[int] = []
        self._callback = _Callback(self._receive)  # ctypes keeps no reference
        self._lib = ctypes.CDLL(library)
        self._lib.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
            ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        rate = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DONT_EXIT)
        if rate != SAMPLE_RATE:
            raise RuntimeError(f"espeak-ng did not start with the data in {data} (it returned {rate})")
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._lib.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: int | None, count: int, events: Any) -> int:
        if samples and count > 0:
            self._samples += ctypes.string_at(samples, 2 * count)
        at = 0
        while events and events[at].kind != _NO_MORE:
            if events[at].kind == _WORD:
                self._words.append(events[at].sample)
            at += 1
        return 0

    def speak(self, voice: str, text: str, rate: int, pitch: int, pitch_range: int) -> tuple[bytes, list[int]]:
        """16-bit samples at 22,050 Hz, and at which of them words begin.

        `rate` is in words a minute, the others go from 0 to 100.
        """
        self._samples.clear()
        self._words.clear()
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((_RATE, rate), (_VOLUME, _NO_CLIPPING), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        words = text.encode()
        if self._lib.espeak_Synth(words, len(words) + 1, 0, _CHARACTERS, 0, _UTF8, None, None) != 0:
            raise RuntimeError(f"espeak-ng could not speak {text!r} as {voice!r}")
        return bytes(self._samples), list(self._words)


def main(library: str, data: str, seed: str) -> int:
    espeak = Espeak(library, data, int(seed))
    for voice, text, rate, pitch, pitch_range in json.load(sys.stdin):
        samples, words = espeak.speak(voice, text, rate, pitch, pitch_range)
        counts = struct.pack("<2I", len(samples) // 2, len(words))
        sys.stdout.buffer.write(counts + samples + struct.pack(f"<{len(words)}i", *words))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (OSError, RuntimeError, AttributeError) as error:  # AttributeError: the library lacks a function
        sys.exit(str(error))
