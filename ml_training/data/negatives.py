"""Clips in which no digit is said: other words and pieces of sentences, recorded or synthesised."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ml_training.audio import AUDIO_SUFFIXES, NUM_SAMPLES, decode, fit, trimmed
from ml_training.config import LABELS
from ml_training.data.synthetic import VOICES, say
from ml_training.errors import AudioError, DataError
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
none nun bun gone sun run fun wand once want dawn on torn new true do shoe blue view through zoo flew who
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
SILENCE_DB = -30.0  # recordings of words are cut as close as those of digits: room around a word must be no sign
_DIGITS = {*LABELS, *map(str, range(10))}


@dataclass(frozen=True, eq=False)
class Negatives:
    """N clips without a digit, each centred in its second."""

    name: str
    waveforms: Floats  # (N, 8000)
    lengths: Ints  # (N,)
    speakers: tuple[str, ...]
    data_hash: str

    def __len__(self) -> int:
        return len(self.lengths)


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
    return _of("synthetic words", spoken, speakers)


@lru_cache(maxsize=2)
def recorded_negatives(folder: str) -> Negatives:
    """Every recording in and below `folder`, but for those whose name or folder says a digit (Speech Commands).

    Names are {word}_{speaker}_..., or a folder for each word; where a name says no speaker, the file is its own.
    Raises DataError when there is no such folder, when it holds no other words, or a file of it cannot be used.
    """
    root = Path(os.path.expanduser(folder))
    if not root.is_dir():
        raise DataError(f"words_dir {folder} is not a folder: expected one with recordings of words that are no digits")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    files = [path for path in files if not _DIGITS & {path.parent.name, path.name.split("_")[0]}]
    if not files:
        raise DataError(f"words_dir {folder} holds no recordings of words that are no digits, e.g. yes_anna_0.wav")
    clips = []
    for path in files:
        try:
            clips.append(trimmed(decode(path.read_bytes()), SILENCE_DB))
        except (AudioError, OSError) as error:
            raise DataError(f"words_dir {folder}: {path.name}: {error}; mend or remove it") from error
    return _of(root.resolve().name, clips, [_speaker(path) for path in files])


def _speaker(path: Path) -> str:
    parts = path.stem.split("_")
    return parts[0] if "_nohash_" in path.name else parts[1] if len(parts) > 1 else path.stem


def _piece(samples: Floats, rng: np.random.Generator) -> Floats:
    """A random second."""
    begin = int(rng.integers(0, max(1, len(samples) - NUM_SAMPLES + 1)))
    return samples[begin : begin + NUM_SAMPLES]


def _of(name: str, clips: list[Floats], speakers: list[str]) -> Negatives:
    waveforms = np.stack([fit(clip) for clip in clips])
    return Negatives(
        name=name, waveforms=waveforms, lengths=np.array([min(len(c), NUM_SAMPLES) for c in clips], dtype=np.int64),
        speakers=tuple(speakers), data_hash=hashlib.sha256(waveforms.tobytes()).hexdigest(),
    )  # fmt: skip
