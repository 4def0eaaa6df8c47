"""Perturbations of whole recordings at 8 kHz: tempo, lost packets, codecs, noise, level, offset, echo, a late start."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import ConfigError, DataError, did_you_mean
from digit_detector.evaluation.streams import find_edges, make_noise_track

PACKET = SAMPLE_RATE // 50  # samples of 20 ms
ECHO_SECONDS = 0.3
CODECS = {  # name -> container and encoding of libsndfile
    "mu_law": ("WAV", "ULAW"), "a_law": ("WAV", "ALAW"), "gsm": ("WAV", "GSM610"), "g721": ("AU", "G721_32"),
    "adpcm": ("WAV", "IMA_ADPCM"), "mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"),
}  # fmt: skip
RANGES = {  # kind -> least and largest value
    "tempo": (0.5, 2.0),  # times as fast, at the same pitch
    "packet_loss": (0.0, 1.0),  # share of packets of 20 ms that are replaced by zeros
    "snr": (-20.0, 60.0),  # dB, over the speech
    "level": (-90.0, 0.0),  # dBFS of the peak, in 16 bits
    "dc_offset": (-1.0, 1.0),  # of full scale
    "echo": (-60.0, 0.0),  # dB, 300 ms later
    "missing_start": (0.0, 10.0),  # seconds
}
_FRAME, _HOP, _SEARCH = (SAMPLE_RATE * ms // 1000 for ms in (20, 10, 6))  # samples, of WSOLA


@dataclass(frozen=True)
class Perturbation:
    """A kind of RANGES with its value, `codec` with a name of CODECS, or `clean`."""

    kind: str = "clean"
    value: float | str = ""

    @property
    def name(self) -> str:
        """As it is typed, e.g. tempo=1.5."""
        return (
            self.kind if self == CLEAN else f"{self.kind}={self.value if self.kind == 'codec' else f'{self.value:g}'}"
        )

    def apply(self, samples: Floats, rng: np.random.Generator, noises: Sequence[Floats] = ()) -> Floats:
        """The (T,) samples perturbed; `noises` are recordings for `snr`. Raises DataError without any."""
        if self == CLEAN:
            return samples
        if self.kind == "codec":
            return transcode(samples, str(self.value))
        value = float(self.value)
        if self.kind == "tempo":
            return change_tempo(samples, value)
        if self.kind == "packet_loss":
            return lose_packets(samples, value, rng)
        if self.kind == "snr":
            return add_noise(samples, noises, value, rng)
        if self.kind == "level":
            return set_level(samples, value)
        if self.kind == "dc_offset":
            return clip(samples + np.float32(value))
        if self.kind == "echo":
            return add_echo(samples, value)
        return samples[round(value * SAMPLE_RATE) :]

    def map_time(self, seconds: float) -> float:
        """Where a time of the original is in the perturbed recording."""
        if self.kind == "tempo":
            return seconds / float(self.value)
        return max(0.0, seconds - float(self.value)) if self.kind == "missing_start" else seconds


CLEAN = Perturbation()


def parse_perturbation(text: str) -> Perturbation:
    """`tempo=1.5` as a Perturbation. Raises ConfigError that says what is known."""
    kind, _, value = text.partition("=")
    if kind == "codec" and value in CODECS:
        return Perturbation(kind, value)
    if kind == "codec":
        raise ConfigError([f"codec: expected one of {', '.join(CODECS)}, got {value!r}"], "perturb")
    if kind not in RANGES:
        known = (*RANGES, "codec")
        raise ConfigError(
            [f"expected KIND=VALUE of {', '.join(known)}, got {text!r}{did_you_mean(kind, known)}"], "perturb"
        )
    least, most = RANGES[kind]
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise ConfigError([f"{kind}: expected a number from {least:g} to {most:g}, got {value!r}"], "perturb")
    return Perturbation(kind, number)


def clip(samples: Floats) -> Floats:
    """The samples limited to full scale."""
    clipped: Floats = np.clip(samples, -1.0, 1.0)
    return clipped


def change_tempo(samples: Floats, tempo: float) -> Floats:
    """(T,) -> (T / tempo,) samples at the same pitch.

    WSOLA (W. Verhelst and M. Roelands, 1993, ICASSP): each frame is taken where it continues the one before best,
    at most 6 ms from where the tempo puts it.
    """
    window = np.hanning(_FRAME + 1)[:-1].astype(np.float32)  # shifted by a hop, it adds up to 1
    size = round(len(samples) / tempo)
    padded = np.pad(samples, (_SEARCH + _HOP, _SEARCH + 2 * _FRAME + math.ceil(_HOP * tempo)))
    energy = np.concatenate([[0.0], np.cumsum(np.square(padded), dtype=np.float64)])
    changed = np.zeros(size + 2 * _FRAME, dtype=np.float32)
    natural = padded[_SEARCH : _SEARCH + _FRAME]
    for first in range(0, size + _HOP, _HOP):  # of a frame, in `changed` a hop earlier
        at = min(int(first * tempo), len(samples))
        power = energy[at + _FRAME : at + _FRAME + 2 * _SEARCH + 1] - energy[at : at + 2 * _SEARCH + 1]
        similarity = np.correlate(padded[at : at + _FRAME + 2 * _SEARCH], natural, "valid")
        at += int((similarity / np.sqrt(np.maximum(power, 1e-6))).argmax())
        changed[first : first + _FRAME] += window * padded[at : at + _FRAME]
        natural = padded[at + _HOP : at + _HOP + _FRAME]
    return changed[_HOP : _HOP + size]


def lose_packets(samples: Floats, share: float, rng: np.random.Generator) -> Floats:
    """(T,) samples of which a random share of packets is replaced by zeros."""
    lost = np.repeat(rng.random(-(-len(samples) // PACKET)) < share, PACKET)[: len(samples)]
    return np.where(lost, np.float32(0.0), samples)


def transcode(samples: Floats, codec: str) -> Floats:
    """(T,) samples after encoding and decoding with a codec of CODECS. Raises DataError if libsndfile lacks it."""
    import soundfile

    container, encoding = CODECS[codec]
    file = io.BytesIO()
    try:
        soundfile.write(file, clip(samples), SAMPLE_RATE, format=container, subtype=encoding)
        file.seek(0)
        decoded: Floats = soundfile.read(file, dtype="float32")[0]
    except (soundfile.LibsndfileError, ValueError) as error:
        raise DataError(f"this build of libsndfile has no {codec} ({error}): leave codec={codec} out") from error
    return np.pad(decoded, (0, max(0, len(samples) - len(decoded))))[: len(samples)]


def add_noise(samples: Floats, noises: Sequence[Floats], snr_db: float, rng: np.random.Generator) -> Floats:
    """(T,) samples with random recordings of noise, `snr_db` below the power between the edges of the speech."""
    if not noises:
        raise DataError("snr needs recordings of noise, and there are none: name a folder with --noise_dir")
    first, last = find_edges(samples)
    noise = make_noise_track(noises, len(samples) / SAMPLE_RATE + 1.0, rng)[: len(samples)]
    speech = np.square(samples[first:last], dtype=np.float64).mean()
    power = np.square(noise[first:last], dtype=np.float64).mean()
    return samples + noise * np.float32(np.sqrt(speech / max(power, 1e-12) * 10 ** (-snr_db / 10)))


def set_level(samples: Floats, peak_dbfs: float) -> Floats:
    """(T,) samples scaled to a peak in dBFS and rounded to 16 bits."""
    scaled = samples * np.float32(10 ** (peak_dbfs / 20) / max(float(np.abs(samples).max(initial=0.0)), 1e-9))
    rounded: Floats = (np.round(scaled * 32767) / 32767).astype(np.float32)
    return rounded


def add_echo(samples: Floats, gain_db: float) -> Floats:
    """(T + 2400,) samples and their echo."""
    delay = round(ECHO_SECONDS * SAMPLE_RATE)
    echo = np.pad(samples, (delay, 0)) * np.float32(10 ** (gain_db / 20))
    return np.pad(samples, (0, delay)) + echo
