"""Test streams of known content: recorded words joined over recorded noise, random from the caller's generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio import SAMPLE_RATE, Floats, decode_sound, list_audio_files, trim_silence
from digit_detector.errors import DataError

TRIM_DB = -30.0  # below which the ends of a clip are trimmed
EDGE_DB = -25.0  # relative to its loudest frame, from which on a frame belongs to a word
WORD_DBFS = -26.0  # rms of every word of a stream
CROSSFADE = 0.02  # seconds, between words without a pause
_FRAME = SAMPLE_RATE // 100


@dataclass(frozen=True, eq=False)
class Word:
    """One recording of a digit."""

    samples: Floats  # (T,) at 8 kHz, trimmed
    digit: int
    speaker: str


@dataclass(frozen=True)
class LabelledDigit:
    """A digit in a stream; seconds."""

    digit: int
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class TestStream:
    """Audio of known content."""

    __test__ = False  # of pytest
    samples: Floats  # (T,) at 8 kHz
    digits: tuple[LabelledDigit, ...]

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def load_words(folder: Path) -> list[Word]:
    """Every recording {digit}_{speaker}_{index} of a folder, in the order of their names. Raises DataError."""
    words = []
    for path in audio_files(folder):
        digit, _, rest = path.stem.partition("_")
        if not (digit.isdecimal() and len(digit) == 1 and rest):
            raise DataError(f"{path}: expected a name like 7_anna_0.wav, which begins with the digit")
        samples = trim_silence(decode_sound(path), TRIM_DB)
        if len(samples) < CROSSFADE * SAMPLE_RATE:
            raise DataError(f"{path} lasts {len(samples) / SAMPLE_RATE:.3f} s: expected a spoken digit")
        words.append(Word(samples, int(digit), rest.rpartition("_")[0] or rest))
    return words


def load_sounds(folder: Path) -> list[Floats]:
    """Every recording of a folder, (T,) at 8 kHz, in the order of their names. Raises DataError."""
    return [decode_sound(path) for path in audio_files(folder)]


def audio_files(folder: Path) -> list[Path]:
    """The recordings below a folder, sorted. Raises DataError if there are none."""
    files = list_audio_files(folder) if folder.is_dir() else []
    if not files:
        raise DataError(f"{folder} holds no recordings: expected a folder with some")
    return files


def find_edges(samples: Floats) -> tuple[int, int]:
    """The samples between which frames of 10 ms are within EDGE_DB of the loudest."""
    count = max(1, len(samples) // _FRAME)
    power = np.square(samples[: count * _FRAME], dtype=np.float64).reshape(count, -1).mean(axis=1)
    loud = np.flatnonzero(power >= power.max() * 10 ** (EDGE_DB / 10))
    return int(loud[0]) * _FRAME, int(loud[-1] + 1) * _FRAME


def join_with_pauses(
    words: Sequence[Word], noise: Floats, snr_db: float, rng: np.random.Generator,
    pauses: tuple[float, float] = (0.15, 2.0),
) -> TestStream:  # fmt: skip
    """Words one after the other with pauses of random length, all at one level, over noise `snr_db` below them."""
    return _join([[word] for word in words], rng.uniform(*pauses, len(words) + 1), noise, snr_db)


def join_connected(
    strings: Sequence[Sequence[Word]], noise: Floats, snr_db: float, rng: np.random.Generator
) -> TestStream:
    """Strings of words without any pause within, and a second or so between them."""
    return _join(strings, rng.uniform(0.8, 2.0, len(strings) + 1), noise, snr_db)


def _join(strings: Sequence[Sequence[Word]], gaps: NDArray[np.float64], noise: Floats, snr_db: float) -> TestStream:
    """Strings with `gaps` seconds of silence before, between and after them."""
    fade = int(CROSSFADE * SAMPLE_RATE)
    slope = np.linspace(0.0, 1.0, fade, dtype=np.float32)
    level = 10 ** (WORD_DBFS / 20)
    total = int(sum(gaps) * SAMPLE_RATE) + sum(len(word.samples) for string in strings for word in string) + len(gaps)
    samples = np.zeros(total, dtype=np.float32)
    digits = []
    at = int(gaps[0] * SAMPLE_RATE)
    for string, gap in zip(strings, gaps[1:], strict=True):
        for place, word in enumerate(string):
            sound = word.samples * np.float32(level / np.sqrt(np.square(word.samples, dtype=np.float64).mean()))
            first, last = find_edges(word.samples)
            if place:
                at -= fade
                sound[:fade] *= slope
            if place + 1 < len(string):
                sound[len(sound) - fade :] *= slope[::-1]
            samples[at : at + len(sound)] += sound
            digits.append(LabelledDigit(word.digit, (at + first) / SAMPLE_RATE, (at + last) / SAMPLE_RATE))
            at += len(sound)
        at += int(gap * SAMPLE_RATE)
    samples = samples[:at]
    loud = level * 10 ** (-snr_db / 20)
    return TestStream(samples + np.resize(noise, len(samples)) * np.float32(loud), tuple(digits))


def make_noise_track(sounds: Sequence[Floats], seconds: float, rng: np.random.Generator) -> Floats:
    """(T,) random recordings one after the other, each of power one, crossfaded over a tenth of a second."""
    fade = SAMPLE_RATE // 10
    slope = np.linspace(0.0, 1.0, fade, dtype=np.float32)
    size = int(seconds * SAMPLE_RATE)
    track = np.zeros(size + fade, dtype=np.float32)
    at = 0
    while at < size:
        sound = sounds[int(rng.integers(len(sounds)))]
        sound = np.resize(sound, max(len(sound), 3 * fade))
        sound = (sound - sound.mean()) / np.float32(max(float(sound.std()), 1e-6))
        sound[:fade] *= slope
        sound[-fade:] *= slope[::-1]
        part = sound[: len(track) - at]
        track[at : at + len(part)] += part
        at += len(sound) - fade
    return track[:size]


def mix_noise(sounds: Sequence[Floats], seconds: float, rng: np.random.Generator) -> Floats:
    """(T,) two tracks of noise at a time, whose levels change with every piece between -45 and -10 dBFS."""
    size = int(seconds * SAMPLE_RATE)
    mixed = np.zeros(size, dtype=np.float32)
    at = 0
    while at < size:
        length = int(rng.uniform(3.0, 10.0) * SAMPLE_RATE)
        one, two = (make_noise_track(sounds, length / SAMPLE_RATE, rng) for _ in range(2))
        piece = one + two * np.float32(10 ** (rng.uniform(-20, 0) / 20))
        level = 10 ** (rng.uniform(-45.0, -10.0) / 20)
        piece = piece * np.float32(level / max(float(np.sqrt(np.square(piece).mean())), 1e-9))
        mixed[at : at + len(piece)] = piece[: size - at]
        at += len(piece)
    return np.clip(mixed, -1.0, 1.0)


def sentences(sounds: Sequence[Floats], rng: np.random.Generator) -> Floats:
    """(T,) sentences one after the other, half a second to two apart, each at a level of its own over faint noise."""
    parts = [np.zeros(SAMPLE_RATE // 2, dtype=np.float32)]
    for sound in sounds:
        level = 10 ** (rng.uniform(-32.0, -20.0) / 20)
        parts.append(sound * np.float32(level / max(float(sound.std()), 1e-6)))
        parts.append(np.zeros(int(rng.uniform(0.5, 2.0) * SAMPLE_RATE), dtype=np.float32))
    joined = np.concatenate(parts)
    return joined + rng.normal(0.0, 1e-3, len(joined)).astype(np.float32)
