"""Synthetic speech: words as espeak-ng says them, in many voices, and such voices mixed into recordings.

A model trained on it alone is a demonstration, not fit for real voices.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from typing import NamedTuple

import numpy as np

from digit_detector import audio
from digit_detector.audio import SAMPLE_RATE, trim_silence
from digit_detector.errors import DataError, DigitError, MissingExtraError
from digit_detector.labels import LABELS
from ml_training.config import TrainConfig
from ml_training.data import corpus as corpora
from ml_training.data import espeak_worker, feature_cache
from ml_training.data.corpus import Corpus, append_clips, make_corpus, select_clips
from ml_training.data.feature_cache import Block, Key
from ml_training.data.fsdd import TREE_HASH
from ml_training.data.splits import Split
from ml_training.results import Floats, Ints

NAME = "synthetic speech (espeak-ng)"
RATIO_WITH_FSDD = 0.25  # of the training clips; recordings of one's own may not be in English

ACCENTS = ("en-us", "en", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
# espeak-ng's speaker variants without robots, whispers, echoes and those that hardly differ from another one; women,
# men and children by turns.
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
RANGES = (20, 80)  # of the pitch's movement
ENDINGS = ("", ".", "!", "?")  # each has another melody

_TIMEOUT = 300  # seconds; three thousand clips take about five
_SILENCE_DB = -40.0


class _Request(NamedTuple):
    voice: str
    text: str
    rate: int
    pitch: int
    pitch_range: int


def synthesize_digits(seed: int = 0, voices: int = DEFAULT_VOICES, takes: int = DEFAULT_TAKES) -> Corpus:
    """`takes` clips of each digit by each of the first `voices` of VOICES: N = 10 * voices * takes clips.

    Each take has a rate, pitch, pitch range and ending drawn from `seed`; the same arguments give the same samples.
    Raises MissingExtraError without espeakng_loader, DataError when espeak-ng does not run here.
    """
    if not (1 <= voices <= len(VOICES) and takes >= 1):
        raise ValueError(f"got {voices} voices, {takes} takes: expected 1 to {len(VOICES)} voices and 1 or more takes")
    rng = np.random.default_rng(seed)
    cases = [(digit, voice, take) for voice in VOICES[:voices] for digit in range(10) for take in range(takes)]
    requests = [_Request(voice, LABELS[digit] + rng.choice(ENDINGS), *_draw_manner(rng)) for digit, voice, _ in cases]
    clips = [_to_clip(samples) for samples, _ in _speak(requests, seed)]
    digits, names, numbers = zip(*cases, strict=True)
    files = [f"{digit}_espeak-{voice}_{take}.wav" for digit, voice, take in cases]
    return make_corpus(NAME, clips, digits, [f"espeak-{voice}" for voice in names], numbers, files, synthetic=True)


def cached_digits(seed: int = 0, voices: int = DEFAULT_VOICES, takes: int = DEFAULT_TAKES) -> Corpus:
    """`synthesize_digits` from the cache in use."""
    key = {"seed": seed, "voices": voices, "takes": takes}
    return cached_corpus("voices", key, lambda: synthesize_digits(seed, voices, takes))


def cached_corpus(kind: str, key: Key, compute: Callable[[], Corpus]) -> Corpus:
    """A corpus of synthetic speech, from the cache in use."""

    def blocks() -> Iterator[Block]:
        made = compute()
        names = feature_cache.encode_json([made.name, made.speakers, made.files, made.data_hash])
        yield {**{column: getattr(made, column) for column in ("waveforms", *columns)}, "names": names}

    columns = ("lengths", "labels", "indices")
    arrays = feature_cache.get_or_compute(kind, lambda: {**key, **_engine_versions()}, blocks)
    name, speakers, files, data_hash = feature_cache.decode_json(arrays["names"])
    lengths, labels, indices = (np.array(arrays[column]) for column in columns)
    return Corpus(
        name=name, waveforms=arrays["waveforms"], lengths=lengths, labels=labels, speakers=tuple(speakers),
        indices=indices, files=tuple(files), data_hash=data_hash, synthetic=True, official_split=False,
    )  # fmt: skip


def _engine_versions() -> dict[str, str]:
    """What decides how synthetic speech sounds besides its settings."""
    try:
        versions = {name: metadata.version(name) for name in ("numpy", "soxr", "espeakng-loader")}
    except metadata.PackageNotFoundError:  # synthesis raises an error that names it
        versions = {}
    return {**versions, "engine": feature_cache.source_hash(audio, __name__, espeak_worker, corpora)}


def synthesize_words(texts: Sequence[tuple[str, str]], seed: int) -> list[Floats]:
    """Each (voice of VOICES, text) as a clip (T,) at 8 kHz without silence around; `seed` draws rates and pitches.

    Raises what `synthesize_digits` raises.
    """
    rng = np.random.default_rng(seed)
    requests = [_Request(voice, text + rng.choice(ENDINGS), *_draw_manner(rng)) for voice, text in texts]
    return [_to_clip(samples) for samples, _ in _speak(requests, seed)]


def synthesize_utterances(texts: Sequence[tuple[str, str]], seed: int) -> list[tuple[Floats, Ints]]:
    """Each (voice, text) as a clip (T,) at 8 kHz of connected speech, and the samples at which its words begin.

    Raises what `synthesize_digits` raises.
    """
    import soxr

    rng = np.random.default_rng(seed)
    requests = [_Request(voice, text, *_draw_manner(rng)) for voice, text in texts]
    rates = espeak_worker.SAMPLE_RATE, SAMPLE_RATE
    return [
        (soxr.resample(samples, *rates, quality="HQ"), words * rates[1] // rates[0])
        for samples, words in _speak(requests, seed)
    ]


say = synthesize_words  # its earlier name


def _draw_manner(rng: np.random.Generator) -> tuple[int, int, int]:
    rate, pitch, pitch_range = (int(rng.integers(*limits, endpoint=True)) for limits in (RATES, PITCHES, RANGES))
    return rate, pitch, pitch_range


def _speak(requests: list[_Request], seed: int) -> list[tuple[Floats, Ints]]:
    """The samples (T,) of each request at espeak-ng's rate, and where its words begin."""
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
        count, words = (int(n) for n in np.frombuffer(done.stdout, "<u4", 2, place))
        samples = np.frombuffer(done.stdout, "<i2", count, place + 8).astype(np.float32) / np.float32(32768)
        begins = np.frombuffer(done.stdout, "<i4", words, place + 8 + 2 * count).astype(np.int64)
        place += 8 + 2 * count + 4 * words
        clips.append((samples, begins))
    return clips


def _to_clip(samples: Floats) -> Floats:
    """Samples at espeak-ng's rate -> (T,) at 8 kHz without the silence around the word."""
    import soxr

    return trim_silence(soxr.resample(samples, espeak_worker.SAMPLE_RATE, SAMPLE_RATE, quality="HQ"), _SILENCE_DB)


# --- voices among recordings ---------------------------------------------------------------------


def resolve_synthetic_ratio(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """`config` with its synthetic_ratio: by default RATIO_WITH_FSDD with FSDD, whose six men gain from other voices."""
    if config.synthetic_ratio is not None:
        return config
    is_fsdd = not corpus.synthetic and (config.dataset == "fsdd" or TREE_HASH in corpus.recordings)
    return replace(config, synthetic_ratio=RATIO_WITH_FSDD if is_fsdd else 0.0)


def mix_synthetic_voices(
    corpus: Corpus, split: Split, config: TrainConfig, report: Callable[[str], None]
) -> tuple[Corpus, Split]:
    """Append synthetic clips until they are `config.synthetic_ratio` of the training part, and of no other part.

    They are spread evenly over digits and `config.synthetic_voices` voices; `config.seed` decides them, name and data
    hash of the corpus include them. A synthetic corpus gets none, which is reported. Raises DataError where there is
    no speech synthesis.
    """
    share = config.synthetic_ratio or 0.0
    count = round(len(split.train) * share / (1.0 - share))
    if not count:
        return corpus, split
    if corpus.synthetic:
        report("synthetic_ratio is for recordings: these clips are synthetic already, none are added")
        return corpus, split
    takes = -(-count // (10 * config.synthetic_voices))
    try:
        digits = cached_digits(config.seed, config.synthetic_voices, takes)
    except DigitError as error:
        raise DataError(f"{error}; or train on recordings alone: --synthetic_ratio 0") from error
    digest = hashlib.sha256(f"{corpus.data_hash}\n{digits.data_hash}\n{count}\n".encode())
    name = f"{corpus.name} with {count} clips of synthetic speech"
    mixed = append_clips(corpus, select_clips(digits, _spread(digits, count)), name=name, data_hash=digest.hexdigest())
    added = np.arange(len(corpus), len(mixed), dtype=np.int64)
    return mixed, replace(split, train=np.concatenate([split.train, added]))


def _spread(digits: Corpus, count: int) -> Ints:
    """Ascending positions of `count` clips, as many of each digit and of each voice, to within one or so."""
    voices = np.unique(np.asarray(digits.speakers), return_inverse=True)[1]
    # First takes before second ones; within a take diagonally, so that any first few differ in voice and digit.
    order = np.lexsort([digits.labels, (voices + digits.labels) % len(set(digits.speakers)), digits.indices])
    return np.sort(order[:count]).astype(np.int64)
