"""Synthetic speech: many voices that truly differ, the same for the same seed; and such voices among recordings."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from digit_detector.audio import NUM_SAMPLES
from digit_detector.errors import DataError, MissingExtraError
from ml_training.config import TrainConfig
from ml_training.data import espeak_worker, tts
from ml_training.data.fsdd import TREE_HASH
from ml_training.data.splits import split_corpus
from ml_training.data.tts import RATIO_WITH_FSDD, mix_synthetic_voices, resolve_synthetic_ratio

pytest.importorskip("espeakng_loader", reason="needs espeakng_loader")


@pytest.fixture(scope="module")
def small():
    return tts.synthesize_digits(seed=3, voices=4, takes=2)


def test_a_corpus_of_digits(small):
    assert len(small) == len(set(small.files)) == 4 * 10 * 2
    assert small.synthetic
    assert "synthetic speech" in small.name
    assert not small.official_split
    assert set(small.speakers) == {f"espeak-{voice}" for voice in tts.VOICES[:4]}
    assert np.bincount(small.labels).tolist() == [8] * 10
    assert set(small.indices) == {0, 1}
    assert small.waveforms.dtype == np.float32
    lengths = small.lengths.reshape(4, 10, 2)
    assert (lengths[..., 0] != lengths[..., 1]).mean() > 0.9, "takes differ"


def test_words_are_audible_and_trimmed(small):
    assert np.abs(small.waveforms).max(axis=1).min() > 0.02
    assert (small.lengths.min() > 800, small.lengths.max() <= NUM_SAMPLES) == (True, True)
    for waveform, length in zip(small.waveforms, small.lengths, strict=True):
        start = (NUM_SAMPLES - length) // 2
        word = waveform[start : start + length]
        assert not waveform[:start].any()
        assert not waveform[start + length :].any()
        assert min(np.abs(word[:400]).max(), np.abs(word[-400:]).max()) > 0.003 * np.abs(word).max()


def test_the_same_seed_gives_the_same_samples(small):
    again = tts.synthesize_digits(seed=3, voices=4, takes=2)
    np.testing.assert_array_equal(small.waveforms, again.waveforms)
    assert small.data_hash == again.data_hash
    assert tts.synthesize_digits(seed=4, voices=4, takes=2).data_hash != small.data_hash


def test_the_default_has_at_least_sixty_voices_and_thousands_of_clips():
    corpus = tts.synthesize_digits()
    assert len(set(corpus.speakers)) >= 60
    assert 2000 <= len(corpus) <= 3000
    assert len({waveform.tobytes() for waveform in corpus.waveforms}) == len(corpus)
    assert (np.abs(corpus.waveforms).max(axis=1) > 1.0).mean() < 0.02


def test_words_come_in_order_by_the_voice_that_is_named():
    texts = [(tts.VOICES[0], "a"), (tts.VOICES[1], "a very long sentence indeed"), (tts.VOICES[0], "a")]
    short, long, again = tts.synthesize_words(texts, seed=3)
    assert len(long) > 2 * max(len(short), len(again))
    assert all(np.isfinite(clip).all() and np.abs(clip).max() > 0.02 for clip in (short, long, again))
    for first, second in zip(tts.synthesize_words(texts, seed=3), (short, long, again), strict=True):
        np.testing.assert_array_equal(first, second)
    assert len(tts.synthesize_words(texts, seed=4)[1]) != len(long)


def test_what_cannot_be_spoken(monkeypatch):
    for voices, takes in ((0, 1), (1, 0), (len(tts.VOICES) + 1, 1)):
        with pytest.raises(ValueError, match="expected 1 to"):
            tts.synthesize_digits(voices=voices, takes=takes)
    with pytest.raises(DataError, match=r"no voice 'nobody'.*--data_dir"):
        tts.synthesize_words([("nobody", "one")], seed=0)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"synthetic speech needs the \[train\] extra"):
        tts.synthesize_digits(voices=1, takes=1)


@pytest.mark.parametrize("library", ["missing.so", espeak_worker.__file__])
def test_a_library_that_does_not_load_is_one_line(library):
    command = [sys.executable, "-I", "-S", espeak_worker.__file__, library, "data", "0"]
    done = subprocess.run(command, input=b"[]", capture_output=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, b"")
    assert len(done.stderr.decode().strip().splitlines()) == 1


# --- voices among recordings ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def recordings(tiny_corpus):
    return dataclasses.replace(tiny_corpus, synthetic=False, name="recordings")


def mixed(corpus, **settings):
    config = TrainConfig(split="random", **settings)  # type: ignore[arg-type]
    split, lines = split_corpus(corpus, config, report=print), []
    together, new = mix_synthetic_voices(corpus, split, config, lines.append)
    return together, split, new, lines


def test_only_the_training_part_gets_them_evenly(recordings):
    corpus, before, after, _ = mixed(recordings, synthetic_ratio=0.3, synthetic_voices=5)
    added = after.train[len(before.train) :]
    assert len(added) / len(after.train) == pytest.approx(0.3, abs=0.005)
    np.testing.assert_array_equal(after.train[: len(before.train)], before.train)
    np.testing.assert_array_equal(after.validation, before.validation)
    np.testing.assert_array_equal(after.test, before.test)
    np.testing.assert_array_equal(added, np.arange(len(recordings), len(corpus)))
    np.testing.assert_array_equal(corpus.waveforms[: len(recordings)], recordings.waveforms)
    assert len(set(corpus.files)) == len(corpus)
    assert np.bincount(corpus.labels[added], minlength=10).min() >= len(added) // 10 - 1
    voices = [corpus.speakers[i] for i in added]
    counts = [voices.count(voice) for voice in set(voices)]
    assert all(voice.startswith("espeak-") for voice in voices)
    assert (len(counts), max(counts) - min(counts) <= 3) == (5, True)
    assert (np.abs(corpus.waveforms[added]).max(axis=1) > 0.01).all()


def test_name_and_hash_include_them(recordings):
    base = {"synthetic_ratio": 0.2, "synthetic_voices": 3}
    corpus, before, after, _ = mixed(recordings, **base)
    count = len(after.train) - len(before.train)
    assert corpus.name == f"recordings with {count} clips of synthetic speech"
    assert not corpus.synthetic
    changes = ({}, {"synthetic_ratio": 0.25}, {"synthetic_voices": 4}, {"seed": 1})
    hashes = [mixed(recordings, **{**base, **change})[0].data_hash for change in changes]
    assert hashes[0] == corpus.data_hash != recordings.data_hash
    assert len(set(hashes)) == 4


def test_the_default_share_depends_on_the_recordings(recordings, tiny_corpus):
    def share(corpus, **settings):
        return resolve_synthetic_ratio(TrainConfig(**settings), corpus).synthetic_ratio  # type: ignore[arg-type]

    fsdd = dataclasses.replace(recordings, data_hash=TREE_HASH)
    beside = dataclasses.replace(recordings, sources=("other", TREE_HASH))
    assert share(fsdd) == share(beside) == share(recordings, dataset="fsdd") == RATIO_WITH_FSDD
    assert share(recordings) == share(tiny_corpus) == share(tiny_corpus, dataset="synthetic") == 0.0
    assert (share(fsdd, synthetic_ratio=0.0), share(recordings, synthetic_ratio=0.4)) == (0.0, 0.4)


def test_none_are_added_without_a_share_to_synthetic_clips_or_without_synthesis(recordings, tiny_corpus, monkeypatch):
    corpus, before, after, lines = mixed(recordings)
    assert (corpus, after, lines) == (recordings, before, [])
    corpus, _, _, lines = mixed(tiny_corpus, synthetic_ratio=0.5)
    assert corpus is tiny_corpus
    assert "synthetic already" in lines[0]
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(DataError, match=r"\[train\] extra.*--synthetic_ratio 0"):
        mixed(recordings, synthetic_ratio=0.5)
