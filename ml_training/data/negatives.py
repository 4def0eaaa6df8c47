"""Clips without a digit: other words and pieces of sentences, recorded or synthesised."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from digit_detector.audio import NUM_SAMPLES, decode_sound, trim_silence
from digit_detector.errors import AudioError, DataError, DigitError
from ml_training.config import TrainConfig
from ml_training.data import feature_cache
from ml_training.data.corpus import NOT_A_DIGIT, Corpus, append_clips, make_corpus
from ml_training.data.digit_corruption import KINDS
from ml_training.data.layouts import word_files
from ml_training.data.splits import Split
from ml_training.data.tts import VOICES, cached_corpus, synthesize_words
from ml_training.results import Floats

# Everyday words, and words near a digit; no homophones (to, for, won, ate), nor "oh", which may stand for zero.
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
WORDS_EACH, PIECES_EACH = 24, 12  # clips of each voice
WORDS_OF_A_SENTENCE = (3, 6)
VALIDATION_SHARE = 0.1  # of the speakers; one at least where there are two
CORRUPTED = f"digits {', '.join(KINDS)}"  # made in every step from that step's digits
SILENCE_DB = -30.0  # recordings of words are cut as close as those of digits


def mix_negatives(corpus: Corpus, split: Split, config: TrainConfig) -> tuple[Corpus, Split, str]:
    """Append clips without a digit, labelled NOT_A_DIGIT, unless config.negative_ratio is 0; returns their names too.

    Synthetic words, and the recordings of config.non_digit_dir: those of some speakers for validation, of the others
    for training, where the fewer of a kind are repeated until both kinds are about equally frequent. The data hash of
    the corpus includes them. Raises DataError where there is no speech synthesis, or non_digit_dir cannot be used.
    """
    if not config.negative_ratio:
        return corpus, split, ""
    try:
        found = [cached_negatives(config.seed, config.synthetic_voices)]
    except DigitError as error:
        raise DataError(f"{error}; or train without clips that are no digits: --negative_ratio 0") from error
    if config.non_digit_dir is not None:
        found.append(recorded_negatives(config.non_digit_dir))
    name = ", ".join([*(f"{len(negatives):,} {negatives.name}" for negatives in found), CORRUPTED])
    hashes = "\n".join((corpus.data_hash, *(negatives.data_hash for negatives in found)))
    mixed = append_clips(corpus, *found, data_hash=hashlib.sha256(hashes.encode()).hexdigest())

    speakers = np.asarray(mixed.speakers[len(corpus) :])
    names = np.unique(speakers)
    rng = np.random.default_rng(config.seed)
    held_out = rng.permutation(names)[: max(round(VALIDATION_SHARE * len(names)), min(1, len(names) - 1))]
    validating = np.isin(speakers, held_out)
    validation = np.sort(rng.permutation(np.flatnonzero(validating))[: len(split.validation)])
    counts = np.array([len(negatives) for negatives in found])
    times = np.repeat(np.rint(counts.max() / counts).astype(np.int64), counts)
    training = np.repeat(np.arange(len(speakers)), np.where(validating, 0, times))
    return mixed, replace(
        split,
        train=np.concatenate([split.train, len(corpus) + training]),
        validation=np.concatenate([split.validation, len(corpus) + validation]),
    ), name  # fmt: skip


def cached_negatives(seed: int, voices: int) -> Corpus:
    """`synthetic_negatives` from the cache in use."""
    key = {"seed": seed, "voices": voices, "code": feature_cache.source_hash(__name__)}
    return cached_corpus("words", key, lambda: synthetic_negatives(seed, voices))


def hash_of_words(config: TrainConfig) -> str:
    """SHA-256 of the negatives of a configuration; "" where it has none."""
    if not config.negative_ratio:
        return ""
    recorded = recorded_negatives(config.non_digit_dir).data_hash if config.non_digit_dir is not None else ""
    return hashlib.sha256(f"{WORDS} {WORDS_EACH} {PIECES_EACH} {recorded}".encode()).hexdigest()


@lru_cache(maxsize=2)
def synthetic_negatives(seed: int, voices: int) -> Corpus:
    """Words and seconds out of sentences, by the first `voices` of VOICES.

    Raises MissingExtraError or DataError where there is no speech synthesis.
    """
    rng = np.random.default_rng(seed)
    texts, pieces = [], []
    for voice in VOICES[:voices]:
        for i in range(WORDS_EACH + PIECES_EACH):
            count = 1 if i < WORDS_EACH else int(rng.integers(*WORDS_OF_A_SENTENCE))
            texts.append((voice, " ".join(rng.choice(WORDS, count))))
            pieces.append(i >= WORDS_EACH)
    clips = synthesize_words(texts, seed)
    clips = [_random_second(clip, rng) if piece else clip for clip, piece in zip(clips, pieces, strict=True)]
    speakers = [f"espeak-{voice}" for voice, _ in texts]
    files = [f"{text.replace(' ', '-')}_espeak-{voice}.wav" for voice, text in texts]
    return _make("synthetic words", clips, speakers, files, synthetic=True)


@lru_cache(maxsize=2)
def recorded_negatives(folder: str) -> Corpus:
    """Every recording in and below `folder` without those whose name or folder is a digit (Speech Commands).

    Names are {word}_{speaker}_..., or {speaker}_... in a folder for each word; a file without a speaker in its name is
    its own. Raises DataError for a folder that does not exist or holds no other words, or a file that cannot be used.
    """
    root = Path(os.path.expanduser(folder))
    files = word_files(folder)
    clips = []
    for path in files:
        try:
            clips.append(trim_silence(decode_sound(path.read_bytes()), SILENCE_DB))
        except (AudioError, OSError) as error:
            raise DataError(f"non_digit_dir {folder}: {path.name}: {error}; fix or remove it") from error
    names = [path.relative_to(root).as_posix() for path in files]
    return _make("recorded words", clips, [_speaker(path, root) for path in files], names, synthetic=False)


def _make(name: str, clips: list[Floats], speakers: list[str], files: list[str], synthetic: bool) -> Corpus:
    return make_corpus(name, clips, [NOT_A_DIGIT] * len(clips), speakers, range(len(clips)), files, synthetic)


def _speaker(path: Path, root: Path) -> str:
    parts = path.stem.split("_")
    if "_nohash_" in path.name or (path.parent != root and len(parts) == 2 and parts[1].isdigit()):
        return parts[0]
    return parts[1] if len(parts) > 1 else path.stem


def _random_second(clip: Floats, rng: np.random.Generator) -> Floats:
    begin = int(rng.integers(0, max(1, len(clip) - NUM_SAMPLES + 1)))
    return clip[begin : begin + NUM_SAMPLES]
