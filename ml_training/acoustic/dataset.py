"""Training data of the acoustic model: recorded utterances, and utterances joined from recorded words.

Utterances are drawn from a numpy generator and rendered in acoustic scenes (scene.py). Tokens are those of
digit_detector.acoustic_file.TOKENS without the blank.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digit_detector.acoustic_file import BLOCK, DOUBLE, FIRST_DIGIT, OH, OTHER, TRIPLE
from digit_detector.audio import AUDIO_SUFFIXES, SAMPLE_RATE, decode_sound
from digit_detector.errors import AudioError, ConfigError, DataError
from digit_detector.evaluation.perturbations import change_tempo
from digit_detector.labels import LABELS
from ml_training.results import Floats

WORDS, UTTERANCES, SOUNDS = KINDS = ("words", "utterances", "sounds")
_SPECIAL = {"oh": OH, "double": DOUBLE, "triple": TRIPLE, "treble": TRIPLE}
_WORD = re.compile(r"[a-z']+|\d")
_SECONDS = (4.0, 5.5, 7.0, 9.0, 13.0)  # of the utterances of a batch
_LENGTHS = (1, 2, 3, 4, 4, 5, 6, 7, 8, 10, 10)  # digits of a joined string
_GAPS = (
    (0.35, (-0.07, 0.02)),
    (0.3, (0.0, 0.12)),
    (0.35, (0.1, 0.6)),
)  # share of joined strings, seconds between words
_REPEAT = 0.12  # probability that a digit of a joined string is the one before it
_TRIM_DB = (20.0, 25.0, 30.0, 40.0)  # below the peak, at which a joined word is cut
_TEMPO = 0.2  # share of utterances with a changed tempo
_FRAME = SAMPLE_RATE // 100
_PAUSE = 5  # blocks; shorter pauses are part of the speech around them


def tokenize(text: str) -> list[int]:
    """Tokens of a transcript: digits as words or figures, "oh", "double", "triple"; any other word is OTHER."""
    return [_token(word) for word in _WORD.findall(text.lower())]


def _token(word: str) -> int:
    if word in LABELS:
        return FIRST_DIGIT + LABELS.index(word)
    return FIRST_DIGIT + int(word) if word.isdigit() else _SPECIAL.get(word, OTHER)


@dataclass(frozen=True)
class Source:
    """A folder of recordings.

    "words": single words in files `{label}_{speaker}_...`. "utterances": files with a table of columns `file` and
    `text`, or without letters in the text `digits`; or a table of two columns without a header, name and text.
    "sounds": recordings without speech, of which short excerpts are taken.
    """

    folder: str
    kind: str
    share: float  # of all utterances
    table: str = "clips.tsv"
    include: tuple[str, ...] = ("*",)  # patterns of file names
    exclude: tuple[str, ...] = ()
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # column -> values to take
    hold_out: tuple[str, ...] = ()  # values of the column `fold` that are left out
    spelled: bool = False  # every letter of the text is a word
    only_digits: bool = False  # speakers of words who say fewer than ten digits are left out

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError([f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}"], f"source {self.folder}")


class Clip(NamedTuple):
    """A recording: (T,) int16 samples at 8 kHz scaled to its peak, and its tokens."""

    samples: NDArray[np.int16]
    tokens: tuple[int, ...]
    speaker: str


@dataclass(frozen=True, eq=False)
class Corpus:
    """The clips of a source."""

    source: Source
    clips: Sequence[Clip]
    by_speaker: Sequence[Mapping[int, Sequence[Clip]]]  # of words: token -> clips, for each speaker


@dataclass(frozen=True, eq=False)
class AcousticData:
    """Everything that utterances are drawn from."""

    corpora: Sequence[Corpus]
    data_hash: str

    @property
    def name(self) -> str:
        return " + ".join(corpus.source.folder for corpus in self.corpora)


def load_acoustic_data(root: Path, sources: Sequence[Source]) -> AcousticData:
    """Decode all sources below `root`. Raises DataError where one has no recordings or a table cannot be used."""
    digest = hashlib.sha256()
    return AcousticData([_load_corpus(root, source, digest) for source in sources], digest.hexdigest())


def _load_corpus(root: Path, source: Source, digest: hashlib._Hash) -> Corpus:
    folder = root / source.folder
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: expected one with recordings; see the sources of the configuration")
    rows = _table_rows(folder, source) if source.kind == UTTERANCES else _file_rows(folder, source.kind)
    clips = []
    for name, tokens, speaker in rows:
        if not any(fnmatch(name, p) for p in source.include) or any(fnmatch(name, p) for p in source.exclude):
            continue
        try:
            content = (folder / name).read_bytes()
            samples = decode_sound(content)
        except (AudioError, OSError) as error:
            raise DataError(f"{folder / name}: {error}; fix or remove it") from error
        digest.update(f"{source.folder}/{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        scaled = samples * (30000.0 / max(1e-6, float(np.abs(samples).max())))
        clips.append(Clip(scaled.astype(np.int16), tuple(tokens), speaker))
    if not clips:
        raise DataError(f"{folder}: no recordings are left of those that the configuration selects")
    speakers: dict[str, dict[int, list[Clip]]] = {}
    if source.kind == WORDS:
        for clip in clips:
            speakers.setdefault(clip.speaker, {}).setdefault(clip.tokens[0], []).append(clip)
    if source.only_digits:
        speakers = {name: words for name, words in speakers.items() if sum(token != OTHER for token in words) == 10}
    return Corpus(source, clips, list(speakers.values()))


def _file_rows(folder: Path, kind: str) -> list[tuple[str, list[int], str]]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in AUDIO_SUFFIXES)
    if kind == SOUNDS:
        return [(file.name, [], "") for file in files]
    parts = [(file.name, *file.stem.split("_", 2)[:2]) for file in files if "_" in file.stem]
    return [(name, [_token(label)], speaker) for name, label, speaker in parts]


def _table_rows(folder: Path, source: Source) -> list[tuple[str, list[int], str]]:
    table = folder / source.table
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{table}: {error.strerror or error}: expected a table of file and text") from error
    if "file" not in lines[0].split("\t"):
        lines.insert(0, "file\ttext")
    rows = []
    for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
        if any(row.get(column) not in values for column, values in source.where.items()):
            continue
        if row.get("fold") in source.hold_out:
            continue
        text = row["text"]
        if not re.search("[A-Za-z]", text):
            text = row.get("digits", text)
            if not text:
                continue  # what was said is not known
        tokens = [OTHER] * len(re.findall(r"\w", text)) if source.spelled else tokenize(text)
        name = row["file"] if Path(row["file"]).suffix else f"{row['file']}.flac"
        rows.append((name, tokens, row.get("speaker") or name.split("_")[1].split("-")[0]))
    return rows


class Utterance(NamedTuple):
    """(T,) samples with a peak of one at most, and their tokens."""

    samples: Floats
    tokens: list[int]


def draw_utterance(data: AcousticData, rng: np.random.Generator, most: int) -> Utterance:
    """A random utterance of at most `most` samples."""
    shares = np.array([corpus.source.share for corpus in data.corpora])
    while True:
        corpus = data.corpora[int(rng.choice(len(shares), p=shares / shares.sum()))]
        if corpus.source.kind == WORDS:
            utterance = join_words(corpus, rng)
        else:
            clip = corpus.clips[int(rng.integers(len(corpus.clips)))]
            if corpus.source.kind == SOUNDS:
                return Utterance(cut_sound(_scale(clip.samples), rng), [])
            utterance = Utterance(_vary(_scale(clip.samples), rng, 0.86, 1.18), list(clip.tokens))
        if len(utterance.samples) <= most:
            return utterance


def cut_sound(samples: Floats, rng: np.random.Generator) -> Floats:
    """An excerpt of 0.04 to 0.6 s at a random level: clicks, bumps and breaths that are no words."""
    size = min(len(samples), int(rng.uniform(0.04, 0.6) * SAMPLE_RATE))
    first = int(rng.integers(len(samples) - size + 1))
    excerpt = samples[first : first + size] * np.hanning(size + 2)[1:-1].astype(np.float32) ** np.float32(0.3)
    return excerpt * np.float32(rng.uniform(0.05, 1.0) / max(1e-3, float(np.abs(excerpt).max())))


def join_words(corpus: Corpus, rng: np.random.Generator) -> Utterance:
    """A string of single words of one speaker, with gaps or overlaps of a random style."""
    words = corpus.by_speaker[int(rng.integers(len(corpus.by_speaker)))]
    digits, others = [token for token in words if token != OTHER], OTHER in words
    fillers = (1.0 if not digits else 0.15 if rng.random() < 0.5 else 0.0) if others else 0.0
    low, high = _GAPS[int(rng.choice(len(_GAPS), p=[share for share, _ in _GAPS]))][1]
    speed = float(rng.uniform(0.85, 1.2))
    sound, tokens = np.zeros(0, dtype=np.float32), list[int]()
    for _ in range(int(rng.choice(_LENGTHS))):
        if rng.random() < fillers:
            token = OTHER
        elif tokens and tokens[-1] != OTHER and rng.random() < _REPEAT:
            token = tokens[-1]
        else:
            token = digits[int(rng.integers(len(digits)))]
        clips = words[token]
        word = trim(_scale(clips[int(rng.integers(len(clips)))].samples), float(rng.choice(_TRIM_DB)))
        word = change_speed(word, speed * float(rng.uniform(0.93, 1.08)))
        sound = _append(sound, word * np.float32(rng.uniform(0.5, 1.0)), int(rng.uniform(low, high) * SAMPLE_RATE))
        tokens.append(token)
    return Utterance(_vary(sound, rng, 1.0, 1.0), tokens)


def _append(sound: Floats, word: Floats, gap: int) -> Floats:
    """`word` `gap` samples after `sound`; they cross-fade where it is negative."""
    if not len(sound):
        return word
    overlap = min(max(0, -gap), len(sound) // 3, len(word) // 3)
    if overlap:
        ramp = np.linspace(0.0, 1.0, overlap, dtype=np.float32)
        mixed = sound[-overlap:] * (1.0 - ramp) + word[:overlap] * ramp
        return np.concatenate([sound[:-overlap], mixed, word[overlap:]])
    return np.concatenate([sound, np.zeros(max(0, gap), dtype=np.float32), word])


def _scale(samples: NDArray[np.int16]) -> Floats:
    return samples.astype(np.float32) / np.float32(30000.0)


def _vary(sound: Floats, rng: np.random.Generator, slowest: float, fastest: float) -> Floats:
    """Another speed (tempo and pitch), and for some another tempo."""
    sound = change_speed(sound, float(rng.uniform(slowest, fastest)))
    return change_tempo(sound, float(rng.uniform(0.85, 1.5))) if rng.random() < _TEMPO else sound


def change_speed(samples: Floats, factor: float) -> Floats:
    """(T,) samples played `factor` times as fast, by linear interpolation."""
    if factor == 1.0:
        return samples
    places = np.arange(0.0, len(samples) - 1, factor)
    changed: Floats = np.interp(places, np.arange(len(samples)), samples).astype(np.float32)
    return changed


def trim(samples: Floats, db: float) -> Floats:
    """(T,) samples without the ends whose 10 ms frames lie `db` below the loudest."""
    count = len(samples) // _FRAME
    if count < 3:
        return samples
    power = np.square(samples[: count * _FRAME]).reshape(count, -1).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (-db / 10))
    return samples[max(0, loud[0] - 1) * _FRAME : (loud[-1] + 2) * _FRAME]


def find_speech(samples: Floats) -> NDArray[np.bool_]:
    """(T,) clean samples -> (T / BLOCK,) which blocks are speech; pauses of up to 128 ms inside count as speech."""
    power = np.square(samples[: len(samples) // BLOCK * BLOCK]).reshape(-1, BLOCK).mean(axis=1)
    if not len(power):
        return np.zeros(0, dtype=np.bool_)
    threshold = max(power.max() * 10**-3.5, np.percentile(power, 10) * 10**0.8)
    speech: NDArray[np.bool_] = power > min(threshold, power.max() * 10**-1.5)
    for last, following in itertools.pairwise(np.flatnonzero(speech).tolist()):
        if following - last <= _PAUSE:
            speech[last:following] = True
    return speech


def draw_batch(
    data: AcousticData, seconds: float, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.float32], list[list[int]]]:
    """About `seconds` of utterances of one length -> (N, T) sound, 0 in pauses; (N, T / BLOCK) speech; tokens."""
    blocks = int(float(rng.choice(_SECONDS)) * SAMPLE_RATE) // BLOCK
    size, count = blocks * BLOCK, max(2, int(seconds * SAMPLE_RATE / (blocks * BLOCK)))
    sound, speech = np.zeros((count, size), dtype=np.float32), np.zeros((count, blocks), dtype=np.float32)
    tokens: list[list[int]] = [[] for _ in range(count)]
    for row in range(count):
        at = int(rng.integers(400, 6400)) if rng.random() < 0.5 else 800
        first = True
        while size - at > SAMPLE_RATE and (first or rng.random() < 0.6):
            utterance = draw_utterance(data, rng, size - at - 1600 if first else size)
            end = at + len(utterance.samples)
            if end > size - 1600:
                break
            level = 1.0 if first else float(rng.uniform(0.4, 1.0))
            sound[row, at:end] = utterance.samples * np.float32(level)
            if utterance.tokens:
                clean = np.zeros(size, dtype=np.float32)
                clean[at:end] = utterance.samples
                speech[row] = np.maximum(speech[row], find_speech(clean))
            tokens[row] += utterance.tokens
            at, first = end + int(rng.uniform(0.1, 1.5) * SAMPLE_RATE), False
    return sound, speech, tokens
