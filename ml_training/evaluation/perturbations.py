"""What happens to clips on their way to a model, by kind and severity: numpy, seeded, whole batches at once.

The word of a clip is its frames of 20 ms whose power is at most 30 dB below that of the loudest frame. Signal-to-noise
ratios compare clip and noise over these frames alone, so that the silence around a word does not count for it.

What chance decides (noise, rooms) is drawn once for each kind from (seed, kind) and is the same at every severity and
for every model: the points of a curve differ in severity and in nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio import AUDIO_SUFFIXES, NUM_SAMPLES, SAMPLE_RATE, decode_sound
from digit_detector.errors import AudioError, DataError
from ml_training.results import Floats

FRAME = SAMPLE_RATE // 50  # 20 ms
WORD_DB = 30.0  # a frame further below the loudest is not of the word
SNRS = (20.0, 10.0, 5.0, 0.0, -5.0)  # dB
BANDS = ((100, 3900), (300, 3400), (500, 2500), (700, 2000))  # Hz; the second is the telephone's
TELEPHONE = 1
CLIPPING = (6.0, 12.0, 18.0, 24.0, 30.0)  # dB below the peak at which samples are cut off
RT60 = (0.1, 0.2, 0.4, 0.8, 1.2)  # s
SPEEDS = (0.8, 0.87, 0.93, 1.0, 1.08, 1.16, 1.25)
LEVELS = (0.0, -10.0, -20.0, -30.0, -40.0)  # dBFS of the peak
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the free part of the second
COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # power falls with this power of the frequency
LOWEST = 20.0  # Hz; coloured noise has nothing below
_TRIES = 8  # places in a recording, and recordings, looked at for one that sounds while the word does
_EDGE = 60.0  # Hz over which a band limit falls

Mask = NDArray[np.bool_]
Spectra = NDArray[np.complex64]


@dataclass(frozen=True)
class Condition:
    """One severity of one kind of change."""

    kind: str
    title: str
    axis: str
    severity: float | None  # None: clips as they are
    label: str


@dataclass(frozen=True)
class Recordings:
    """Background noises to mix in."""

    folder: str
    files: tuple[str, ...]
    samples: tuple[Floats, ...]  # each (T,), one second at least
    skipped: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder and the one it lies in, e.g. noise/train."""
        return "/".join(Path(self.folder).expanduser().resolve().parts[-2:])


# --- the word ------------------------------------------------------------------------------------


def word_frames(clips: Floats) -> Mask:
    """(N, 8000) -> (N, 50): which frames are of the word."""
    power = _frame_power(clips)
    loudest = power.max(axis=1, keepdims=True)
    found: Mask = (power >= loudest * 10 ** (-WORD_DB / 10)) & (loudest > 0)
    return found


def word_power(samples: Floats, frames: Mask) -> NDArray[np.float64]:
    """(N,) mean power of (N, 8000) samples over the given frames (N, 50)."""
    power = _frame_power(samples)
    chosen: NDArray[np.float64] = (power * frames).sum(axis=1) / np.maximum(frames.sum(axis=1), 1)
    return chosen


def _frame_power(samples: Floats) -> NDArray[np.float64]:
    frames = samples.reshape(len(samples), -1, FRAME)
    power: NDArray[np.float64] = np.square(frames).mean(axis=2, dtype=np.float64)
    return power


def word_span(clips: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the word of each clip begins and ends, in samples."""
    frames = word_frames(clips)
    first = frames.argmax(axis=1) * FRAME
    last = (frames.shape[1] - frames[:, ::-1].argmax(axis=1)) * FRAME
    return first.astype(np.int64), last.astype(np.int64)


# --- noise ---------------------------------------------------------------------------------------


def coloured_noise(clips: int, colour: str, rng: np.random.Generator) -> Floats:
    """(clips, 8000) Gaussian noise, white, pink (power like 1 / f) or brown (like 1 / f^2), nothing below 20 Hz."""
    frequencies = np.fft.rfftfreq(NUM_SAMPLES, 1 / SAMPLE_RATE)
    gains = np.where(frequencies < LOWEST, 0.0, np.maximum(frequencies, LOWEST) ** (-COLOURS[colour] / 2))
    spectra = np.fft.rfft(rng.standard_normal((clips, NUM_SAMPLES), dtype=np.float32), axis=1) * gains
    noise: Floats = np.fft.irfft(spectra, NUM_SAMPLES, axis=1).astype(np.float32)
    return noise


def load_recordings(folder: str | Path) -> Recordings:
    """Every recording of a folder and its sub-folders, in the order of names. Raises DataError where there is none."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: expected a folder of background recordings")
    files, samples, skipped = [], [], []
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file()):
        if path.name.startswith("."):  # as macOS leaves beside each recording
            continue
        name = path.relative_to(root).as_posix()
        try:
            sound = decode_sound(path)
        except AudioError as error:
            skipped.append(f"{name}: {error}")
            continue
        files.append(name)
        samples.append(np.tile(sound, math.ceil(NUM_SAMPLES / len(sound))) if len(sound) < NUM_SAMPLES else sound)
    if not files:
        raise DataError(f"{root} holds no background recording that can be read ({len(skipped)} that cannot)")
    return Recordings(str(folder), tuple(files), tuple(samples), tuple(skipped))


def draw_recordings(
    recordings: Recordings, clips: Floats, rng: np.random.Generator
) -> tuple[Floats, list[dict[str, Any]]]:
    """A second of a recording for each clip, (N, 8000), and which: file and first sample.

    A place is taken that is no more than 20 dB quieter during the word than the recording is on the whole, because a
    pause of a barking dog is no background at 0 dB: of eight places drawn the first such, else another recording is
    drawn, at most eight times; of the last the place that puts its loudest sample into the word, going on from its
    beginning where it ends. Noise that is silent during the word would have no level there, and any elsewhere.
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
            heard = word_power(pieces, np.broadcast_to(frames[row], (_TRIES, frames.shape[1])))
            loud = np.flatnonzero(heard >= 0.01 * float(np.square(sound).mean(dtype=np.float64)))
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
    """Clips with noise at a signal-to-noise ratio, powers taken over the frames of the word."""
    frames = word_frames(clips)
    wanted = word_power(clips, frames) * 10 ** (-snr_db / 10)
    there = word_power(noise, frames)
    gain = np.sqrt(wanted / np.maximum(there, 1e-20))
    mixed: Floats = clips + (gain[:, None] * noise).astype(np.float32)
    return mixed


# --- the other kinds -----------------------------------------------------------------------------


def band_limit(clips: Floats, low: float, high: float) -> Floats:
    """Nothing below `low` and above `high` Hz; each limit falls over 60 Hz, beyond the band."""
    length = NUM_SAMPLES + 1000  # so that nothing comes round from the other end
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    rise = np.clip((frequencies - (low - _EDGE)) / _EDGE, 0, 1)
    fall = np.clip((high + _EDGE - frequencies) / _EDGE, 0, 1)
    gains = np.sin(0.5 * np.pi * rise) ** 2 * np.sin(0.5 * np.pi * fall) ** 2
    filtered = np.fft.irfft(np.fft.rfft(clips, length, axis=1) * gains, length, axis=1)
    return np.ascontiguousarray(filtered[:, :NUM_SAMPLES], dtype=np.float32)


def cut_peaks(clips: Floats, below_peak_db: float) -> Floats:
    """Samples cut off at so many dB below each clip's peak."""
    limit = np.abs(clips).max(axis=1, keepdims=True) * np.float32(10 ** (-below_peak_db / 20))
    cut: Floats = np.clip(clips, -limit, limit)
    return cut


def room_noise(clips: int, rng: np.random.Generator) -> Floats:
    """(clips, 8000) what rooms are made of: Gaussian noise that decay is put on."""
    return rng.standard_normal((clips, NUM_SAMPLES), dtype=np.float32)


def reverberate(clips: Floats, rooms: Floats, rt60: float) -> Floats:
    """Clips in rooms of a reverberation time (s, until 60 dB down), direct sound and tail of equal energy.

    The impulse response is the direct sound and, from 2.5 ms on, noise that decays exponentially (Polack, 1988).
    """
    time = np.arange(NUM_SAMPLES) / SAMPLE_RATE
    tail = rooms * np.exp(-math.log(1e3) * time / rt60).astype(np.float32)
    tail[:, : SAMPLE_RATE // 400] = 0.0
    tail /= np.sqrt(np.square(tail).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    tail[:, 0] = 1.0
    size = 2 * NUM_SAMPLES
    wet = np.fft.irfft(np.fft.rfft(clips, size, axis=1) * np.fft.rfft(tail, size, axis=1), size, axis=1)
    return np.ascontiguousarray(wet[:, :NUM_SAMPLES], dtype=np.float32)


def change_speed(clips: Floats, speed: float) -> Floats:
    """Clips played so many times as fast, pitch included, about the middle of their second."""
    length = round(NUM_SAMPLES / speed)
    spectra = np.fft.rfft(clips, axis=1)
    played = np.fft.irfft(spectra[:, : length // 2 + 1], length, axis=1) * (length / NUM_SAMPLES)
    out = np.zeros_like(clips)
    if length >= NUM_SAMPLES:
        start = (length - NUM_SAMPLES) // 2
        out[:] = played[:, start : start + NUM_SAMPLES]
    else:
        start = (NUM_SAMPLES - length) // 2
        out[:, start : start + length] = played
    return out


def set_level(clips: Floats, peak_dbfs: float) -> Floats:
    """Clips whose peak lies at so many dB of full scale, rounded to 16 bits as a sound card would."""
    peak = np.maximum(np.abs(clips).max(axis=1, keepdims=True), np.float32(1e-9))
    scaled = clips / peak * np.float32(10 ** (peak_dbfs / 20))
    rounded: Floats = (np.round(scaled * 32767) / 32767).astype(np.float32)
    return rounded


def place_word(clips: Floats, place: float) -> Floats:
    """Clips turned so that their word begins at `place` (0 to 1) of what it leaves free in the second."""
    first, last = word_span(clips)
    wanted = np.round(place * (NUM_SAMPLES - (last - first))).astype(np.int64)
    columns = (np.arange(NUM_SAMPLES)[None, :] + (first - wanted)[:, None]) % NUM_SAMPLES
    return np.take_along_axis(clips, columns, axis=1)


# --- all of them ---------------------------------------------------------------------------------

CLEAN = Condition("clean", "Clips as they are", "", None, "clean")
Change = Callable[[float], Floats]


def perturbed(
    clips: Floats, seed: int, recordings: Recordings | None = None, drawn: list[dict[str, Any]] | None = None
) -> Iterator[tuple[Condition, Floats]]:
    """Every condition with the clips (N, 8000) in it, clean ones first.

    `drawn`, a list, receives which recording each clip got.
    """
    yield CLEAN, clips
    axis = "signal-to-noise ratio over the word, dB"
    for kind in COLOURS:
        noise = coloured_noise(len(clips), kind, _generator(seed, kind))
        yield from _severities(kind, f"{kind.capitalize()} noise", axis, SNRS, "{:g} dB", _mixer(clips, noise))
    if recordings is not None:
        noise, files = draw_recordings(recordings, clips, _generator(seed, "recorded"))
        if drawn is not None:
            drawn += files
        title = f"Recorded backgrounds ({recordings.name})"
        yield from _severities("recorded", title, axis, SNRS, "{:g} dB", _mixer(clips, noise))
    for number, (low, high) in enumerate(BANDS):
        title = "Band limits (300 to 3400 Hz is the telephone's)"
        name = f"{low}-{high} Hz"
        yield Condition("band", title, "band that is left", float(number), name), band_limit(clips, low, high)
    yield from _severities(
        "clipping", "Clipping", "limit below the peak, dB", CLIPPING, "{:g} dB", lambda s: cut_peaks(clips, s)
    )
    rooms = room_noise(len(clips), _generator(seed, "reverberation"))
    yield from _severities(
        "reverberation", "Reverberation, generated rooms", "reverberation time RT60, s", RT60, "{:g} s",
        lambda s: reverberate(clips, rooms, s),
    )  # fmt: skip
    yield from _severities("speed", "Speed", "times as fast", SPEEDS, "{:g}", lambda s: change_speed(clips, s))
    yield from _severities("level", "Level", "peak, dBFS, 16 bits", LEVELS, "{:g} dBFS", lambda s: set_level(clips, s))
    place = "where the word begins, share of the free part"
    yield from _severities("place", "A word anywhere in its second", place, PLACES, "{:g}",
                           lambda s: place_word(clips, s))  # fmt: skip


def _severities(
    kind: str, title: str, axis: str, severities: Sequence[float], form: str, change: Change
) -> Iterator[tuple[Condition, Floats]]:
    for severity in severities:
        yield Condition(kind, title, axis, severity, form.format(severity)), change(severity)


def _mixer(clips: Floats, noise: Floats) -> Change:
    return lambda snr_db: mix(clips, noise, snr_db)


def _generator(seed: int, kind: str) -> np.random.Generator:
    return np.random.default_rng([seed, *kind.encode()])
