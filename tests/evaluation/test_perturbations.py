"""Each perturbation measured on its output."""

import itertools
from collections import Counter

import numpy as np
import pytest
import soundfile

from digit_detector.errors import DataError
from ml_training.evaluation import perturbations as p


@pytest.fixture(scope="module")
def clips(tiny_corpus):
    return tiny_corpus.waveforms[::7]


def tone(hertz):
    """A word of half a second in the middle: (1, 8000)."""
    clip = np.zeros((1, 8000), dtype=np.float32)
    clip[0, 2000:6000] = 0.5 * np.sin(2 * np.pi * hertz * np.arange(4000) / 8000) * np.hanning(4000)
    return clip


def level(samples):
    return float(10 * np.log10(np.square(samples, dtype=np.float64).mean() + 1e-20))


def test_the_word_is_found():
    clip = np.zeros((2, 8000), dtype=np.float32)
    clip[0, 3200:4800] = 0.1
    clip[1, 1600:1760] = 0.5
    clip[1, 6400:6560] = 0.5 * 10 ** (-40 / 20)  # 40 dB down
    frames = p.word_frames(clip)
    assert np.flatnonzero(frames[0]).tolist() == list(range(20, 30))
    assert np.flatnonzero(frames[1]).tolist() == [10]
    first, last = p.word_span(clip)
    assert (first.tolist(), last.tolist()) == ([3200, 1600], [4800, 1760])
    assert not p.word_frames(np.zeros((1, 8000), dtype=np.float32)).any()


@pytest.mark.parametrize(("colour", "slope"), [("white", 0.0), ("pink", -3.01), ("brown", -6.02)])
def test_noise_has_its_colour_and_its_ratio_over_the_word(clips, colour, slope):
    noise = p.coloured_noise(60, colour, np.random.default_rng(0))
    power = np.square(np.abs(np.fft.rfft(noise, axis=1))).mean(axis=0)
    octaves = [10 * np.log10(power[low : 2 * low].mean()) for low in (100, 200, 400, 800, 1600)]
    assert np.polyfit(range(5), octaves, 1)[0] == pytest.approx(slope, abs=0.25), "dB an octave"
    assert power[:20].max() < 1e-6 * power.max()
    for snr in p.SNRS:
        added = p.mix(clips, noise[: len(clips)], snr) - clips
        for clip, its_noise in zip(clips, added, strict=True):  # without the functions under test
            frames = np.square(clip.reshape(50, 160), dtype=np.float64).mean(axis=1)
            word = frames >= frames.max() / 1000
            noise_power = np.square(its_noise.reshape(50, 160), dtype=np.float64).mean(axis=1)[word].mean()
            assert 10 * np.log10(frames[word].mean() / noise_power) == pytest.approx(snr, abs=0.02)


def test_the_telephone_band_passes_speech_and_stops_the_rest():
    low, high = p.BANDS[1]
    for hertz in (400, 1000, 3200):
        assert level(p.band_limit(tone(hertz), low, high)) - level(tone(hertz)) == pytest.approx(0, abs=0.3)
    for hertz in (100, 200, 3600, 3900):
        assert level(p.band_limit(tone(hertz), low, high)) - level(tone(hertz)) < -30


def test_clipping_and_level_set_the_peak(clips):
    for depth in p.CLIPPING:
        cut = p.clip_peaks(clips, depth)
        fall = 20 * np.log10(np.abs(cut).max(axis=1) / np.abs(clips).max(axis=1))
        np.testing.assert_allclose(fall, -depth, atol=1e-3)
        quiet = np.abs(clips) < np.abs(cut).max(axis=1, keepdims=True) * 0.999
        np.testing.assert_array_equal(cut[quiet], clips[quiet])
    for peak in p.LEVELS:
        scaled = p.set_level(clips, peak)
        np.testing.assert_allclose(20 * np.log10(np.abs(scaled).max(axis=1)), peak, atol=0.05)
        np.testing.assert_allclose(scaled * 32767, np.round(scaled * 32767), atol=1e-2)


@pytest.mark.parametrize("rt60", [0.1, 0.2, 0.4])
def test_a_room_has_its_reverberation_time(rt60):
    click = np.zeros((200, 8000), dtype=np.float32)
    click[:, 100] = 1.0
    wet = p.reverberate(click, np.random.default_rng(0).standard_normal((200, 8000), dtype=np.float32), rt60)
    assert not wet[:, :99].round(5).any(), "nothing before the direct sound"
    tail = np.square(wet[:, 130:], dtype=np.float64).mean(axis=0)
    decibels = 10 * np.log10(np.array([tail[i : i + 80].mean() for i in range(0, int(6000 * rt60), 80)]))
    per_second = float(np.polyfit(np.arange(len(decibels)) * 0.01, decibels, 1)[0])
    assert per_second == pytest.approx(-60 / rt60, rel=0.05)
    direct, rest = np.square(wet[:, 100]).mean(), np.square(wet[:, 101:], dtype=np.float64).sum(axis=1).mean()
    assert 10 * np.log10(direct / rest) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("speed", p.SPEEDS)
def test_speed_changes_pitch_and_length(speed):
    before, played = tone(1000), p.change_speed(tone(1000), speed)
    assert np.abs(np.fft.rfft(played[0])).argmax() == pytest.approx(1000 * speed, abs=3)
    loud, loud_before = (np.flatnonzero(np.abs(clip[0]) > 0.05) for clip in (played, before))
    assert (loud[-1] - loud[0]) * speed == pytest.approx(loud_before[-1] - loud_before[0], rel=0.03)
    assert (loud[-1] + loud[0]) / 2 == pytest.approx(4000, abs=20)
    assert np.square(played).sum() * speed == pytest.approx(np.square(before).sum(), rel=0.02)


@pytest.mark.parametrize("place", p.PLACES)
def test_a_word_is_moved_and_stays_the_same(clips, place):
    moved = p.place_word(clips, place)
    for row, (first, last) in enumerate(zip(*p.word_span(clips), strict=True)):
        begin, word = round(place * (8000 - int(last - first))), clips[row, first:last]
        np.testing.assert_array_equal(moved[row, begin : begin + len(word)], word)
        assert sorted(moved[row]) == sorted(clips[row]), "nothing is lost"


@pytest.fixture
def noises(tmp_path):
    rng = np.random.default_rng(5)
    folder = tmp_path / "noise"
    (folder / "sub").mkdir(parents=True)
    soundfile.write(folder / "rain.wav", 0.1 * rng.standard_normal(40_000), 8000)
    barks = 0.3 * rng.standard_normal(40_000)
    barks[:36_000] = 0.0  # one bark in five seconds
    soundfile.write(folder / "sub" / "dog.wav", barks, 8000)
    soundfile.write(folder / "short.wav", 0.1 * rng.standard_normal(3000), 8000)
    (folder / "broken.wav").write_bytes(b"nothing")
    (folder / "._rain.wav").write_bytes(b"hidden")
    return folder


def test_recordings_are_loaded_and_each_clip_gets_one_that_is_loud_during_its_word(clips, noises, tmp_path):
    recordings = p.load_recordings(noises)
    assert recordings.files == ("rain.wav", "short.wav", "sub/dog.wav")
    assert [line.partition(":")[0] for line in recordings.skipped] == ["broken.wav"]
    noise, drawn = p.draw_recordings(recordings, clips, np.random.default_rng(0))
    assert {piece["file"] for piece in drawn} == set(recordings.files)
    for row, piece in enumerate(drawn):
        sound = recordings.samples[recordings.files.index(piece["file"])]
        np.testing.assert_array_equal(noise[row], sound[piece["start"] : piece["start"] + 8000])
    with pytest.raises(DataError, match="is not a folder"):
        p.load_recordings(tmp_path / "nowhere")
    for path in noises.rglob("*.wav"):
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="no background recording that can be read"):
        p.load_recordings(noises)


def test_the_seed_decides_every_condition(clips, noises):
    recordings, before = p.load_recordings(noises), clips.copy()
    drawn: list[dict[str, object]] = []
    runs = [list(p.perturb(clips[:5], seed, recordings, drawn if seed == 1 else None)) for seed in (1, 1, 2)]
    assert Counter(condition.kind for condition, _ in runs[0]) == {
        "clean": 1, "white": 5, "pink": 5, "brown": 5, "recorded": 5, "band": 4, "clipping": 5, "reverberation": 5,
        "speed": 7, "level": 5, "place": 5,
    }  # fmt: skip
    assert drawn[:5] == drawn[5:]
    for (condition, once), (_, again), (_, other) in zip(*runs, strict=True):
        assert (once.shape, once.dtype) == ((5, 8000), np.float32)
        assert np.isfinite(once).all()
        np.testing.assert_array_equal(once, again)
        is_random = condition.kind in {"white", "pink", "brown", "recorded", "reverberation"}
        assert (once != other).any() == is_random, condition
    np.testing.assert_array_equal(clips, before)
    pink = [sound - clips[:5] for condition, sound in runs[0] if condition.kind == "pink"]
    for quieter, louder in itertools.pairwise(pink):
        cosine = (quieter * louder).sum() / np.sqrt(np.square(quieter).sum() * np.square(louder).sum())
        assert cosine > 0.999, "points of a curve differ in nothing but the severity"
