"""Strings of words, as they are spoken and as they are joined from single ones, with where each digit ends.

A string lasts SAMPLES (4.1 s). Words of one are by one speaker more often than not, follow each other closely or with
pauses, run into each other where they follow closely, and are not all digits. Chance comes from a numpy generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from digit_detector.audio import SAMPLE_RATE
from ml_training.data.corpus import NOT_A_DIGIT
from ml_training.results import Floats, Ints
from ml_training.spotter.words import Words, edges

SAMPLES = 32_768  # of a string, 4.1 s
_JOIN = SAMPLE_RATE // 50  # samples over which a word that is run into fades out and the next one in
_LOOSE_DB = 4.0  # by how much words of a string differ in level


class Digit(NamedTuple):
    """One that is said in a string, in samples of it; both ends within EDGE_DB of its loudest."""

    label: int
    begin: int
    end: int


class String(NamedTuple):
    samples: Floats  # (SAMPLES,), a loud frame is about one; what is joined may be louder
    digits: list[Digit]
    sounds: list[tuple[int, int]]  # where anything is said


@dataclass(frozen=True)
class Manner:
    """How a kind of string is put together."""

    share: float  # of all strings
    gap: tuple[float, float]  # seconds from the end of a word to the next one; below zero they overlap
    others: float  # share of words that are no digits
    one_voice: float = 0.8  # share of strings by one speaker


MANNERS = (
    Manner(0.28, (-0.10, 0.03), 0.08),
    Manner(0.17, (-0.03, 0.20), 0.2),
    Manner(0.27, (0.10, 1.0), 0.3, 0.5),
    Manner(0.20, (-0.06, 0.10), 1.0, 0.7),
    Manner(0.08, (0.1, 1.2), 1.0, 0.3),
)


class Pool:
    """Words to take from: digits by speaker, and other words."""

    def __init__(self, digits: Sequence[tuple[Words, float]], others: Sequence[tuple[Words, float]]) -> None:
        """Each with the share of words that it gives."""
        self._sources = {True: digits, False: others}
        self._by_speaker = {id(words): _rows_of(words) for words, _ in (*digits, *others)}

    def source(self, digits: bool, rng: np.random.Generator) -> Words:
        sources = self._sources[digits]
        shares = np.array([share for _, share in sources])
        return sources[int(rng.choice(len(sources), p=shares / shares.sum()))][0]

    def voice(self, words: Words, rng: np.random.Generator) -> Ints:
        """All words of a random speaker."""
        rows = self._by_speaker[id(words)]
        return rows[int(rng.integers(len(rows)))]


def _rows_of(words: Words) -> list[Ints]:
    return [np.flatnonzero(words.speakers == speaker) for speaker in np.unique(words.speakers)]


def joined_string(pool: Pool, rng: np.random.Generator) -> String:
    """One string, of a random manner."""
    shares = np.array([manner.share for manner in MANNERS])
    manner = MANNERS[int(rng.choice(len(MANNERS), p=shares / shares.sum()))]
    samples = np.zeros(SAMPLES, dtype=np.float32)
    digits: list[Digit] = []
    sounds: list[tuple[int, int]] = []
    one_voice = rng.random() < manner.one_voice
    sources = {kind: pool.source(kind, rng) for kind in (True, False)}
    voices = {kind: pool.voice(words, rng) for kind, words in sources.items()}
    narrow = np.sort(rng.uniform(*manner.gap, 2))  # a speaker's own pace
    level = 0.0
    at = int(rng.uniform(-0.3, 0.8) * SAMPLE_RATE)  # some are under way when the string begins
    faded = 0
    while at < SAMPLES:
        kind = rng.random() >= manner.others
        if not one_voice:
            sources[kind] = pool.source(kind, rng)
            voices[kind] = pool.voice(sources[kind], rng)
            level = rng.uniform(-_LOOSE_DB, _LOOSE_DB)
        words = sources[kind]
        i = int(rng.choice(voices[kind]))
        word = words.word(i) * np.float32(10 ** ((level + rng.normal(0.0, 1.0)) / 20))
        word = _fade(word, faded, 0)
        gap = int(rng.uniform(*narrow) * SAMPLE_RATE)
        # the next word begins with its first loud frame so long after the last loud one of this
        following = at + int(words.ends[i]) + gap
        if gap < 0:
            word = _fade(word[: following + _JOIN - at], 0, min(_JOIN, -gap))
        _add(samples, word, at)
        if words.labels[i] != NOT_A_DIGIT:
            end = min(int(words.ends[i]), len(word))
            digits.append(Digit(int(words.labels[i]), at + int(words.begins[i]), at + end))
        sounds.append((at, at + len(word)))
        faded = min(_JOIN, -gap) if gap < 0 else 0
        at = following
    return String(samples, digits, sounds)


def _fade(word: Floats, into: int, out: int) -> Floats:
    if not into and not out:
        return word
    word = word.copy()
    into, out = min(into, len(word)), min(out, len(word))
    word[:into] *= np.linspace(0.0, 1.0, into + 1, dtype=np.float32)[1:]
    word[len(word) - out :] *= np.linspace(1.0, 0.0, out + 1, dtype=np.float32)[:-1]
    return word


def _add(samples: Floats, word: Floats, at: int) -> None:
    begin, end = max(0, at), min(len(samples), at + len(word))
    if begin < end:
        samples[begin:end] += word[begin - at : end - at]


@dataclass(frozen=True, eq=False)
class Spoken:
    """A string that was spoken as one: its samples, and the words of it that are digits."""

    samples: Floats  # (T,), its loudest frame at one
    digits: list[Digit]


def in_one(samples: Floats, begins: Ints, labels: Sequence[int]) -> Spoken | None:
    """What was said in one breath, cut where its words begin; None where these places cannot be."""
    places = [*begins.tolist(), len(samples)]
    if len(begins) != len(labels) or any(b - a < SAMPLE_RATE // 20 for a, b in pairwise(places)):
        return None
    level, _, _ = edges(samples)
    digits = []
    for label, first, last in zip(labels, places, places[1:], strict=False):
        _, begin, end = edges(samples[first:last])
        if label != NOT_A_DIGIT:
            digits.append(Digit(label, first + begin, first + end))
    return Spoken(samples / np.float32(level), digits)


def spoken_string(utterances: Sequence[Spoken], rng: np.random.Generator) -> String:
    """Utterances one after the other with pauses between them."""
    samples = np.zeros(SAMPLES, dtype=np.float32)
    digits: list[Digit] = []
    sounds: list[tuple[int, int]] = []
    at = int(rng.uniform(-1.0, 0.8) * SAMPLE_RATE)
    while at < SAMPLES:
        said = utterances[int(rng.integers(len(utterances)))]
        _add(samples, said.samples, at)
        digits += [Digit(label, at + begin, at + end) for label, begin, end in said.digits]
        sounds.append((at, at + len(said.samples)))
        at += len(said.samples) + int(rng.uniform(0.1, 1.0) * SAMPLE_RATE)
    return String(samples, digits, sounds)
