"""Clips in which no digit is said: other words and pieces of sentences, recorded or synthesised."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from digit_detector.audio import NUM_SAMPLES, decode_sound, pad_or_trim, trim_silence
from digit_detector.errors import AudioError, DataError, DigitError
from ml_training.config import TrainConfig
from ml_training.data import feature_cache
from ml_training.data.checks import word_files
from ml_training.data.corpus import NOT_A_DIGIT, Corpus
from ml_training.data.digit_corruption import KINDS
from ml_training.data.mapped_arrays import concatenate
from ml_training.data.splits import Split
from ml_training.data.tts import VOICES, cached_clips, say
from ml_training.results import Floats, Ints

# Everyday words, and words near a digit; none that is spoken like one (to, for, won, ate), nor "oh", which many say
# for zero.
_WORDS = """
yes no up down left right on off stop go bed bird cat dog happy house marvin sheila tree wow backward forward
follow learn visual hello please thank okay cancel last begin end start open close call dial phone home work play
pause music louder quiet lights kitchen coffee water window morning evening today tomorrow monday sunday winter
summer money people mother father brother sister paper table garden river mountain
ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty
seventy eighty ninety hundred thousand million dozen first second third fourth fifth sixth seventh eighth ninth
none nun bun gone sun run fun wand once want dawn torn new true do shoe blue view through zoo flew who
free see he fee thirst thread throw knee key me we reef more door floor force fork fault fall saw law war
fine hive live dive fight fire finger by buy my sick sit fix kiss mix sink seek socks sacks switch sixes
heaven several lemon seldom ceiling even oven hate gate late aid ape hey day way rate wait cake great
line mine nice night sign dying pine knife time lime find hero zeal row narrow nearer arrow sorrow zone
the and but what when where why how this that there here with from over under never always maybe very
big small red green yellow black white good bad hot cold fast slow young old year week hour minute half quarter
number letter message email street city country doctor school
"""
WORDS = tuple(_WORDS.split())
WORDS_EACH, PIECES_EACH = 24, 12  # clips that each voice says
WORDS_OF_A_SENTENCE = (3, 6)
VALIDATION_SHARE = 0.1  # of the speakers; one at least where there are two
MADE = f"digits {', '.join(KINDS)}"  # in every step, of that step's digits
SILENCE_DB = -30.0  # recordings of words are cut as close as those of digits: room around a word must be no sign


class Negatives(NamedTuple):
    """N clips without a digit, each centred in its second."""

    name: str
    waveforms: Floats  # (N, 8000)
    lengths: Ints  # (N,)
    speakers: tuple[str, ...]
    files: tuple[str, ...]
    data_hash: str


def with_negatives(corpus: Corpus, split: Split, config: TrainConfig) -> tuple[Corpus, Split, str]:
    """The same with clips in which no digit is said, and what these are.

    Synthetic words, and the recordings of config.words_dir where that is given; those of some speakers for validation,
    the others for training, where the fewer of a kind are repeated until both kinds come up about equally often: a few
    recorded words tell more of what will be heard than many synthetic ones. They come last, labelled NOT_A_DIGIT; the
    data hash of the corpus tells of them. Without a negative_share there are none.
    Raises DataError where there is no speech synthesis, or words_dir cannot be used.
    """
    if not config.negative_share:
        return corpus, split, ""
    try:
        found = [cached_negatives(config.seed, config.synthetic_voices)]
    except DigitError as error:
        raise DataError(f"{error}; or train without clips that are no digits: --negative_share 0") from error
    if config.words_dir is not None:
        found.append(recorded_negatives(config.words_dir))
    speakers = np.concatenate([np.asarray(negatives.speakers) for negatives in found])
    names = np.unique(speakers)
    rng = np.random.default_rng(config.seed)
    judges = rng.permutation(names)[: max(round(VALIDATION_SHARE * len(names)), min(1, len(names) - 1))]
    judging = np.sort(rng.permutation(np.flatnonzero(np.isin(speakers, judges)))[: len(split.validation)])
    name = ", ".join([*(f"{len(negatives.lengths):,} {negatives.name}" for negatives in found), MADE])
    hashes = "\n".join((corpus.data_hash, *(negatives.data_hash for negatives in found)))
    mixed = replace(
        corpus,
        waveforms=concatenate([corpus.waveforms, *(negatives.waveforms for negatives in found)]),
        lengths=np.concatenate([corpus.lengths, *(negatives.lengths for negatives in found)]),
        labels=np.concatenate([corpus.labels, np.full(len(speakers), NOT_A_DIGIT)]),
        speakers=(*corpus.speakers, *speakers.tolist()),
        indices=np.concatenate([corpus.indices, np.arange(len(speakers))]),
        files=corpus.files + tuple(file for negatives in found for file in negatives.files),
        data_hash=hashlib.sha256(hashes.encode()).hexdigest(),
        parts=(),  # they have been divided
    )
    counts = np.array([len(negatives.lengths) for negatives in found])
    times = np.repeat(np.rint(counts.max() / counts).astype(np.int64), counts)
    training = np.repeat(np.arange(len(speakers)), np.where(np.isin(speakers, judges), 0, times))
    train, validation = split.train, split.validation
    train, validation = (np.concatenate([a, len(corpus) + b]) for a, b in ((train, training), (validation, judging)))
    return mixed, replace(split, train=train, validation=validation), name


def cached_negatives(seed: int, voices: int) -> Negatives:
    """What `synthetic_negatives` returns, from the cache in use."""
    key = {"seed": seed, "voices": voices, "code": feature_cache.source_hash(__name__)}
    arrays, (name, speakers, files, data_hash) = cached_clips(
        "words", key, lambda: synthetic_negatives(seed, voices), ("waveforms", "lengths")
    )
    return Negatives(name, arrays["waveforms"], arrays["lengths"], tuple(speakers), tuple(files), data_hash)


def hash_of_words(config: TrainConfig) -> str:
    """SHA-256 of which words with_negatives takes, said by whom or synthesised; "" where it takes none."""
    if not config.negative_share:
        return ""
    recorded = recorded_negatives(config.words_dir).data_hash if config.words_dir is not None else ""
    return hashlib.sha256(f"{WORDS} {WORDS_EACH} {PIECES_EACH} {recorded}".encode()).hexdigest()


@lru_cache(maxsize=2)
def synthetic_negatives(seed: int, voices: int) -> Negatives:
    """Words and seconds out of the middle of sentences, said by the first `voices` of VOICES.

    Raises MissingExtraError or DataError where there is no speech synthesis.
    """
    rng = np.random.default_rng(seed)
    texts, speakers, pieces = [], [], []
    for voice in VOICES[:voices]:
        for i in range(WORDS_EACH + PIECES_EACH):
            count = 1 if i < WORDS_EACH else int(rng.integers(*WORDS_OF_A_SENTENCE))
            texts.append((voice, " ".join(rng.choice(WORDS, count))))
            speakers.append(f"espeak-{voice}")
            pieces.append(i >= WORDS_EACH)
    spoken = [
        _piece(samples, rng) if piece else samples for samples, piece in zip(say(texts, seed), pieces, strict=True)
    ]
    files = [f"{text.replace(' ', '-')}_{name}.wav" for (_, text), name in zip(texts, speakers, strict=True)]
    return _of("synthetic words", spoken, speakers, files)


@lru_cache(maxsize=2)
def recorded_negatives(folder: str) -> Negatives:
    """Every recording in and below `folder`, but for those whose name or folder says a digit (Speech Commands).

    Names are {word}_{speaker}_..., or {speaker}_... in a folder for each word; where one says no speaker, the file is
    its own.
    Raises DataError when there is no such folder, when it holds no other words, or a file of it cannot be used.
    """
    root = Path(os.path.expanduser(folder))
    files = word_files(folder)
    clips = []
    for path in files:
        try:
            clips.append(trim_silence(decode_sound(path.read_bytes()), SILENCE_DB))
        except (AudioError, OSError) as error:
            raise DataError(f"words_dir {folder}: {path.name}: {error}; mend or remove it") from error
    names = [path.relative_to(root).as_posix() for path in files]
    return _of("recorded words", clips, [_speaker(path, root) for path in files], names)


def _speaker(path: Path, root: Path) -> str:
    parts = path.stem.split("_")
    if "_nohash_" in path.name or (path.parent != root and len(parts) == 2 and parts[1].isdigit()):
        return parts[0]
    return parts[1] if len(parts) > 1 else path.stem


def _piece(samples: Floats, rng: np.random.Generator) -> Floats:
    """A random second."""
    begin = int(rng.integers(0, max(1, len(samples) - NUM_SAMPLES + 1)))
    return samples[begin : begin + NUM_SAMPLES]


def _of(name: str, clips: list[Floats], speakers: list[str], files: list[str]) -> Negatives:
    waveforms = np.stack([pad_or_trim(clip) for clip in clips])
    lengths = np.array([min(len(clip), NUM_SAMPLES) for clip in clips], dtype=np.int64)
    data_hash = hashlib.sha256(waveforms.tobytes()).hexdigest()
    return Negatives(name, waveforms, lengths, tuple(speakers), tuple(files), data_hash)
