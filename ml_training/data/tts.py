"""Synthetic speech: the ten digits as espeak-ng says them, in many voices.

It stands in for recordings where none can be had. A model trained on it is a demonstration, not a
recogniser of people.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from digit_detector import audio
from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, pad_or_trim, trim_silence
from digit_detector.errors import DataError, MissingExtraError
from digit_detector.labels import LABELS
from ml_training.data import espeak_worker, feature_cache
from ml_training.data.corpus import Corpus
from ml_training.data.feature_cache import Block, Key
from ml_training.results import Floats, Ints

NAME = "synthetic speech (espeak-ng)"

ACCENTS = ("en-us", "en", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
# espeak-ng's speaker variants less its robots, whispers and echoes, and less those that can hardly
# be told from another one here; women, men and children by turns.
VARIANTS = (
    "f1", "m1", "f3", "m3", "Annie", "m7", "linda", "Michael", "f5", "Alex", "belinda", "m2", "steph", "Mario",
    "f2", "m4", "anika", "paul", "grandma", "grandpa", "Andrea", "Gene", "f4", "Reed", "aunty", "m5", "shelby", "rob",
    "Alicia", "max", "steph2", "Mike", "m6", "klatt", "Andy", "quincy", "m8", "michel", "sandro", "travis", "antonio",
    "adam", "Nguyen", "pablo", "john", "edward2", "marcelo", "klatt3", "Hugo", "norbert", "pedro", "robert", "david",
    "iven4", "victor", "mike2", "boris", "klatt4", "gustave", "Denis", "ed", "caleb", "zac", "Lee", "iven2", "ian",
)  # fmt: skip
# Neighbours differ in both, so that any first few voices are as different as they can be.
VOICES = tuple(
    f"{ACCENTS[(place + turn) % len(ACCENTS)]}+{variant}"
    for turn in range(len(ACCENTS))
    for place, variant in enumerate(VARIANTS)
)

DEFAULT_VOICES = 84
DEFAULT_TAKES = 3
RATES = (110, 240)  # words a minute
PITCHES = (25, 75)  # 50 is the voice's own
RANGES = (20, 80)  # how much the pitch moves
ENDINGS = ("", ".", "!", "?")  # each ends on another melody

_TIMEOUT = 300  # seconds; three thousand clips take about five
_SILENCE_DB = -40.0


class _Request(NamedTuple):
    voice: str
    text: str
    rate: int
    pitch: int
    pitch_range: int


def synthesise(seed: int = 0, voices: int = DEFAULT_VOICES, takes: int = DEFAULT_TAKES) -> Corpus:
    """`takes` recordings of each digit by each of the first `voices` of VOICES: N = 10 * voices * takes clips.

    Each take has a speed, pitch, liveliness and melody of its own, drawn from `seed`; the same
    arguments give the same samples. Raises MissingExtraError without espeakng_loader, DataError
    when espeak-ng does not run here.
    """
    if not (1 <= voices <= len(VOICES) and takes >= 1):
        raise ValueError(f"got {voices} voices, {takes} takes: expected 1 to {len(VOICES)} voices and 1 or more takes")
    rng = np.random.default_rng(seed)
    cases = [(digit, voice, take) for voice in VOICES[:voices] for digit in range(10) for take in range(takes)]
    requests = [_Request(voice, LABELS[digit] + rng.choice(ENDINGS), *_manner(rng)) for digit, voice, _ in cases]
    spoken = [_to_clip(samples) for samples, _ in _speak(requests, seed)]
    waveforms = np.stack([pad_or_trim(samples) for samples in spoken])
    return Corpus(
        name=NAME,
        waveforms=waveforms,
        lengths=np.array([min(len(samples), NUM_SAMPLES) for samples in spoken], dtype=np.int64),
        labels=np.array([digit for digit, _, _ in cases], dtype=np.int64),
        speakers=tuple(f"espeak-{voice}" for _, voice, _ in cases),
        indices=np.array([take for _, _, take in cases], dtype=np.int64),
        files=tuple(f"{digit}_espeak-{voice}_{take}.wav" for digit, voice, take in cases),
        data_hash=hashlib.sha256(waveforms.tobytes()).hexdigest(),
        synthetic=True,
        official_split=False,
    )


def cached_digits(seed: int = 0, voices: int = DEFAULT_VOICES, takes: int = DEFAULT_TAKES) -> Corpus:
    """What `synthesise` returns, from the cache in use; raises what it raises where it is not there."""
    key = {"seed": seed, "voices": voices, "takes": takes}
    columns = ("waveforms", "lengths", "labels", "indices")
    arrays, (name, speakers, files, data_hash) = cached_clips(
        "voices", key, lambda: synthesise(seed, voices, takes), columns
    )
    return Corpus(
        name=name, speakers=tuple(speakers), files=tuple(files), data_hash=data_hash, synthetic=True,
        official_split=False, **arrays,
    )  # fmt: skip


def cached_clips(
    kind: str, key: Key, compute: Callable[[], Any], columns: Sequence[str]
) -> tuple[dict[str, Any], tuple[str, list[str], list[str], str]]:
    """The named arrays of synthesised clips, and their name, speakers, files and data hash, from the cache in use."""

    def blocks() -> Iterator[Block]:
        clips = compute()
        described = feature_cache.encode_json([clips.name, clips.speakers, clips.files, clips.data_hash])
        yield {**{column: getattr(clips, column) for column in columns}, "names": described}

    arrays = feature_cache.get_or_compute(kind, lambda: {**key, **_engine_versions()}, blocks)
    found = {column: arrays[column] if column == "waveforms" else np.array(arrays[column]) for column in columns}
    return found, feature_cache.decode_json(arrays["names"])


def _engine_versions() -> dict[str, str]:
    """What decides how synthetic speech sounds besides its settings."""
    try:
        versions = {name: metadata.version(name) for name in ("numpy", "soxr", "espeakng-loader")}
    except metadata.PackageNotFoundError:  # synthesis raises an error that names it
        versions = {}
    return {**versions, "engine": feature_cache.source_hash(audio, __name__, espeak_worker)}


def say(texts: Sequence[tuple[str, str]], seed: int) -> list[Floats]:
    """What each (voice of VOICES, text) sounds like, (T,) at 8 kHz without silence around; `seed` draws the manners.

    Raises what `synthesise` raises.
    """
    rng = np.random.default_rng(seed)
    requests = [_Request(voice, text + rng.choice(ENDINGS), *_manner(rng)) for voice, text in texts]
    return [_to_clip(samples) for samples, _ in _speak(requests, seed)]


def say_in_one(texts: Sequence[tuple[str, str]], seed: int) -> list[tuple[Floats, Ints]]:
    """What each (voice, text) sounds like, (T,) at 8 kHz, and at which of these samples its words begin.

    Words run together as they do in speech. Raises what `synthesise` raises.
    """
    import soxr

    rng = np.random.default_rng(seed)
    requests = [_Request(voice, text, *_manner(rng)) for voice, text in texts]
    rates = espeak_worker.SAMPLE_RATE, SAMPLE_RATE
    return [
        (soxr.resample(samples, *rates, quality="HQ"), words * rates[1] // rates[0])
        for samples, words in _speak(requests, seed)
    ]


def _manner(rng: np.random.Generator) -> tuple[int, int, int]:
    rate, pitch, pitch_range = (int(rng.integers(*limits, endpoint=True)) for limits in (RATES, PITCHES, RANGES))
    return rate, pitch, pitch_range


def _speak(requests: list[_Request], seed: int) -> list[tuple[Floats, Ints]]:
    """Each request spoken, (T,) at espeak-ng's rate, and where its words begin."""
    try:
        import espeakng_loader
    except ImportError:
        raise MissingExtraError("synthetic speech", "train") from None
    library, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    # -I -S: the worker needs no site packages, and no environment variable should change what it says.
    command = [sys.executable, "-I", "-S", espeak_worker.__file__, library, data, str(seed)]
    try:
        done = subprocess.run(command, input=json.dumps(requests).encode(), capture_output=True, timeout=_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"speech synthesis did not run: {error}; use recordings instead (--data_dir)") from error
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise DataError(f"speech synthesis failed: {reason}; use recordings instead (--data_dir)")
    clips: list[tuple[Floats, Ints]] = []
    place = 0
    for _ in requests:
        count = int.from_bytes(done.stdout[place : place + 4], "little")
        samples = np.frombuffer(done.stdout, "<i2", count, place + 4).astype(np.float32) / np.float32(32768)
        place += 4 + 2 * count
        words = int.from_bytes(done.stdout[place : place + 4], "little")
        begins = np.frombuffer(done.stdout, "<i4", words, place + 4).astype(np.int64)
        place += 4 + 4 * words
        clips.append((samples, begins))
    return clips


def _to_clip(samples: Floats) -> Floats:
    """Samples at espeak-ng's rate -> (T,) at 8 kHz without the silence around the word."""
    import soxr

    return trim_silence(soxr.resample(samples, espeak_worker.SAMPLE_RATE, SAMPLE_RATE, quality="HQ"), _SILENCE_DB)
