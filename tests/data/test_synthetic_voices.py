"""Synthetic voices come to the training part, in the share that was asked for, and nowhere else."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

from digit_detector.errors import DataError
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.data.fsdd import TREE_HASH
from ml_training.data.splits import Split, split_corpus
from ml_training.data.tts import RATIO_WITH_FSDD, mix_synthetic_voices, resolve_synthetic_share


@pytest.fixture(scope="module")
def recordings(tiny_corpus: Corpus) -> Corpus:
    return dataclasses.replace(tiny_corpus, synthetic=False, name="recordings")


def mixed(corpus: Corpus, **settings: object) -> tuple[Corpus, Split, Split, list[str]]:
    config = TrainConfig(split="random", **settings)  # type: ignore[arg-type]
    split, said = split_corpus(corpus, config, report=print), []
    together, new = mix_synthetic_voices(corpus, split, config, said.append)
    return together, split, new, said


def test_only_the_training_part_gets_them(recordings: Corpus) -> None:
    corpus, before, after, _ = mixed(recordings, synthetic_share=0.3, synthetic_voices=5)
    added = after.train[len(before.train) :]
    assert len(added) == round(0.3 / 0.7 * len(before.train))
    assert len(added) / len(after.train) == pytest.approx(0.3, abs=0.005)
    assert np.array_equal(after.train[: len(before.train)], before.train)
    assert np.array_equal(after.validation, before.validation)
    assert np.array_equal(after.test, before.test)
    assert np.array_equal(added, np.arange(len(recordings), len(corpus)))
    assert np.array_equal(corpus.waveforms[: len(recordings)], recordings.waveforms)
    assert all(corpus.speakers[i].startswith("espeak-") for i in added)
    assert len(set(corpus.files)) == len(corpus)
    assert np.bincount(corpus.labels[added], minlength=10).min() >= len(added) // 10 - 1
    voices = [corpus.speakers[i] for i in added]
    assert len(set(voices)) == 5
    counts = [voices.count(voice) for voice in set(voices)]
    assert max(counts) - min(counts) <= 3
    assert (np.abs(corpus.waveforms[added]).max(axis=1) > 0.01).all()


def test_name_and_hash_tell_of_them(recordings: Corpus) -> None:
    corpus, _, after, _ = mixed(recordings, synthetic_share=0.2, synthetic_voices=3)
    again, *_ = mixed(recordings, synthetic_share=0.2, synthetic_voices=3)
    count = after.parts["train"] - (len(recordings) - after.parts["validation"] - after.parts["test"])
    assert corpus.name == f"recordings with {count} clips of synthetic speech"
    assert not corpus.synthetic
    assert corpus.data_hash == again.data_hash != recordings.data_hash
    assert np.array_equal(corpus.waveforms, again.waveforms)
    hashes = {
        mixed(recordings, **{"synthetic_share": 0.2, "synthetic_voices": 3, **change})[0].data_hash
        for change in ({}, {"synthetic_share": 0.25}, {"synthetic_voices": 4}, {"seed": 1})
    }
    assert len(hashes) == 4


def test_what_is_left_open_depends_on_the_recordings(recordings: Corpus, tiny_corpus: Corpus) -> None:
    def share(corpus: Corpus, **settings: object) -> float | None:
        return resolve_synthetic_share(TrainConfig(**settings), corpus).synthetic_share  # type: ignore[arg-type]

    fsdd = dataclasses.replace(recordings, data_hash=TREE_HASH)
    beside = dataclasses.replace(recordings, sources=("other", TREE_HASH))
    assert share(fsdd) == share(beside) == share(recordings, dataset="fsdd") == RATIO_WITH_FSDD
    assert share(recordings) == share(tiny_corpus) == share(tiny_corpus, dataset="synthetic") == 0.0
    assert share(fsdd, synthetic_share=0.0) == 0.0
    assert share(recordings, synthetic_share=0.4) == 0.4


def test_without_speech_synthesis_the_way_out_is_named(recordings: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(DataError, match=r"\[train\] extra.*--synthetic_share 0"):
        mixed(recordings, synthetic_share=0.5)


def test_none_wanted_is_none_added(recordings: Corpus) -> None:
    corpus, before, after, said = mixed(recordings)
    assert corpus is recordings
    assert after is before
    assert not said


def test_synthetic_clips_get_no_more_of_them(tiny_corpus: Corpus) -> None:
    corpus, _, _, said = mixed(tiny_corpus, synthetic_share=0.5)
    assert corpus is tiny_corpus
    assert "synthetic already" in said[0]
