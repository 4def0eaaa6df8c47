"""Procedural background noise, for those who have no recordings of any.

Five kinds, drawn from one seed: broadband (rain, wind, sea), impulsive (fire, dishes, clocks), harmonic (engines),
tonal (animals, sirens, cries) and babble (voices). They come and go, ring and have a pitch, unlike coloured noise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio import SAMPLE_RATE
from ml_training.results import Floats

SECONDS = 3  # of one sound
EACH = 40  # sounds of a kind
SAMPLES = SECONDS * SAMPLE_RATE
_BINS = SAMPLES // 2 + 1
_HZ = np.fft.rfftfreq(SAMPLES, 1 / SAMPLE_RATE)
_TIME = np.arange(SAMPLES) / SAMPLE_RATE

Sound = NDArray[np.float64]
Rng = np.random.Generator


@lru_cache(maxsize=1)
def generated_sounds(seed: int = 0) -> tuple[tuple[str, Floats], ...]:
    """(kind, samples) of every sound: (SAMPLES,) each, at the rate of the models, of unit power."""
    rng = np.random.default_rng(seed)
    sounds = []
    for kind, make in KINDS.items():
        for _ in range(EACH):
            sound = make(rng)
            sound -= sound.mean()
            sounds.append((kind, (sound / np.sqrt(np.square(sound).mean() + 1e-20)).astype(np.float32)))
    return tuple(sounds)


def _broadband(rng: Rng) -> Sound:
    """Noise of a random spectrum whose level wanders."""
    depth = rng.uniform(0.0, 10.0)
    return _noise(rng, _spectrum(rng)) * _wandering(rng, rng.uniform(0.3, 6.0), depth)


def _impulsive(rng: Rng) -> Sound:
    """Strokes, at random or like a clock, that ring at a few frequencies."""
    rate = np.exp(rng.uniform(np.log(1.0), np.log(200.0)))  # a second
    if rate < 15.0 and rng.random() < 0.5:
        places = np.arange(rng.uniform(0, 1 / rate), SECONDS, 1 / rate)
    else:
        places = rng.uniform(0, SECONDS, rng.poisson(rate * SECONDS) + 1)
    strokes = np.zeros(SAMPLES)
    strengths = np.exp(rng.normal(0.0, rng.uniform(0.0, 1.5), len(places)))
    np.add.at(strokes, (places * SAMPLE_RATE).astype(int), strengths * rng.choice([-1.0, 1.0], len(places)))
    ringing = np.zeros(SAMPLES)
    for _ in range(rng.integers(1, 5)):
        hz, decay = rng.uniform(200.0, 3800.0), np.exp(rng.uniform(np.log(0.002), np.log(0.15)))
        ringing += rng.uniform(0.2, 1.0) * np.exp(-_TIME / decay) * np.sin(2 * np.pi * hz * _TIME)
    rung = _filtered(strokes, np.fft.rfft(ringing) * _spectrum(rng))
    return np.asarray(rung + _noise(rng, _spectrum(rng)) * rung.std() * rng.uniform(0.0, 0.3))


def _harmonic(rng: Rng) -> Sound:
    """Pulses 10 to 150 times a second and noise that swells with each."""
    rate = np.exp(rng.uniform(np.log(10.0), np.log(150.0))) * _glide(rng, 0.1)
    phase = np.cumsum(rate) / SAMPLE_RATE
    sharpness = np.exp(rng.uniform(np.log(2.0), np.log(30.0)))
    pulses = np.exp(sharpness * (np.cos(2 * np.pi * phase) - 1.0))
    hum = _filtered(pulses, _spectrum(rng))
    puffs = _noise(rng, _spectrum(rng)) * pulses
    return _mixed(rng, hum, puffs) * _wandering(rng, 2.0, rng.uniform(0.0, 6.0))


def _tonal(rng: Rng) -> Sound:
    """Cries of a gliding pitch, with pauses."""
    pitch = np.exp(rng.uniform(np.log(150.0), np.log(1500.0))) * _glide(rng, 0.5)
    pitch = pitch * (1.0 + rng.uniform(0.0, 0.04) * np.sin(2 * np.pi * rng.uniform(3.0, 9.0) * _TIME))
    cries = _filtered(_harmonics(rng, pitch), _spectrum(rng)) * _bursts(rng, 0.08, 0.9)
    return np.asarray(cries + _noise(rng, _spectrum(rng)) * cries.std() * rng.uniform(0.0, 0.3))


def _babble(rng: Rng) -> Sound:
    """Several buzzing voices with syllables, through one spectrum."""
    voices = np.zeros(SAMPLES)
    for _ in range(rng.integers(2, 6)):
        pitch = np.exp(rng.uniform(np.log(80.0), np.log(280.0))) * _glide(rng, 0.2)
        buzz = _harmonics(rng, pitch)
        vowels = sum(_filtered(buzz, _formants(rng)) * _bursts(rng, 0.06, 0.35) for _ in range(3))
        hisses = _noise(rng, _spectrum(rng, rise=True)) * _bursts(rng, 0.04, 0.15)
        voices += vowels + hisses * np.std(vowels) * rng.uniform(0.2, 1.0)
    return voices


KINDS: dict[str, Callable[[Rng], Sound]] = {
    "broadband": _broadband, "impulsive": _impulsive, "harmonic": _harmonic, "tonal": _tonal, "babble": _babble,
}  # fmt: skip


def _noise(rng: Rng, gains: Sound) -> Sound:
    """Gaussian noise of a spectrum, unit power."""
    noise = _filtered(rng.standard_normal(SAMPLES), gains)
    return np.asarray(noise / (noise.std() + 1e-12))


def _filtered(sound: Sound, gains: Sound | NDArray[np.complex128]) -> Sound:
    return np.asarray(np.fft.irfft(np.fft.rfft(sound) * gains, SAMPLES))


def _spectrum(rng: Rng, rise: bool = False) -> Sound:
    """(bins,) gains: a slope between white and brown, and a random 10-point equaliser of up to 15 dB either way."""
    slope = rng.uniform(-1.0, -0.3) if rise else rng.uniform(0.0, 1.0)
    knots = rng.uniform(-15.0, 15.0, 10)
    hills = np.interp(np.linspace(0.0, 9.0, _BINS), np.arange(10), knots)
    gains = np.maximum(_HZ, 30.0) ** -slope * 10 ** (hills / 20)
    return np.where(_HZ < 20.0, 0.0, gains)


def _formants(rng: Rng) -> Sound:
    """(bins,) gains with the resonances of a vowel."""
    gains = np.full(_BINS, 0.003)
    for low, high in ((250.0, 800.0), (800.0, 2300.0), (2300.0, 3300.0)):
        centre, width = rng.uniform(low, high), rng.uniform(60.0, 200.0)
        gains += rng.uniform(0.2, 1.0) / (1.0 + ((_HZ - centre) / width) ** 2)
    return np.where(_HZ < 60.0, 0.0, gains)


def _harmonics(rng: Rng, pitch: Sound) -> Sound:
    """A buzz of a pitch (Hz, for every sample) whose overtones fall off, none beyond half the sample rate."""
    overtones = np.arange(1, min(24, int(SAMPLE_RATE / 2 / pitch.max())) + 1)[:, None]
    period = (overtones ** -rng.uniform(0.3, 1.5) * np.sin(2 * np.pi * overtones * np.arange(1024) / 1024)).sum(axis=0)
    phase = np.cumsum(pitch) / SAMPLE_RATE + rng.random()
    buzz: Sound = period[(phase % 1.0 * 1024).astype(int)]
    return buzz


def _glide(rng: Rng, octaves: float) -> Sound:
    """(samples,) factors of a pitch that wanders so far up and down, a few times a second."""
    return np.asarray(2.0 ** (octaves * _curve(rng, rng.uniform(1.0, 6.0))))


def _wandering(rng: Rng, hz: float, depth_db: float) -> Sound:
    """(samples,) gains that wander `depth_db` up and down about `hz` times a second."""
    return np.asarray(10 ** (depth_db / 20 * _curve(rng, hz)))


def _curve(rng: Rng, hz: float) -> Sound:
    """(samples,) smooth values from -1 to 1."""
    knots = rng.uniform(-1.0, 1.0, max(2, int(hz * SECONDS) + 2))
    place = np.linspace(0, len(knots) - 1.001, SAMPLES)
    i = place.astype(int)
    t = 0.5 - 0.5 * np.cos(np.pi * (place - i))
    return np.asarray(knots[i] * (1 - t) + knots[i + 1] * t)


def _bursts(rng: Rng, shortest: float, longest: float) -> Sound:
    """(samples,) gains of bursts between `shortest` and `longest` seconds long, with pauses as long."""
    gains, now = np.zeros(SAMPLES), -rng.uniform(0.0, longest)
    while now < SECONDS:
        length = rng.uniform(shortest, longest)
        inside = (now <= _TIME) & (now + length > _TIME)
        gains[inside] = rng.uniform(0.3, 1.0) * np.sin(np.pi * (_TIME[inside] - now) / length) ** rng.uniform(0.3, 1.5)
        now += length * rng.uniform(1.0, 2.0)
    return gains


def _mixed(rng: Rng, one: Sound, other: Sound) -> Sound:
    share = rng.random()
    return np.asarray(share * one / (one.std() + 1e-12) + (1 - share) * other / (other.std() + 1e-12))
