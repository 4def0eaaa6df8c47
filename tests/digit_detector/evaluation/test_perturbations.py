"""Perturbations of whole recordings: lengths, levels, what stays the same."""

from __future__ import annotations

import numpy as np
import pytest

from digit_detector.errors import ConfigError, DataError
from digit_detector.evaluation.perturbations import CLEAN, CODECS, change_tempo, parse_perturbation
from digit_detector.evaluation.streams import find_edges
from ml_training.data.tts import VOICES, synthesize_words

RATE = 8000


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    """A word between two silences."""
    (word,) = synthesize_words([(VOICES[0], "seven nine")], seed=3)
    return np.concatenate([np.zeros(4000), word, np.zeros(4000)]).astype(np.float32)


def apply(text: str, samples: np.ndarray, noises: list[np.ndarray] | None = None) -> np.ndarray:
    return parse_perturbation(text).apply(samples, np.random.default_rng(0), noises or [])


@pytest.mark.parametrize("tempo", [0.8, 1.0, 1.3, 1.5])
def test_tempo_changes_the_length_and_not_the_pitch(spoken, tempo):
    changed = change_tempo(spoken, tempo)
    assert (len(changed), changed.dtype) == (round(len(spoken) / tempo), np.float32)
    edges = [edge / tempo for edge in find_edges(spoken)]
    assert find_edges(changed) == pytest.approx(edges, abs=0.05 * RATE)  # the onset of a faint "s"
    assert np.square(changed).mean() == pytest.approx(np.square(spoken).mean(), rel=0.25)
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE).astype(np.float32)
    stretched = change_tempo(tone, tempo)[1000:7000]
    assert np.abs(np.fft.rfft(stretched)).argmax() * RATE / 6000 == pytest.approx(440, abs=3)
    assert np.abs(stretched).max() == pytest.approx(1.0, abs=0.1)


def test_packets_are_lost_in_whole(spoken):
    samples = np.ones(160 * 1000 + 50, dtype=np.float32)
    kept = apply("packet_loss=0.2", samples)
    assert 0.75 < kept.mean() < 0.85
    packets = kept[: 160 * 1000].reshape(1000, 160)
    assert set(packets.mean(axis=1)) == {0.0, 1.0}
    assert np.array_equal(apply("packet_loss=0", spoken), spoken)


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_keep_length_and_level(spoken, codec):
    decoded = apply(f"codec={codec}", spoken)
    assert (len(decoded), decoded.dtype) == (len(spoken), np.float32)
    assert not np.array_equal(decoded, spoken)
    assert np.square(decoded).mean() == pytest.approx(np.square(spoken).mean(), rel=0.3)
    assert find_edges(decoded) == pytest.approx(find_edges(spoken), abs=0.06 * RATE)


def test_levels_offset_echo_and_a_late_start(spoken):
    for level in (0.0, -20.0, -60.0):
        assert 20 * np.log10(np.abs(apply(f"level={level}", spoken)).max()) == pytest.approx(level, abs=0.3)
    steps = apply("level=-60", spoken) * 32767
    assert steps == pytest.approx(np.round(steps), abs=1e-3)
    assert np.median(apply("dc_offset=0.1", spoken)) == pytest.approx(0.1 + np.median(spoken), abs=1e-3)
    echoed = apply("echo=-6", spoken)
    assert len(echoed) == len(spoken) + 2400
    assert np.abs(echoed[2400:]).max() >= 0.5 * np.abs(spoken).max()
    assert echoed[:2400] == pytest.approx(spoken[:2400])
    late = parse_perturbation("missing_start=0.1")
    assert np.array_equal(late.apply(spoken, np.random.default_rng(0)), spoken[800:])
    assert (late.map_time(0.05), late.map_time(1.0)) == (0.0, pytest.approx(0.9))
    assert CLEAN.apply(spoken, np.random.default_rng(0)) is spoken


def test_noise_has_its_ratio_to_the_speech(spoken):
    noise = np.random.default_rng(1).normal(0, 0.1, 3 * RATE).astype(np.float32)
    first, last = find_edges(spoken)
    added = apply("snr=10", spoken, [noise]) - spoken
    ratio = np.square(spoken[first:last]).mean() / np.square(added[first:last]).mean()
    assert 10 * np.log10(ratio) == pytest.approx(10, abs=0.1)
    with pytest.raises(DataError, match="noise_dir"):
        apply("snr=10", spoken)


@pytest.mark.parametrize("text", ["tempo", "tempo=9", "tempo=fast", "speed=2", "codec=morse", "snr=nan", "=1"])
def test_what_is_not_known_is_refused(text):
    with pytest.raises(ConfigError, match="expected"):
        parse_perturbation(text)


@pytest.mark.parametrize("text", ["tempo=1.5", "packet_loss=0.05", "codec=gsm", "level=-40", "missing_start=0.1"])
def test_names_are_as_typed(text):
    assert parse_perturbation(text).name == text
