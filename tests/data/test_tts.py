"""Synthetic speech: many voices that truly differ, the same for the same seed."""

from __future__ import annotations

import builtins
import subprocess
import sys

import numpy as np
import pytest

from digit_detector.audio import NUM_SAMPLES
from digit_detector.errors import DataError, MissingExtraError
from ml_training.data import espeak_worker, tts

pytest.importorskip("espeakng_loader", reason="needs espeakng_loader")


@pytest.fixture(scope="module")
def small():
    return tts.synthesize_digits(seed=3, voices=4, takes=2)


def test_a_corpus_of_digits(small):
    assert len(small) == 4 * 10 * 2
    assert small.synthetic
    assert "synthetic speech" in small.name
    assert not small.official_split
    assert set(small.speakers) == {f"espeak-{voice}" for voice in tts.VOICES[:4]}
    assert np.bincount(small.labels).tolist() == [8] * 10
    assert set(small.indices) == {0, 1}
    assert len(set(small.files)) == len(small)
    assert small.waveforms.dtype == np.float32
    assert np.isfinite(small.waveforms).all()


def test_words_are_audible_and_trimmed(small):
    assert np.abs(small.waveforms).max(axis=1).min() > 0.02
    assert small.lengths.min() > 800
    assert small.lengths.max() <= NUM_SAMPLES
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


def test_takes_differ_in_length_and_sound(small):
    lengths = small.lengths.reshape(4, 10, 2)
    assert (lengths[..., 0] != lengths[..., 1]).mean() > 0.9
    assert len({waveform.tobytes() for waveform in small.waveforms}) == len(small)


def test_the_default_has_at_least_sixty_voices_and_thousands_of_clips():
    corpus = tts.synthesize_digits()
    assert len(set(corpus.speakers)) >= 60
    assert 2000 <= len(corpus) <= 3000
    assert len({waveform.tobytes() for waveform in corpus.waveforms}) == len(corpus)
    assert (np.abs(corpus.waveforms).max(axis=1) > 1.0).mean() < 0.02


def _timbre(samples):
    """(T,) -> (12, 24): log energy in bands of 150 Hz at 12 moments of the word, level taken out."""
    word = tts._to_clip(samples)
    starts = np.linspace(0, len(word) - 256, 12).astype(int)
    frames = np.stack([word[start : start + 256] for start in starts]) * np.hanning(256)
    power = np.abs(np.fft.rfft(frames, axis=1)[:, 3:123]).reshape(12, 24, 5) ** 2
    logs = 10 * np.log10(power.mean(axis=2) + 1e-6 * power.max())
    return logs - logs.max()


def test_voices_truly_differ():
    """At one speed and pitch, every two voices differ more than a voice differs from itself.

    espeak-ng never says a word twice with the same samples, so unequal samples would prove nothing.
    """
    voices = tts.VOICES[: tts.DEFAULT_VOICES]
    spoken = tts._speak([tts._Request(voice, "seven", 170, 50, 50) for voice in voices for _ in range(2)], seed=0)
    timbres = np.stack([_timbre(samples) for samples, _ in spoken]).reshape(len(voices), 2, -1)
    apart = np.sqrt(np.square(timbres[:, None, 0] - timbres[None, :, 0]).mean(axis=-1))
    np.fill_diagonal(apart, np.inf)
    within = np.sqrt(np.square(timbres[:, 0] - timbres[:, 1]).mean(axis=-1))
    assert len(voices) >= 60
    assert apart.min() > 2.5  # dB
    assert (apart.min(axis=1) > within).all()


def test_other_words_are_said_in_order_by_the_voice_that_is_named():
    texts = [
        (tts.VOICES[0], "a"),
        (tts.VOICES[1], "a very long sentence indeed"),
        (tts.VOICES[0], "a"),
    ]
    short, long, again = tts.synthesize_words(texts, seed=3)
    assert len(long) > 2 * max(len(short), len(again))
    assert all(np.isfinite(clip).all() and np.abs(clip).max() > 0.02 for clip in (short, long, again))
    for first, second in zip(tts.synthesize_words(texts, seed=3), (short, long, again), strict=True):
        np.testing.assert_array_equal(first, second)
    assert len(tts.synthesize_words(texts, seed=4)[1]) != len(long)


@pytest.mark.parametrize(("voices", "takes"), [(0, 1), (1, 0), (len(tts.VOICES) + 1, 1)])
def test_impossible_sizes_are_refused(voices, takes):
    with pytest.raises(ValueError, match="expected 1 to"):
        tts.synthesize_digits(voices=voices, takes=takes)


def test_an_unknown_voice_is_a_clear_error():
    with pytest.raises(DataError, match=r"no voice 'nobody'.*--data_dir"):
        tts._speak([tts._Request("nobody", "one", 170, 50, 50)], seed=0)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "espeakng_loader":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"synthetic speech needs the \[train\] extra"):
        tts.synthesize_digits(voices=1, takes=1)


@pytest.mark.parametrize("library", ["missing.so", espeak_worker.__file__])
def test_a_library_that_does_not_load_is_one_line(library):
    command = [sys.executable, "-I", "-S", espeak_worker.__file__, library, "data", "0"]
    done = subprocess.run(command, input=b"[]", capture_output=True, timeout=30)
    assert done.returncode == 1
    assert done.stdout == b""
    assert len(done.stderr.decode().strip().splitlines()) == 1
