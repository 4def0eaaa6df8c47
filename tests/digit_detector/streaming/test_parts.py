"""Parts of live detection: resampling, filters, samples, gates, peaks, configuration."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import digit_detector
from digit_detector.errors import ConfigError, NonFiniteAudioError, UndecodableAudioError
from digit_detector.spotter_file import BLOCK, HOP
from digit_detector.streaming.config import DetectorConfig, load_config
from digit_detector.streaming.fusion import product_argmax
from digit_detector.streaming.high_pass import coefficients, high_pass, initial_state
from digit_detector.streaming.peak_picker import Candidate, Detection, PeakPicker
from digit_detector.streaming.resampler import Resampler
from digit_detector.streaming.samples import SampleReader, as_samples
from digit_detector.streaming.spotter import SpotterState
from digit_detector.streaming.stream_state import StreamState
from digit_detector.streaming.vad import EnergyGate, SpeechGate

CONFIG = DetectorConfig(spotter_threshold=0.3, detection_threshold=0.5)
RATES = (8000, 11025, 16000, 44100, 48000)


def noise(count: int, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


@pytest.mark.parametrize("rate", RATES)
@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 20_000), max_size=8))
def test_results_do_not_depend_on_the_pieces(rate, cuts):
    sound = noise(20_000)
    whole = Resampler(CONFIG)
    expected = np.concatenate([whole.feed(sound, rate), whole.flush()])
    pieces = Resampler(CONFIG)
    edges = [0, *sorted(cuts), len(sound)]
    made = [pieces.feed(sound[a:b], rate) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate([*made, pieces.flush()]), expected)
    assert len(expected) == pytest.approx(len(sound) * 8000 / rate, abs=2)


def test_the_delay_is_small():
    resampler = Resampler(CONFIG)
    made = 0
    for i in range(50):
        made += len(resampler.feed(noise(960, i), 48_000))
        assert (i + 1) * 160 - made <= BLOCK + 0.005 * 8000


@pytest.mark.parametrize("rate", [4000, 7350, 11_025, 12_000, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_tones_below_the_passband_edge_pass_and_others_do_not(rate):
    half = min(rate, 8000) / 2
    seconds = np.arange(rate) / rate
    for frequency in (0.0, 0.25 * half, 0.9 * half):
        resampler, wanted = Resampler(CONFIG), np.cos(2 * np.pi * frequency * np.arange(8000) / 8000)
        made = resampler.feed(np.cos(2 * np.pi * frequency * seconds).astype(np.float32), rate)
        made = np.concatenate([made, resampler.flush()])
        assert len(made) == 8000
        assert np.abs(made - wanted)[200:-200].max() < 2e-3, frequency
    if rate > 8800:
        above = Resampler(CONFIG).feed(np.sin(2 * np.pi * 4100 * seconds).astype(np.float32), rate)
        assert np.abs(above[200:]).max() < 2e-3


@pytest.mark.parametrize("rate", [8001, 44_101, 768_000])
def test_unusual_rates(rate):
    resampler = Resampler(CONFIG)
    made = [resampler.feed(noise(rate // 2, i), rate) for i in range(2)]
    assert len(np.concatenate([*made, resampler.flush()])) == pytest.approx(8000, abs=2)


def filtered(sound: np.ndarray) -> np.ndarray:
    made, state = [], initial_state()[None]
    for block in sound.reshape(-1, BLOCK):
        rows, state = high_pass(block[None], state, CONFIG.high_pass_hz)
        made.append(rows[0])
    return np.concatenate(made)


def test_the_high_pass_is_its_formula():
    sound = (noise(40 * BLOCK) + np.float32(0.3)).astype(np.float32)
    made = filtered(sound)
    gain, pole = coefficients(CONFIG.high_pass_hz)
    expected, last, before = np.empty(len(sound)), float(sound[0]), 0.0
    for i, sample in enumerate(sound.tolist()):
        expected[i] = before = gain * (sample - last) + pole * before
        last = sample
    assert np.abs(made - expected).max() < 1e-6
    assert made.dtype == np.float32


def test_the_high_pass_removes_offsets_only():
    assert not filtered(np.full(4 * BLOCK, 0.7, dtype=np.float32)).any()
    seconds = np.arange(8000) / 8000
    for frequency, least, most in ((CONFIG.high_pass_hz, 0.70, 0.72), (200.0, 0.97, 1.0), (3000.0, 0.99, 1.01)):
        tone = np.sin(2 * np.pi * frequency * seconds).astype(np.float32)[: 31 * BLOCK]
        assert least < np.abs(filtered(tone)[4000:]).max() < most, frequency


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0.5, -0.5], [0.5, -0.5]),
        (np.array([16384, -32768], dtype=np.int16), [0.5, -1.0]),
        (np.array([192, 0], dtype=np.uint8), [0.5, -1.0]),
        (np.array([[0.5, 0.0], [1.0, 0.0], [0.0, 0.0]]), [0.25, 0.5, 0.0]),
        (np.zeros((2, 100)), [0.0] * 100),
        ([], []),
        ([0, 0], [0.0, 0.0]),
        (memoryview(np.array([16384], dtype=">i2")), [0.5]),
    ],
)
def test_arrays_of_any_type_are_converted(samples, expected):
    wave, rate = as_samples(samples, 8000)
    assert wave.tolist() == pytest.approx(expected)
    assert wave.dtype == np.float32
    assert rate == 8000


NAN_AT_42 = np.where(np.arange(100) == 42, np.nan, 0.0)


@pytest.mark.parametrize(
    ("samples", "rate", "error", "words"),
    [
        *((np.zeros(10), rate, UndecodableAudioError, "sample_rate: expected a whole number of Hz")
          for rate in (0, -8000, 999, 1_000_000, 8000.0, "8000", True, None, float("nan"))),
        (NAN_AT_42, 8000, NonFiniteAudioError, "sample 42 of this piece"),
        ([0.1, np.inf], 8000, NonFiniteAudioError, "sample 1 of this piece"),
        ([0.1, 1e30], 8000, NonFiniteAudioError, "sample 1 of this piece"),
        *((samples, 8000, UndecodableAudioError, "have no full scale")
          for samples in ([1, 2], np.array([[1], [2]], dtype=np.uint64), [1000, -2000])),
        (np.zeros((2, 2, 2)), 8000, UndecodableAudioError, "shape"),
        (0.5, 8000, UndecodableAudioError, "shape"),
        (np.zeros((40, 40)), 8000, UndecodableAudioError, "at most 32 channels"),
        *((samples, 8000, UndecodableAudioError, "has type") for samples in (np.array(["a"]), np.zeros(3, complex))),
        ([[0.5, 0.5], [0.5]], 8000, UndecodableAudioError, "no array"),
        *((kind(100), 8000, UndecodableAudioError, "expected numbers") for kind in (bytes, bytearray)),
    ],
)  # fmt: skip
def test_invalid_samples_and_rates_raise(samples, rate, error, words):
    with pytest.raises(error, match=words):
        as_samples(samples, rate)


@pytest.mark.parametrize("shape", [(2, 32), (2, 2), (1, 20), (20, 20)])
def test_an_unclear_layout_raises_unless_known(shape):
    sound = noise(shape[0] * shape[1]).reshape(shape)
    with pytest.raises(UndecodableAudioError, match=r"pass channels_first=False or True"):
        as_samples(sound, 8000)
    assert as_samples(sound, 8000, channels_first=True)[0].tolist() == pytest.approx(sound.mean(axis=0).tolist())
    assert as_samples(sound, 8000, channels_first=False)[0].tolist() == pytest.approx(sound.mean(axis=1).tolist())
    for first in (False, True):
        reader = SampleReader()
        reader.read(noise(200).reshape((2, 100) if first else (100, 2)), 8000)
        assert len(reader.read(sound, 8000)[0]) == shape[int(first)], "as in the piece before"


@pytest.mark.parametrize("scale", [65_536, 0, 1e-3])  # of 32 bits, silence, and noise of less than one in 16 bits
def test_32_bit_integers_of_full_scale_are_valid(scale):
    samples = (noise(16_000, level=0.1) * 32_768 * scale).astype(np.int32)
    reader = SampleReader()
    wave, _ = reader.read(samples, 8000)
    reader.check_scale()
    assert np.abs(wave).max() <= 1.0


def test_the_energy_gate_opens_above_the_background():
    gate = EnergyGate(replace(CONFIG, energy_hangover_blocks=3))
    assert [gate.update(noise(256, i, 0.001)) for i in range(200)][-1] is False
    assert gate.level_db == pytest.approx(-60, abs=1)
    assert gate.update(noise(256, 1, 0.01))
    assert [gate.update(noise(256, i, 0.001)) for i in range(4)] == [True, True, False, False]


def test_steady_noise_becomes_the_background():
    gate = EnergyGate(replace(CONFIG, energy_hangover_blocks=3))
    opened = [gate.update(noise(256, i, 0.1)) for i in range(2000)]
    assert opened[0]
    assert not any(opened[-100:])


def test_the_speech_gate_stays_open_over_gaps():
    gate = SpeechGate(replace(CONFIG, speech_threshold=0.4, speech_hangover_blocks=2))
    assert [gate.update(v) for v in (0.3, 0.4, 0.25, 0.1, 0.25, 0.1, 0.1, 0.3)] == [
        False, True, True, True, True, True, False, False,
    ]  # fmt: skip


def pick_peaks(*frames: tuple[int, float]) -> list[tuple[int, int]]:
    """(digit, frame of the report) of each peak, given (digit, probability) of each frame."""
    picker, found = PeakPicker(CONFIG), []
    for i, (digit, probability) in enumerate(frames):
        row = np.zeros(10, dtype=np.float32)
        row[digit] = probability
        candidate = picker.push(i, row, 20.0)
        if candidate is not None:
            found.append((candidate.digit, candidate.frame))
    return found


QUIET = [(0, 0.0)] * 12
PEAK = [(4, 0.3), (4, 0.8), (4, 0.9), (4, 0.9), (4, 0.8), (4, 0.5), (4, 0.2)]


@pytest.mark.parametrize(
    ("frames", "digits"),
    [(PEAK, [4]), ([*PEAK, *QUIET, *PEAK], [4, 4]), ([(4, 0.9)] * 100, [4]), ([(4, 0.29)] * 10, [])],
    ids=["one", "twice", "long", "low"],
)
def test_each_peak_is_one_digit(frames, digits):
    assert [digit for digit, _ in pick_peaks(*QUIET, *frames, *QUIET)] == digits


@st.composite
def posteriors(draw: st.DrawFn) -> np.ndarray:
    """(F, 10) with stretches of high and of low values, an even number of frames as in blocks of two."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.lists(st.sampled_from([0.0, 0.05, 0.14, 0.3, 0.6, 1.0]), min_size=1, max_size=40))
    rows = np.repeat(levels, rng.integers(1, 7, len(levels)))
    made = rng.uniform(0.0, 0.05, (len(rows) // 2 * 2, 10))
    made[np.arange(len(made)), rng.integers(0, 4, len(made)) // 3] = rows[: len(made)]
    return made.astype(np.float32)


def pick(frames: np.ndarray, in_blocks: bool) -> list[Candidate]:
    """Candidates where frames are pushed one by one, or blocks that can decide nothing are skipped at once."""
    picker, found = PeakPicker(CONFIG), []
    for first in range(0, len(frames), 2):
        block = frames[first : first + 2]
        if in_blocks and picker.skip_low(block, float(block.max())):
            continue
        found += [picker.push(first + i, row, 20.0) for i, row in enumerate(block)]
    return [candidate for candidate in found if candidate is not None]


@settings(max_examples=150, deadline=None)
@given(frames=posteriors())
def test_skipping_blocks_changes_nothing_and_candidates_are_valid(frames):
    one_by_one, in_blocks = pick(frames, False), pick(frames, True)
    assert [(c.digit, c.first, c.last, c.frame) for c in in_blocks] == [
        (c.digit, c.first, c.last, c.frame) for c in one_by_one
    ]
    assert all(b.frame - a.frame >= CONFIG.refractory_frames for a, b in pairwise(one_by_one))
    padded = np.concatenate([np.zeros((2, 10), dtype=np.float32), frames]).astype(np.float64)
    smoothed = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    for candidate in one_by_one:
        span = smoothed[max(0, candidate.frame - CONFIG.max_peak_frames) : candidate.frame + 1, candidate.digit]
        assert candidate.posteriors[candidate.digit] >= CONFIG.spotter_threshold
        assert np.isclose(span, candidate.posteriors[candidate.digit], atol=1e-6).any(), "the peak is in the posteriors"


def test_another_digit_at_once_is_not_reported():
    found = pick_peaks(*QUIET, *PEAK[:4], *[(7, 0.9)] * 4, *QUIET)
    assert [digit for digit, _ in found][:1] == [4]
    assert all(b - a >= CONFIG.refractory_frames for (_, a), (_, b) in pairwise(found))


def test_the_spotter_and_the_classifiers_choose_together():
    spotted, classified = [0.0] * 10, [0.01] * 10
    spotted[2], spotted[7], classified[7], classified[5] = 0.6, 0.3, 0.8, 0.2
    assert product_argmax(spotted, classified, 1e-4) == 7
    assert product_argmax(spotted, [0.1] * 10, 1e-4) == 2
    assert product_argmax([0.0] * 10, classified, 1e-4) == 7


def test_duplicates_are_recognised():
    within = CONFIG.duplicate_seconds
    first = Detection(7, 0.5, 0.0, 1.0, 0.1)
    assert not first.repeats(None, within)
    assert Detection(7, 0.9, 0.8, 1.0 + 0.9 * within, 0.1).repeats(first, within)
    assert not Detection(7, 0.9, 0.8, 1.0 + 1.1 * within, 0.1).repeats(first, within)
    assert not Detection(6, 0.9, 0.8, 1.0 + 0.9 * within, 0.1).repeats(first, within)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "high", True, None])
def test_an_invalid_threshold(value):
    with pytest.raises(ConfigError, match="detection_threshold: expected a number from 0 to 1"):
        DetectorConfig(spotter_threshold=0.5, detection_threshold=value)


def test_every_fault_of_a_config_is_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        DetectorConfig(0.1, 0.5, refractory_frames=1.5, fusion_weights=(1.0, 2.0), high_pass_hz=-1.0)
    for name in ("refractory_frames: expected a whole number", "fusion_weights: expected 4 numbers", "high_pass_hz"):
        assert name in str(caught.value)
    with pytest.raises(ConfigError, match="history_blocks"):
        DetectorConfig(0.1, 0.5, history_blocks=32, vad_preroll_blocks=40)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"thresholds": {"digit": 0.5}}', '{"thresholds": 3}'])
def test_an_invalid_thresholds_file(content, tmp_path):
    file = tmp_path / "t.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"t\.json"):
        load_config(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.json")


def test_names_of_0_1_still_work(tmp_path):
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"thresholds": {"spotter_threshold": 0.2, "detection_threshold": 0.3}}))
    assert load_config(file) == DetectorConfig(0.2, 0.3)
    file.write_text(json.dumps({"thresholds": {"spotted": 0.2, "digit": 0.3}}))
    with pytest.warns(FutureWarning, match="spotted and digit are now"):
        assert load_config(file) == DetectorConfig(0.2, 0.3)
    with pytest.warns(DeprecationWarning, match="load_thresholds is deprecated: use load_config"):
        assert digit_detector.load_thresholds is load_config
    with pytest.warns(DeprecationWarning, match="Thresholds is deprecated: use DetectorConfig"):
        assert digit_detector.Thresholds(spotted=0.2, digit=0.3) == DetectorConfig(0.2, 0.3)
    with pytest.warns(DeprecationWarning, match="pass config="):
        assert digit_detector.StreamingDetector(thresholds=CONFIG).engine.config == CONFIG


@pytest.mark.parametrize(
    ("committed_until", "begins"), [(0, 110 * HOP - 2800), (95 * HOP, 95 * HOP), (112 * HOP, 108 * HOP)]
)
def test_word_audio_excludes_the_committed_word(committed_until, begins):
    stream = StreamState(CONFIG, 0, lambda: SpotterState(np.zeros(0, np.float32), np.zeros(0, np.float32)))
    sound = np.random.default_rng(0).normal(0, 0.1, 70 * BLOCK).astype(np.float32)
    for block in stream.split_blocks(sound):
        stream.push(block)
    stream.committed_until = committed_until
    opened = stream.word_audio(Candidate(3, np.zeros(10, np.float32), first=110.0, last=125.0, frame=139))
    assert opened.tolist() == sound[begins : 125 * HOP + 1440].tolist()


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=8), st.sampled_from(["opposite", "equal", "one", "three"]))
@settings(max_examples=30, deadline=None)
def test_channels_that_cancel_give_the_loudest_however_the_stream_is_cut(sizes, kind):
    time = np.arange(16_000) / 8000
    sound = (0.3 * np.sin(2 * np.pi * 300 * time) * np.sin(np.pi * time) ** 2).astype(np.float32)
    others = {"opposite": [-sound], "equal": [sound], "one": [], "three": [-0.5 * sound, -0.5 * sound]}[kind]
    stream = np.stack([sound, *others], axis=1)
    whole = SampleReader().read(stream, 8000)[0]
    reader, parts, at = SampleReader(), [], 0
    for size in [*sizes, len(stream)]:
        if at < len(stream):
            parts.append(reader.read(stream[at : at + size], 8000, channels_first=False)[0])
        at += size
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_allclose(whole[2048:], sound[2048:], atol=1e-6)


def test_a_new_number_of_channels_resets_the_downmix():
    reader = SampleReader()
    sound = np.sin(np.arange(4000)).astype(np.float32)
    reader.read(np.stack([sound, -sound, -sound], axis=1), 8000)
    reader.read(np.stack([0 * sound, 0 * sound, sound], axis=1), 8000)
    np.testing.assert_allclose(reader.read(np.stack([sound, sound], axis=1), 8000)[0], sound)
