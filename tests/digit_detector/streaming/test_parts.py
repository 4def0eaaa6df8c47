"""Parts of live detection: resampling, filters, samples, configuration."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import digit_detector
from digit_detector.acoustic_file import BLOCK
from digit_detector.errors import ConfigError, NonFiniteAudioError, UndecodableAudioError
from digit_detector.streaming.config import ANY, DetectorConfig, load_config
from digit_detector.streaming.high_pass import coefficients, high_pass, initial_state
from digit_detector.streaming.resampler import Resampler
from digit_detector.streaming.samples import SampleReader, as_samples

CONFIG = DetectorConfig()
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


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "high", True, None])
def test_an_invalid_threshold(value):
    with pytest.raises(ConfigError, match="digits_threshold: expected a number from 0 to 1"):
        DetectorConfig(digits_threshold=value)


def test_every_fault_of_a_config_is_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        DetectorConfig(0.1, 0.5, beam_width=1.5, context="all", high_pass_hz=-1.0)  # type: ignore[arg-type]
    for words in (
        "beam_width: expected a whole number",
        "context: expected one of digits, any, got 'all'",
        "high_pass_hz",
    ):
        assert words in str(caught.value)


def test_thresholds_are_read_from_a_file(tmp_path):
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"thresholds": {"digits_threshold": 0.2, "any_threshold": 0.3, "other_ratio": 0.4}}))
    assert load_config(file) == DetectorConfig(0.2, 0.3, 0.4)
    assert load_config(file, ANY) == DetectorConfig(0.2, 0.3, 0.4, context=ANY)
    assert load_config() == digit_detector.load_config()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"thresholds": 3}', '{"thresholds": {"spotter_threshold": 0.2, "detection_threshold": 0.3}}'],
)
def test_an_invalid_thresholds_file(content, tmp_path):
    file = tmp_path / "t.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"t\.json"):
        load_config(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.json")


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
