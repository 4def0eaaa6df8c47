"""Parts of a corpus: no clip in two of them, none forgotten, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digit_detector.errors import DataError
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_folder
from ml_training.data.splits import split_corpus


def corpus_of(clips, official=True):
    """A corpus of silent clips (digit, speaker, index)."""
    return Corpus(
        name="test", waveforms=np.broadcast_to(np.float32(0), (len(clips), 8000)),
        lengths=np.full(len(clips), 8000), labels=np.array([digit for digit, _, _ in clips], dtype=np.int64),
        speakers=tuple(speaker for _, speaker, _ in clips),
        indices=np.array([index for _, _, index in clips], dtype=np.int64),
        files=tuple("{}_{}_{}.wav".format(*clip) for clip in clips),
        data_hash="", synthetic=False, official_split=official,
    )  # fmt: skip


def grid(speakers=6, recordings=50, official=True):
    clips = [(digit, f"s{s}", index) for digit in range(10) for s in range(speakers) for index in range(recordings)]
    return corpus_of(clips, official)


def check_parts(split, clips):
    everything = np.concatenate([split.train, split.validation, split.test])
    assert len(everything) == clips
    np.testing.assert_array_equal(np.sort(everything), np.arange(clips))  # each exactly once
    assert min(split.parts.values()) > 0
    assert sum(split.parts.values()) == clips


CONFIGS = {
    "official": TrainConfig(), "random": TrainConfig(split="random"),
    "speaker": TrainConfig(split="speaker", held_out_speaker="s1"),
}  # fmt: skip

clip = st.tuples(st.integers(0, 9), st.sampled_from(["s1", "s2", "s3"]), st.integers(0, 60))


def too_small(clips, name, share):
    """Whether a part may be left without a clip."""
    if name == "random":
        return len(clips) < 10
    test = sum(index < 5 if name == "official" else speaker == "s1" for _, speaker, index in clips)
    rest = len(clips) - test
    return test == 0 or share * rest < 1 or rest < 2


@given(
    clips=st.lists(clip, max_size=200), name=st.sampled_from(sorted(CONFIGS)), seed=st.integers(0, 2**31 - 1),
    share=st.floats(0.01, 0.5),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_no_clip_is_in_two_parts_and_none_is_lost(clips, name, seed, share):
    corpus = corpus_of(clips)
    settings = {**vars(CONFIGS[name]), "seed": seed, "validation_ratio": share}
    try:
        split = split_corpus(corpus, TrainConfig(**settings))
    except DataError:
        assert too_small(clips, name, share)
        return
    check_parts(split, len(clips))
    again = split_corpus(corpus, TrainConfig(**settings))
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(split, part), getattr(again, part))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_seeds_decide(name):
    first, again, other = (
        split_corpus(grid(), TrainConfig(**{**vars(CONFIGS[name]), "seed": seed})) for seed in (1, 1, 2)
    )
    assert first.name == name
    np.testing.assert_array_equal(first.validation, again.validation)
    assert not np.array_equal(first.validation, other.validation)


def counts(corpus, part):
    """(10 digits, speakers) clips."""
    names = sorted(set(corpus.speakers))
    table = np.zeros((10, len(names)), dtype=int)
    for row in part:
        table[corpus.labels[row], names.index(corpus.speakers[row])] += 1
    return table


def test_official_is_fsdds():
    corpus = grid()
    split = split_corpus(corpus, TrainConfig())
    assert split.parts == {"train": 2430, "validation": 270, "test": 300}
    assert set(corpus.indices[split.test]) == {0, 1, 2, 3, 4}
    assert (counts(corpus, split.test) == 5).all()
    validation = counts(corpus, split.validation)
    assert (validation.min(), validation.max()) == (4, 5)
    larger = split_corpus(corpus, TrainConfig(validation_ratio=0.3))
    assert larger.parts == {"train": 1890, "validation": 810, "test": 300}


def test_random_is_70_10_20_of_every_digit():
    corpus = grid()
    split = split_corpus(corpus, TrainConfig(split="random"))
    assert split.parts == {"train": 2100, "validation": 300, "test": 600}
    assert (counts(corpus, split.test).sum(axis=1) == 60).all()
    assert (counts(corpus, split.validation).sum(axis=1) == 30).all()
    assert set(corpus.indices[split.test]) != {0, 1, 2, 3, 4}


def test_one_speaker_is_held_out():
    corpus = grid()
    split = split_corpus(corpus, TrainConfig(split="speaker", held_out_speaker="s4"))
    speakers = np.array(corpus.speakers)
    assert set(speakers[split.test]) == {"s4"}
    assert len(split.test) == 500
    assert "s4" not in speakers[np.concatenate([split.train, split.validation])]
    assert set(counts(corpus, split.validation)[:, [0, 1, 2, 3, 5]].ravel()) == {5}


def test_without_an_official_test_part_the_split_is_random_and_says_so():
    lines: list[str] = []
    corpus = grid(official=False)
    split = split_corpus(corpus, TrainConfig(), lines.append)
    assert split.name == "random"
    assert len(lines) == 1
    assert "no official test part" in lines[0]
    np.testing.assert_array_equal(split.test, split_corpus(corpus, TrainConfig(split="random"), lines.append).test)
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("corpus", "config", "words"),
    [
        (corpus_of([(0, "a", 0)]), TrainConfig(), "train and validation"),
        (corpus_of([(0, "a", 7), (0, "a", 8)]), TrainConfig(), "test"),
        (grid(speakers=1), TrainConfig(split="speaker", held_out_speaker="s0"), "has one speaker: leaving a speaker"),
        (corpus_of([(0, "a", 0), (1, "a", 1)]), TrainConfig(split="random"), "leaves nothing for"),
        (corpus_of([]), TrainConfig(), "train and validation and test"),
        (grid(3), TrainConfig(split="speaker", held_out_speaker="s9"), "no speaker 's9' in test: .*s0, s1"),
    ],
)
def test_a_split_that_cannot_be_is_an_error(corpus, config, words):
    with pytest.raises(DataError, match=words):
        split_corpus(corpus, config)


@pytest.mark.real_data
@pytest.mark.parametrize("speaker", [None, "theo"])
def test_real_fsdd(fsdd_dir, speaker):
    corpus = load_folder(fsdd_dir)
    config = TrainConfig(split="speaker", held_out_speaker=speaker) if speaker else TrainConfig()
    split = split_corpus(corpus, config)
    check_parts(split, 3000)
    assert len(split.test) == (500 if speaker else 300)
