"""Perturbations of test clips by kind and severity, in numpy, seeded, on whole batches.

The word of a clip is its frames of 20 ms whose power is at most 30 dB below that of the loudest frame; signal-to-noise
ratios are taken over these frames. Noises and rooms are drawn once for each (seed, kind), so that the points of a
curve, and models, differ in nothing but what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, decode_sound
from digit_detector.errors import AudioError, DataError
from digit_detector.evaluation.streams import audio_files
from ml_training.results import Floats

FRAME = SAMPLE_RATE // 50  # 20 ms
WORD_DB = 30.0  # frames further below the loudest are not part of the word
SNRS = (20.0, 10.0, 5.0, 0.0, -5.0)  # dB
BANDS = ((100, 3900), (300, 3400), (500, 2500), (700, 2000))  # Hz; the second is that of the telephone
CLIPPING = (6.0, 12.0, 18.0, 24.0, 30.0)  # dB below the peak
RT60 = (0.1, 0.2, 0.4, 0.8, 1.2)  # s
SPEEDS = (0.8, 0.87, 0.93, 1.0, 1.08, 1.16, 1.25)
LEVELS = (0.0, -10.0, -20.0, -30.0, -40.0)  # dBFS of the peak
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the part of the second that is not word
COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # exponent of the power's fall with frequency
LOWEST = 20.0  # Hz; lower limit of coloured noise
_TRIES = 8  # draws of a recording, and of positions in each, before its loudest sample is taken
_EDGE = 60.0  # Hz, width of the slope of a band limit

Mask = NDArray[np.bool_]
Change = Callable[[float], Floats]


@dataclass(frozen=True)
class Condition:
    """One severity of one kind of perturbation."""

    kind: str
    title: str
    axis: str
    severity: float | None  # None: unchanged clips
    label: str


@dataclass(frozen=True)
class Recordings:
    """Background noise recordings."""

    folder: str
    files: tuple[str, ...]
    samples: tuple[Floats, ...]  # each (T,), at least one second
    skipped: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder and its parent, e.g. noise/train."""
        return "/".join(Path(self.folder).expanduser().resolve().parts[-2:])


def word_frames(clips: Floats) -> Mask:
    """(N, 8000) -> (N, 50): which frames belong to the word."""
    power = _frame_power(clips)
    loudest = power.max(axis=1, keepdims=True)
    mask: Mask = (power >= loudest * 10 ** (-WORD_DB / 10)) & (loudest > 0)
    return mask


def word_power(samples: Floats, frames: Mask) -> NDArray[np.float64]:
    """(N,) mean power of (N, 8000) samples over frames (N, 50)."""
    mean: NDArray[np.float64] = (_frame_power(samples) * frames).sum(axis=1) / np.maximum(frames.sum(axis=1), 1)
    return mean


def _frame_power(samples: Floats) -> NDArray[np.float64]:
    power: NDArray[np.float64] = np.square(samples.reshape(len(samples), -1, FRAME)).mean(axis=2, dtype=np.float64)
    return power


def word_span(clips: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First sample of the word of each clip, and the one behind its last."""
    frames = word_frames(clips)
    return frames.argmax(axis=1) * FRAME, (frames.shape[1] - frames[:, ::-1].argmax(axis=1)) * FRAME


def coloured_noise(clips: int, colour: str, rng: np.random.Generator) -> Floats:
    """(clips, 8000) Gaussian noise: white, pink (power ~ 1 / f) or brown (~ 1 / f^2), from 20 Hz up."""
    frequencies = np.fft.rfftfreq(NUM_SAMPLES, 1 / SAMPLE_RATE)
    gains = np.where(frequencies < LOWEST, 0.0, np.maximum(frequencies, LOWEST) ** (-COLOURS[colour] / 2))
    spectra = np.fft.rfft(rng.standard_normal((clips, NUM_SAMPLES), dtype=np.float32), axis=1) * gains
    noise: Floats = np.fft.irfft(spectra, NUM_SAMPLES, axis=1).astype(np.float32)
    return noise


def load_recordings(folder: str | Path) -> Recordings:
    """The recordings in and below a folder, sorted by name; unreadable ones are skipped.

    Raises DataError for no folder or one without a readable recording.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: expected a folder of background recordings")
    sounds, skipped = {}, []
    for path in audio_files(root):
        try:
            sound = decode_sound(path)
            sounds[path.relative_to(root).as_posix()] = np.tile(sound, max(1, math.ceil(NUM_SAMPLES / len(sound))))
        except AudioError as error:
            skipped.append(f"{path.relative_to(root).as_posix()}: {error}")
    if not sounds:
        raise DataError(f"{root} holds no background recording that can be read ({len(skipped)} cannot)")
    return Recordings(str(folder), tuple(sounds), tuple(sounds.values()), tuple(skipped))


def draw_recordings(
    recordings: Recordings, clips: Floats, rng: np.random.Generator
) -> tuple[Floats, list[dict[str, Any]]]:
    """A second of noise for each clip, (N, 8000), and its file and first sample.

    Noise that pauses during the word cannot be scaled to a signal-to-noise ratio: of eight positions in a recording the
    first is taken at which the noise during the word is at most 20 dB below its mean power, else another recording is
    drawn. After eight recordings the loudest sample of the last is put into the middle of the word, wrapping around.
    """
    frames = word_frames(clips)
    noise = np.empty_like(clips)
    drawn: list[dict[str, Any]] = []
    for row in range(len(clips)):
        for _ in range(_TRIES):
            number = int(rng.integers(len(recordings.files)))
            sound = recordings.samples[number]
            starts = rng.integers(0, len(sound) - NUM_SAMPLES + 1, _TRIES)
            pieces = np.stack([sound[start : start + NUM_SAMPLES] for start in starts])
            power = word_power(pieces, np.broadcast_to(frames[row], (_TRIES, frames.shape[1])))
            loud = np.flatnonzero(power >= 0.01 * float(np.square(sound).mean(dtype=np.float64)))
            if len(loud):
                start = int(starts[loud[0]])
                break
        else:
            word = np.flatnonzero(frames[row])
            middle = int(word[len(word) // 2]) * FRAME + FRAME // 2
            start = (int(np.abs(sound).argmax()) - middle) % len(sound)
        noise[row] = sound.take(np.arange(start, start + NUM_SAMPLES), mode="wrap")
        drawn.append({"file": recordings.files[number], "start": start})
    return noise, drawn


def mix(clips: Floats, noise: Floats, snr_db: float) -> Floats:
    """Clips plus noise at a signal-to-noise ratio over the frames of the word."""
    frames = word_frames(clips)
    wanted = word_power(clips, frames) * 10 ** (-snr_db / 10)
    gain = np.sqrt(wanted / np.maximum(word_power(noise, frames), 1e-20))
    mixed: Floats = clips + (gain[:, None] * noise).astype(np.float32)
    return mixed


def band_limit(clips: Floats, low: float, high: float) -> Floats:
    """Band-pass from `low` to `high` Hz, with slopes of 60 Hz outside the band."""
    length = NUM_SAMPLES + 1000  # padded against circular convolution
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    rise = np.clip((frequencies - (low - _EDGE)) / _EDGE, 0, 1)
    fall = np.clip((high + _EDGE - frequencies) / _EDGE, 0, 1)
    gains = np.sin(0.5 * np.pi * rise) ** 2 * np.sin(0.5 * np.pi * fall) ** 2
    filtered = np.fft.irfft(np.fft.rfft(clips, length, axis=1) * gains, length, axis=1)
    return np.ascontiguousarray(filtered[:, :NUM_SAMPLES], dtype=np.float32)


def clip_peaks(clips: Floats, below_peak_db: float) -> Floats:
    """Samples limited to `below_peak_db` dB below the peak of each clip."""
    limit = np.abs(clips).max(axis=1, keepdims=True) * np.float32(10 ** (-below_peak_db / 20))
    return np.clip(clips, -limit, limit)


def reverberate(clips: Floats, noise: Floats, rt60: float) -> Floats:
    """Clips in rooms of a reverberation time (s, until 60 dB down), direct sound and tail of equal energy.

    The impulse response is the direct sound and, from 2.5 ms on, exponentially decaying Gaussian noise (Polack, 1988).
    """
    time = np.arange(NUM_SAMPLES) / SAMPLE_RATE
    tail = noise * np.exp(-math.log(1e3) * time / rt60).astype(np.float32)
    tail[:, : SAMPLE_RATE // 400] = 0.0
    tail /= np.sqrt(np.square(tail).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    tail[:, 0] = 1.0
    size = 2 * NUM_SAMPLES
    wet = np.fft.irfft(np.fft.rfft(clips, size, axis=1) * np.fft.rfft(tail, size, axis=1), size, axis=1)
    return np.ascontiguousarray(wet[:, :NUM_SAMPLES], dtype=np.float32)


def change_speed(clips: Floats, speed: float) -> Floats:
    """Clips played `speed` times as fast, pitch included, centred in their second."""
    length = round(NUM_SAMPLES / speed)
    spectra = np.fft.rfft(clips, axis=1)
    played = np.fft.irfft(spectra[:, : length // 2 + 1], length, axis=1) * (length / NUM_SAMPLES)
    if length >= NUM_SAMPLES:
        start = (length - NUM_SAMPLES) // 2
        return played[:, start : start + NUM_SAMPLES].astype(np.float32)
    start = (NUM_SAMPLES - length) // 2
    return np.pad(played, ((0, 0), (start, NUM_SAMPLES - length - start))).astype(np.float32)


def set_level(clips: Floats, peak_dbfs: float) -> Floats:
    """Clips scaled to a peak in dBFS and rounded to 16 bits."""
    peak = np.maximum(np.abs(clips).max(axis=1, keepdims=True), np.float32(1e-9))
    scaled = clips / peak * np.float32(10 ** (peak_dbfs / 20))
    rounded: Floats = (np.round(scaled * 32767) / 32767).astype(np.float32)
    return rounded


def place_word(clips: Floats, place: float) -> Floats:
    """Clips rotated so that `place` (0 to 1) of what is not word lies before the word."""
    first, last = word_span(clips)
    wanted = np.round(place * (NUM_SAMPLES - (last - first))).astype(np.int64)
    columns = (np.arange(NUM_SAMPLES)[None, :] + (first - wanted)[:, None]) % NUM_SAMPLES
    return np.take_along_axis(clips, columns, axis=1)


# --- all of them ---------------------------------------------------------------------------------

CLEAN = Condition("clean", "Clips as they are", "", None, "clean")


def perturb(
    clips: Floats, seed: int, recordings: Recordings | None = None, drawn: list[dict[str, Any]] | None = None
) -> Iterator[tuple[Condition, Floats]]:
    """Every condition with its clips (N, 8000), the clean ones first.

    The recording that each clip is mixed with is appended to `drawn`.
    """

    def rng(kind: str) -> np.random.Generator:
        return np.random.default_rng([seed, *kind.encode()])

    yield CLEAN, clips
    axis = "signal-to-noise ratio over the word, dB"
    noises = [(kind, f"{kind.capitalize()} noise", coloured_noise(len(clips), kind, rng(kind))) for kind in COLOURS]
    if recordings is not None:
        noise, files = draw_recordings(recordings, clips, rng("recorded"))
        noises.append(("recorded", f"Recorded backgrounds ({recordings.name})", noise))
        if drawn is not None:
            drawn += files
    for kind, title, noise in noises:
        for snr in SNRS:
            yield Condition(kind, title, axis, snr, f"{snr:g} dB"), mix(clips, noise, snr)
    for number, (low, high) in enumerate(BANDS):
        title = "Band limits (300 to 3400 Hz is the telephone's)"
        condition = Condition("band", title, "band that is left", float(number), f"{low}-{high} Hz")
        yield condition, band_limit(clips, low, high)
    rooms = rng("reverberation").standard_normal((len(clips), NUM_SAMPLES), dtype=np.float32)
    others: tuple[tuple[str, str, str, Sequence[float], str, Change], ...] = (
        ("clipping", "Clipping", "limit below the peak, dB", CLIPPING, " dB", lambda s: clip_peaks(clips, s)),
        ("reverberation", "Reverberation, generated rooms", "reverberation time RT60, s", RT60, " s",
         lambda s: reverberate(clips, rooms, s)),
        ("speed", "Speed", "times as fast", SPEEDS, "", lambda s: change_speed(clips, s)),
        ("level", "Level", "peak, dBFS, 16 bits", LEVELS, " dBFS", lambda s: set_level(clips, s)),
        ("place", "A word anywhere in its second", "where the word begins, share of the free part", PLACES, "",
         lambda s: place_word(clips, s)),
    )  # fmt: skip
    for kind, title, axis, severities, unit, change in others:
        for severity in severities:
            yield Condition(kind, title, axis, severity, f"{severity:g}{unit}"), change(severity)
