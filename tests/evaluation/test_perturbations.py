"""Each change does what its name says, measured on what comes out."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector.errors import DataError
from ml_training.data.corpus import Corpus
from ml_training.evaluation import perturbations as p


@pytest.fixture(scope="module")
def clips(tiny_corpus: Corpus) -> np.ndarray:
    return tiny_corpus.waveforms[::7]


def tone(hertz: float) -> np.ndarray:
    """A word of half a second in the middle: (1, 8000)."""
    clip = np.zeros((1, 8000), dtype=np.float32)
    time = np.arange(4000) / 8000
    clip[0, 2000:6000] = 0.5 * np.sin(2 * np.pi * hertz * time) * np.hanning(4000)
    return clip


def level(samples: np.ndarray) -> float:
    return float(10 * np.log10(np.square(samples, dtype=np.float64).mean() + 1e-20))


def slope(noise: np.ndarray) -> float:
    """dB an octave between 100 and 3200 Hz."""
    power = np.square(np.abs(np.fft.rfft(noise, axis=1))).mean(axis=0)
    octaves = [10 * np.log10(power[low : 2 * low].mean()) for low in (100, 200, 400, 800, 1600)]
    return float(np.polyfit(range(5), octaves, 1)[0])


def test_the_word_is_where_it_was_put() -> None:
    clip = np.zeros((2, 8000), dtype=np.float32)
    clip[0, 3200:4800] = 0.1
    clip[1, 1600:1760] = 0.5
    clip[1, 6400:6560] = 0.5 * 10 ** (-40 / 20)  # 40 dB down: not of the word
    frames = p.word_frames(clip)
    assert np.flatnonzero(frames[0]).tolist() == list(range(20, 30))
    assert np.flatnonzero(frames[1]).tolist() == [10]
    first, last = p.word_span(clip)
    assert (first.tolist(), last.tolist()) == ([3200, 1600], [4800, 1760])
    assert not p.word_frames(np.zeros((1, 8000), dtype=np.float32)).any()


@pytest.mark.parametrize("snr", p.SNRS)
@pytest.mark.parametrize("colour", p.COLOURS)
def test_the_ratio_over_the_word_is_the_one_asked_for(clips: np.ndarray, colour: str, snr: float) -> None:
    noise = p.coloured_noise(len(clips), colour, np.random.default_rng(1))
    added = p.mix(clips, noise, snr) - clips
    # measured anew, without the module's own functions
    for clip, its_noise in zip(clips, added, strict=True):
        power = [float(np.square(clip[i : i + 160], dtype=np.float64).mean()) for i in range(0, 8000, 160)]
        word = [i for i, energy in enumerate(power) if energy >= max(power) / 1000]
        heard = np.mean([np.square(its_noise[160 * i : 160 * i + 160], dtype=np.float64).mean() for i in word])
        assert 10 * np.log10(np.mean([power[i] for i in word]) / heard) == pytest.approx(snr, abs=0.02)


@pytest.mark.parametrize(("colour", "expected"), [("white", 0.0), ("pink", -3.01), ("brown", -6.02)])
def test_colours_fall_as_they_should(colour: str, expected: float) -> None:
    noise = p.coloured_noise(60, colour, np.random.default_rng(0))
    assert slope(noise) == pytest.approx(expected, abs=0.25)
    assert np.abs(np.fft.rfft(noise, axis=1)[:, :20]).max() < 1e-3 * np.abs(np.fft.rfft(noise, axis=1)).max()


def test_the_telephone_passes_speech_and_stops_the_rest() -> None:
    low, high = p.BANDS[p.TELEPHONE]
    assert (low, high) == (300, 3400)
    for hertz in (400, 1000, 3200):
        assert level(p.band_limit(tone(hertz), low, high)) - level(tone(hertz)) == pytest.approx(0, abs=0.3)
    for hertz in (100, 200, 3600, 3900):
        assert level(p.band_limit(tone(hertz), low, high)) - level(tone(hertz)) < -30


@pytest.mark.parametrize("depth", p.CLIPPING)
def test_clipping_cuts_at_so_many_decibels_below_the_peak(clips: np.ndarray, depth: float) -> None:
    cut = p.cut_peaks(clips, depth)
    fall = 20 * np.log10(np.abs(cut).max(axis=1) / np.abs(clips).max(axis=1))
    np.testing.assert_allclose(fall, -depth, atol=1e-3)
    quiet = np.abs(clips) < np.abs(cut).max(axis=1, keepdims=True) * 0.999
    np.testing.assert_array_equal(cut[quiet], clips[quiet])


@pytest.mark.parametrize("rt60", [0.1, 0.2, 0.4])
def test_a_room_rings_for_its_reverberation_time(rt60: float) -> None:
    click = np.zeros((200, 8000), dtype=np.float32)
    click[:, 100] = 1.0
    wet = p.reverberate(click, p.room_noise(200, np.random.default_rng(0)), rt60)
    assert not wet[:, :99].round(5).any(), "nothing before the sound itself"
    tail = np.square(wet[:, 130:], dtype=np.float64).mean(axis=0)
    decibels = 10 * np.log10(np.array([tail[i : i + 80].mean() for i in range(0, int(6000 * rt60), 80)]))
    per_second = float(np.polyfit(np.arange(len(decibels)) * 0.01, decibels, 1)[0])
    assert per_second == pytest.approx(-60 / rt60, rel=0.05)
    direct, rest = np.square(wet[:, 100]).mean(), np.square(wet[:, 101:], dtype=np.float64).sum(axis=1).mean()
    assert 10 * np.log10(direct / rest) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("speed", p.SPEEDS)
def test_speed_moves_pitch_and_length(speed: float) -> None:
    played = p.change_speed(tone(1000), speed)
    spectrum = np.abs(np.fft.rfft(played[0]))
    assert spectrum.argmax() == pytest.approx(1000 * speed, abs=3)
    loud = np.flatnonzero(np.abs(played[0]) > 0.05)
    before = np.flatnonzero(np.abs(tone(1000)[0]) > 0.05)
    assert (loud[-1] - loud[0]) * speed == pytest.approx(before[-1] - before[0], rel=0.03)
    assert (loud[-1] + loud[0]) / 2 == pytest.approx(4000, abs=20)
    assert np.square(played).sum() * speed == pytest.approx(np.square(tone(1000)).sum(), rel=0.02)


@pytest.mark.parametrize("peak", p.LEVELS)
def test_level_sets_the_peak_and_rounds_to_16_bits(clips: np.ndarray, peak: float) -> None:
    heard = p.set_level(clips, peak)
    np.testing.assert_allclose(20 * np.log10(np.abs(heard).max(axis=1)), peak, atol=0.05)
    np.testing.assert_allclose(heard * 32767, np.round(heard * 32767), atol=1e-2)


@pytest.mark.parametrize("place", p.PLACES)
def test_a_word_lies_where_it_is_put_and_stays_the_same(clips: np.ndarray, place: float) -> None:
    moved = p.place_word(clips, place)
    first, last = p.word_span(clips)
    for row in range(len(clips)):
        begin = round(place * (8000 - int(last[row] - first[row])))
        word = clips[row, first[row] : last[row]]
        np.testing.assert_array_equal(moved[row, begin : begin + len(word)], word)
        assert sorted(moved[row]) == sorted(clips[row]), "nothing is lost"


# --- recorded backgrounds ------------------------------------------------------------------------


@pytest.fixture
def noises(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    (tmp_path / "noise" / "sub").mkdir(parents=True)
    soundfile.write(tmp_path / "noise" / "rain.wav", 0.1 * rng.standard_normal(40_000), 8000)
    barks = 0.3 * rng.standard_normal(40_000)
    barks[:36_000] = 0.0  # one bark in five seconds
    soundfile.write(tmp_path / "noise" / "sub" / "dog.wav", barks, 8000)
    soundfile.write(tmp_path / "noise" / "short.wav", 0.1 * rng.standard_normal(3000), 8000)
    (tmp_path / "noise" / "broken.wav").write_bytes(b"nothing")
    (tmp_path / "noise" / "._rain.wav").write_bytes(b"hidden")
    return tmp_path / "noise"


def test_recordings_are_found_and_the_broken_one_is_named(noises: Path, tmp_path: Path) -> None:
    found = p.load_recordings(noises)
    assert found.files == ("rain.wav", "short.wav", "sub/dog.wav")
    assert [len(sound) >= 8000 for sound in found.samples] == [True] * 3
    (skipped,) = found.skipped
    assert skipped.startswith("broken.wav: ")
    with pytest.raises(DataError, match="is not a folder"):
        p.load_recordings(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no background recording"):
        p.load_recordings(tmp_path / "empty")


def test_each_clip_gets_a_stated_piece_that_sounds_while_the_word_does(clips: np.ndarray, noises: Path) -> None:
    found = p.load_recordings(noises)
    noise, drawn = p.draw_recordings(found, clips, np.random.default_rng(0))
    assert set(Counter(which["file"] for which in drawn)) == set(found.files)
    for row, which in enumerate(drawn):
        sound = found.samples[found.files.index(which["file"])]
        np.testing.assert_array_equal(noise[row], sound[which["start"] : which["start"] + 8000])
    mixed = p.mix(clips, noise, 0.0)
    added = p.word_power(mixed - clips, p.word_frames(clips))
    np.testing.assert_allclose(added, p.word_power(clips, p.word_frames(clips)), rtol=1e-3)
    assert np.isfinite(mixed).all()


@pytest.mark.parametrize("place", [3, 15_000, 30 * 8000 - 3])
def test_a_click_in_a_long_silence_is_noise_at_the_level_asked_for(
    clips: np.ndarray, tmp_path: Path, place: int
) -> None:
    click = np.zeros(30 * 8000)
    click[place - 3 : place + 3] = [0.1, -0.2, 0.4, -0.4, 0.2, -0.1]
    soundfile.write(tmp_path / "click.wav", click, 8000)
    noise, _ = p.draw_recordings(p.load_recordings(tmp_path), clips, np.random.default_rng(0))
    mixed = p.mix(clips, noise, 0.0)
    frames = p.word_frames(clips)
    np.testing.assert_allclose(p.word_power(mixed - clips, frames), p.word_power(clips, frames), rtol=1e-3)
    assert np.abs(mixed).max() < 100, "and none that deafens beside the word"


# --- all of them ---------------------------------------------------------------------------------


def test_every_condition_is_there_and_the_seed_decides_it(clips: np.ndarray, noises: Path) -> None:
    recordings = p.load_recordings(noises)
    drawn: list[dict[str, object]] = []
    runs = [list(p.perturbed(clips[:5], seed, recordings, drawn if seed == 1 else None)) for seed in (1, 1, 2)]
    kinds = Counter(condition.kind for condition, _ in runs[0])
    assert kinds == {
        "clean": 1, "white": 5, "pink": 5, "brown": 5, "recorded": 5, "band": 4, "clipping": 5, "reverberation": 5,
        "speed": 7, "level": 5, "place": 5,
    }  # fmt: skip
    assert len(drawn) == 2 * 5
    assert drawn[:5] == drawn[5:]
    chance = {"white", "pink", "brown", "recorded", "reverberation"}
    for (condition, once), (_, again), (_, other) in zip(*runs, strict=True):
        assert once.shape == (5, 8000)
        assert once.dtype == np.float32
        assert np.isfinite(once).all()
        np.testing.assert_array_equal(once, again)
        assert (once != other).any() == (condition.kind in chance), condition


def test_points_of_a_curve_differ_in_severity_alone(clips: np.ndarray) -> None:
    added = [sound - clips[:3] for condition, sound in p.perturbed(clips[:3], 0) if condition.kind == "pink"]
    for quieter, louder in itertools.pairwise(added):
        cosine = (quieter * louder).sum() / np.sqrt(np.square(quieter).sum() * np.square(louder).sum())
        assert cosine > 0.999


def test_the_clips_themselves_stay_as_they_are(clips: np.ndarray) -> None:
    before = clips.copy()
    for _ in p.perturbed(clips, 0):
        pass
    np.testing.assert_array_equal(clips, before)
