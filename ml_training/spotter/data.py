"""What the spotter learns from: varied words of recordings and of espeak-ng, spoken strings, noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE
from digit_detector.labels import LABELS
from ml_training.config import AugmentationConfig
from ml_training.data.augmentation.noise import NoiseBank, generated_noise_bank, load_noise_bank
from ml_training.data.corpus import NOT_A_DIGIT, Corpus
from ml_training.data.negatives import WORDS, cached_negatives, recorded_negatives
from ml_training.data.tts import VOICES, cached_digits, say_in_one
from ml_training.results import Floats, Ints
from ml_training.spotter.strings import Pool, Spoken, in_one
from ml_training.spotter.words import Said, Words, joined_words, varied

VARIED = AugmentationConfig(
    tract_probability=0.7, tract=(0.82, 1.22), pitch_probability=0.6, pitch=(0.75, 1.35), speed=(0.75, 1.3),
    trim_probability=0.3, trim=0.1,
)  # fmt: skip
_UTTERANCES = 8000
_SENTENCES = 0.4  # of the utterances: no digit in them
_OTHERS_IN_STRINGS = 0.2  # of the words in the other utterances
# Nobody says a digit here, though some words sound like one: that a "for" between other words is none can be learnt.
SENTENCES = tuple(
    """
    I would like to have a cup of tea to go
    could you please wait for me at the station
    we ate too much for dinner and went to bed
    he won the race for the first time
    this is for you and that is for her
    can I get a large coffee to go for my friend
    they want to know what to do before it rains
    she has been there for a while but nobody came
    turn on the heating in the living room tonight
    what is the weather going to be like tomorrow
    please send a message to my brother that I am late
    I had an egg and some toast for breakfast
    the train to the city leaves from the other side
    do you know where I left my keys
    it is too cold to swim in the sea in winter
    let me see if there is any sugar left
    a slice of cheese pizza with extra sauce and no onions
    she said that she is fine and will be here soon
    we need to find a way to fix the roof
    add some milk and a little bit of honey
    he is alive and kicking as they say
    nobody has seen heaven or several seas from here
    the hero of the story was a zebra from the zoo
    if it is free we should take it
    there were trees along the river and a field of wheat
    I might try the sixteenth floor or the twentieth
    she was ninety and he was eighty when they met
    some of the mine workers were on strike for days
    great idea but we are too late to change it
    the wine is nice but the knives are not clean
    may I have the bill and a glass of water
    make it decaf with whole milk and no foam
    sixty people came to the fortieth anniversary
    some of them would do but none of us has any
    hold on I am looking for it
    thanks a lot for calling see you later
    """.strip().splitlines()
)


@dataclass(frozen=True, eq=False)
class SpotterData:
    pool: Pool
    utterances: Sequence[Spoken]
    noises: list[tuple[NoiseBank, float]]
    data_hash: str
    name: str


def load_spotter_data(
    corpus: Corpus,
    rows: Ints,
    words_dir: str | None,
    noise_dir: str | None,
    seed: int = 0,
    variants: int = 16,
    voices: int = 300,
) -> SpotterData:
    """Of the `rows` of a corpus of digits, recorded words that are none, and recorded noise; and what is made.

    Raises DataError where a folder cannot be used, MissingExtraError without speech synthesis.
    """
    recorded = varied(_said(corpus, rows), variants, VARIED, seed)
    spoken = cached_digits(seed, voices, 2)
    synthetic = varied(_said(spoken, np.arange(len(spoken.labels))), 2, VARIED, seed + 1)
    others = [(_broken(recorded, seed), 0.2)]
    said = cached_negatives(seed, max(1, voices // 2))
    others.append((varied(_without_digits(said), 2, VARIED, seed + 2), 0.35))
    hashes = [corpus.data_hash, hashlib.sha256(rows.tobytes()).hexdigest(), spoken.data_hash, said.data_hash]
    if words_dir is not None:
        words = recorded_negatives(words_dir)
        spoken_ones = varied(_without_digits(words), variants, VARIED, seed + 3)
        others += [(spoken_ones, 0.4), (_broken(spoken_ones, seed + 4, 1.0), 0.2)]
        hashes.append(words.data_hash)
    noises = [(generated_noise_bank(), 0.3)]
    if noise_dir is not None:
        noises.append((load_noise_bank(noise_dir), 0.7))
        others.append((_bursts(noises[1][0], seed + 5), 0.4))
        hashes.append(noises[1][0].data_hash)
    return SpotterData(
        pool=Pool([(recorded, 0.7), (synthetic, 0.3)], others), utterances=utterances(seed, voices), noises=noises,
        data_hash=hashlib.sha256("\n".join([*hashes, f"{variants} {voices} {seed}"]).encode()).hexdigest(),
        name=corpus.name,
    )  # fmt: skip


def _said(corpus: Corpus, rows: Ints) -> Said:
    speakers = [corpus.speakers[i] for i in rows]
    return Said(np.asarray(corpus.waveforms[rows]), corpus.lengths[rows], corpus.labels[rows], speakers)


def _without_digits(negatives: object) -> Said:
    waveforms, lengths = np.asarray(negatives.waveforms), np.asarray(negatives.lengths)  # type: ignore[attr-defined]
    return Said(waveforms, lengths, np.full(len(lengths), NOT_A_DIGIT), negatives.speakers)  # type: ignore[attr-defined]


def _broken(words: Words, seed: int, times: float = 0.33) -> Words:
    """`times` as many sounds as words that are none: turned round, halves of two, or less than half of one."""
    rng = np.random.default_rng(seed)
    clips: list[Floats] = []
    speakers = []
    for i in rng.integers(len(words), size=int(times * len(words))):
        word, kind = words.word(i), rng.random()
        if kind < 0.3:
            made = word[::-1].copy()
        elif kind < 0.65:
            mates = _mates(words, int(i))
            other = words.word(int(rng.choice(mates)))
            made = np.concatenate(
                [word[: int(rng.uniform(0.3, 0.6) * len(word))], other[int(rng.uniform(0.4, 0.7) * len(other)) :]]
            )
        elif kind < 0.85:
            made = word[: int(rng.uniform(0.25, 0.5) * len(word))]
        else:
            made = word[int(rng.uniform(0.5, 0.75) * len(word)) :]
        clips.append(made)
        speakers.append(words.speakers[i])
    return joined_words(clips, np.full(len(clips), NOT_A_DIGIT), np.array(speakers))


def _bursts(noise: NoiseBank, seed: int, count: int = 6000) -> Words:
    """Sounds of a word's length out of recorded noise, varied as words are: a bark or a cry is no digit either."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0.0, 1.0, 80, dtype=np.float32)
    clips = np.zeros((count, NUM_SAMPLES), dtype=np.float32)
    lengths = rng.integers(int(0.12 * SAMPLE_RATE), int(0.8 * SAMPLE_RATE), size=count)
    for row, which, length in zip(clips, rng.integers(len(noise.starts), size=count), lengths, strict=True):
        begin = int(noise.starts[which]) + int(rng.integers(int(noise.choices[which])))
        clip = noise.samples[begin : begin + length].numpy().copy()
        clip[:80] *= slope
        clip[-80:] *= slope[::-1]
        row[(NUM_SAMPLES - length) // 2 :][:length] = clip
    said = Said(clips, lengths, np.full(count, NOT_A_DIGIT), [str(i % 50) for i in range(count)])
    return varied(said, 2, VARIED, seed)


def _mates(words: Words, i: int) -> Ints:
    """Other words of the same speaker, of a digit other digits."""
    same = words.speakers == words.speakers[i]
    return np.flatnonzero(same & ((words.labels != words.labels[i]) | (words.labels == NOT_A_DIGIT)))


def utterances(seed: int, voices: int) -> list[Spoken]:
    """Digits among some other words, and sentences without digits, said in one breath by many voices of espeak-ng."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(min(_UTTERANCES, 48 * voices)):
        if rng.random() < _SENTENCES:
            words = _sentence(rng)
            said = [NOT_A_DIGIT] * len(words)
        else:
            others = rng.random(int(rng.integers(2, 8))) < _OTHERS_IN_STRINGS
            said = [NOT_A_DIGIT if other else int(rng.integers(10)) for other in others]
            words = [str(rng.choice(WORDS)) if label == NOT_A_DIGIT else LABELS[label] for label in said]
        texts.append((VOICES[i % voices], " ".join(words)))
        labels.append(said)
    found = [
        in_one(samples, begins, said) for (samples, begins), said in zip(say_in_one(texts, seed), labels, strict=True)
    ]
    return [utterance for utterance in found if utterance is not None]


def _sentence(rng: np.random.Generator) -> list[str]:
    if rng.random() < 0.3:
        return [str(word) for word in rng.choice(WORDS, int(rng.integers(3, 8)))]
    words = SENTENCES[int(rng.integers(len(SENTENCES)))].split()
    for place in np.flatnonzero(rng.random(len(words)) < 0.15):  # so that no sentence is always the same
        words[place] = str(rng.choice(WORDS))
    return words
