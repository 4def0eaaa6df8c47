"""Live detection as a whole: the same however sound is cut, over any rate, from threads, with bad input, in a pool."""

import gc
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

import digit_detector
from digit_detector import Detection, DetectorPool, StreamingDetector, load_config
from digit_detector.audio import NonFiniteAudioError, decode, trim_silence
from digit_detector.classifier import model_file
from digit_detector.errors import AudioError, ConfigError, ModelError, StreamError, UndecodableAudioError
from digit_detector.evaluation.streams import TestStream, Word, join_with_pauses
from digit_detector.examples import example_recording
from digit_detector.labels import PRETRAINED
from digit_detector.model_file import CHECKSUM_KEY, add_checksum
from digit_detector.streaming.acoustic import AcousticSession, load_acoustic_model
from digit_detector.streaming.config import ANY, CONTEXTS, DIGITS
from digit_detector.streaming.engine import Engine
from ml_training.data.tts import VOICES, synthesize_words

SHIPPED = Path(digit_detector.__file__).parent / PRETRAINED / "acoustic.onnx"
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module", params=tuple(CONTEXTS))
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(load_config(context=request.param))


@pytest.fixture(scope="module")
def call() -> np.ndarray:
    """The bundled telephone number, twice, half a second apart."""
    samples = decode(example_recording("phone_number"))
    return np.concatenate([samples, np.zeros(4000, dtype=np.float32), samples])


@pytest.fixture(scope="module")
def words() -> list[Word]:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    voices = [VOICES[i] for i in (0, 1, 9)]
    spoken = synthesize_words([(voice, name) for voice in voices for name in names], seed=1)
    return [Word(trim_silence(clip, -30), i % 10, voices[i // 10]) for i, clip in enumerate(spoken)]


@pytest.fixture(scope="module")
def stream(words: list[Word]) -> TestStream:
    rng = np.random.default_rng(2)
    noise = rng.standard_normal(80_000).astype(np.float32)
    return join_with_pauses([words[i] for i in rng.permutation(len(words))], noise, 25.0, rng)


def assert_similar(found: list[Detection], expected: list[Detection]) -> None:
    """All but a few digits near the threshold are the same, at about the same times."""
    assert expected
    same = [d for d in found if any(d.digit == e.digit and abs(d.end - e.end) < 0.1 for e in expected)]
    assert len(same) >= 0.75 * max(len(found), len(expected))


def digits_of(detections: list[Detection]) -> str:
    return "".join(str(detection.digit) for detection in detections)


def detect(engine: Engine, samples: np.ndarray, sizes: list[int], rate: int = 8000) -> list[Detection]:
    """What is found when the sound comes in pieces of `sizes`, again and again."""
    detector, found, at = StreamingDetector(engine=engine), [], 0
    while at < len(samples):
        for size in sizes:
            found += detector.feed(samples[at : at + size], rate)
            at += size
    return found + detector.flush()


def test_the_bundled_number_is_detected_in_both_contexts(engine, call):
    found = detect(engine, call, [1600])
    if engine.config.context == DIGITS:
        assert digits_of(found) == 2 * "4135550127"
    else:  # whose threshold leaves out some
        spoken = iter(2 * "4135550127")
        assert all(digit in spoken for digit in digits_of(found))
        assert len(found) >= 12
    threshold = {DIGITS: 0.0, ANY: engine.config.any_threshold}[engine.config.context]
    for detection in found:
        assert 0.0 <= detection.start < detection.end
        assert threshold <= detection.confidence <= 1.0
        assert 0.0 < detection.delay < (0.5 if engine.config.context == ANY else 8.0)
    assert len({round(d.reported, 3) for d in found}) == (2 if engine.config.context == DIGITS else len(found))


def test_an_utterance_is_provisional_until_its_end(call):
    detector = StreamingDetector()
    assert detector.engine.config.context == DIGITS
    found, provisional = [], set()
    for at in range(0, len(call), 800):
        found += detector.feed(call[at : at + 800])
        provisional.add(digits_of(detector.provisional))
    assert {"", "4", "41", "413"} <= provisional
    assert digits_of(found + detector.flush()) == 2 * "4135550127"
    assert detector.provisional == []


@pytest.mark.parametrize("sizes", [[1], [7, 131, 1, 999], [256], [255], [30_000_000], [0, 160]])
def test_results_do_not_depend_on_the_pieces(sizes, engine, stream):
    sound = stream.samples[: 8000 * (6 if sizes == [1] else 20)]
    assert detect(engine, sound, sizes) == detect(engine, sound, [1600])


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(1, 30_000), min_size=1, max_size=8), rate=st.sampled_from([8000, 16_000, 44_100]))
def test_results_do_not_depend_on_random_cuts(sizes, rate, engine, call):
    samples = soxr.resample(call[:60_000], 8000, rate) if rate != 8000 else call[:60_000]
    expected = detect(engine, samples, [len(samples)], rate)
    assert expected
    assert detect(engine, samples, sizes, rate) == expected


@pytest.mark.parametrize("rate", [11_025, 16_000, 44_100, 48_000])
def test_any_rate_gives_the_same_digits(rate, engine, stream):
    sound = stream.samples[: 8000 * 20]
    at_8k = detect(engine, sound, [1600])
    resampled = soxr.resample(sound, 8000, rate, quality="HQ")
    again = detect(engine, resampled, [rate // 50], rate)
    assert again == detect(engine, resampled, [rate // 7], rate)
    assert_similar(again, at_8k)


def test_the_rate_may_change_on_the_way(engine, stream):
    sound = stream.samples[: 8000 * 20]
    parts = [(sound[:80_000], 8000), (soxr.resample(sound[80_000:], 8000, 16_000), 16_000)]
    detector = StreamingDetector(engine=engine)
    found = [d for part, rate in parts for d in detector.feed(part, rate)] + detector.flush()
    expected = detect(engine, sound, [1600])
    assert_similar(found, expected)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_an_offset_changes_nothing(rate, engine, stream):
    sound = 0.5 * stream.samples[: 8000 * 15]
    resampled = soxr.resample(sound, 8000, rate) if rate != 8000 else sound
    plain, offset = (detect(engine, (resampled + dc).astype(np.float32), [rate // 10], rate) for dc in (0.0, 0.3))
    assert_similar(offset, plain)


def test_16_bit_values_in_32_bit_integers_are_rejected(engine, stream):
    wrong = (stream.samples[: 8000 * 2] * 32_768).astype(np.int32)
    detector, pool = StreamingDetector(engine=engine), DetectorPool(engine=engine)
    with pytest.raises(UndecodableAudioError, match="hold 16-bit values"):
        detector.feed(wrong)
    detector.reset()
    pool.open("a")
    word = wrong[int(np.abs(wrong).argmax()) :][:2000]
    assert detector.feed(word) == []
    pool.feed("a", word)
    with pytest.raises(UndecodableAudioError, match="hold 16-bit values"):
        detector.flush()
    with pytest.raises(UndecodableAudioError, match="hold 16-bit values"):
        pool.flush("a")
    assert (detector.seconds, len(pool)) == (0.0, 0)


def test_channels_first_resolves_an_unclear_layout(engine, stream):
    sound = stream.samples[: 8000 * 6]
    expected = detect(engine, sound, [1600])
    detector = StreamingDetector(engine=engine)
    rows = np.stack([sound, sound])
    with pytest.raises(UndecodableAudioError, match="channels_first=False or True"):
        detector.feed(rows[:, :32])
    found = []
    for at in range(0, len(sound), 32):
        found += detector.feed(rows[:, at : at + 32], channels_first=True)
    assert found + detector.flush() == expected


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """The model that ships, exported on another day."""
    metadata = load_acoustic_model().metadata
    content = SHIPPED.read_bytes().replace(metadata[CHECKSUM_KEY].encode(), b"0" * 64)
    content = content.replace(metadata["created"].encode(), b"2001-02-03T04:05:06+00:00")
    (tmp_path / "own.onnx").write_bytes(add_checksum(content))
    return tmp_path / "own.onnx"


def test_own_models_are_loaded_and_checked(own_model, call):
    assert AcousticSession(own_model).metadata["created"].startswith("2001")
    expected = detect(Engine(), call, [1600])
    detector = StreamingDetector(model=str(own_model))
    assert detector.feed(call) + detector.flush() == expected
    pool = DetectorPool(model=own_model)
    pool.open("a")
    pool.feed("a", call)
    assert pool.flush("a") == expected
    content = own_model.read_bytes()
    own_model.write_bytes(content[:5000] + bytes(100) + content[5100:])
    for bad, why in (
        (own_model, r"own\.onnx.* is damaged"),
        (own_model.with_name("none.onnx"), "cannot read .*none.onnx"),
        (own_model.parent, "cannot read"),
        (model_file("pretrained", "mfcc"), "mfcc.onnx is no acoustic model"),
    ):
        with pytest.raises(ModelError, match=why):
            StreamingDetector(model=bad)


def test_flush_reports_the_last_word_and_restarts(engine):
    detector = StreamingDetector(engine=engine)
    sound = decode(example_recording("seven"))
    sound = trim_silence(sound, -40.0)
    for _ in range(2):
        assert detector.feed(sound) == []
        (found,) = detector.flush()
        assert found.digit == 7
        assert found.end == pytest.approx(len(sound) / 8000, abs=0.2)
    detector.feed(sound)
    detector.reset()
    assert detector.seconds == 0.0
    assert detector.flush() == []


@pytest.mark.parametrize("bad", [np.array([0.1, np.nan]), np.array([np.inf]), np.zeros((2, 2, 2)), np.array(["x"])])
def test_invalid_samples_raise_and_the_stream_continues(bad, engine, stream):
    sound = stream.samples[: 8000 * 10]
    detector = StreamingDetector(engine=engine)
    found = detector.feed(sound[:40_000])
    with pytest.raises(AudioError):
        detector.feed(bad)
    found += detector.feed(sound[40_000:]) + detector.flush()
    assert found == detect(engine, sound, [1600])


def test_silence_clipping_and_hum_have_no_digits(engine):
    detector = StreamingDetector(engine=engine)
    assert detector.feed(np.zeros(120 * 8000, dtype=np.float32)) + detector.flush() == []
    clipped = np.sign(RNG.standard_normal(10 * 8000)).astype(np.float32)
    hum = np.sin(2 * np.pi * 50 / 8000 * np.arange(10 * 8000)).astype(np.float32)
    for sound in (clipped, hum, np.full(10 * 8000, 1.0, dtype=np.float32)):
        assert detector.feed(sound) == []
    assert detector.flush() == []


def test_threads_may_feed_and_flush_one_detector(engine, stream):
    detector, faults = StreamingDetector(engine=engine), []

    def work(turn: int) -> None:
        try:
            for i in range(40):
                detector.feed(stream.samples[i * 1600 : (i + 1) * 1600])
                if turn == 0 and i % 5 == 0:
                    detector.flush()
        except Exception as error:  # whatever it is, the test is to tell
            faults.append(error)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    detector.reset()
    sound = stream.samples[: 8000 * 10]
    assert detector.feed(sound) + detector.flush() == detect(engine, sound, [1600])


def test_memory_does_not_grow(engine):
    import tracemalloc

    detector = StreamingDetector(engine=engine)
    sound = (0.05 * RNG.standard_normal(8000 * 10)).astype(np.float32)
    tracemalloc.start()
    detector.feed(sound)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(10):
        detector.feed(sound)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 100_000


def test_a_pool_equals_single_detectors(engine, stream):
    pool = DetectorPool(engine=engine)
    parts = {key: stream.samples[key * 24_000 : key * 24_000 + 80_000] for key in range(5)}
    found: dict[int, list[Detection]] = {key: [] for key in parts}
    for key in parts:
        pool.open(key)
    for at in range(0, 80_000, 1600):
        for key, sound in parts.items():
            pool.feed(key, sound[at : at + 1600])
        for key, detections in pool.run().items():
            found[key] += detections
    for key, sound in parts.items():
        found[key] += pool.flush(key)
        alone = detect(engine, sound, [1600])
        assert [(d.digit, d.end) for d in found[key]] == [(d.digit, d.end) for d in alone]
        assert [d.confidence for d in found[key]] == pytest.approx([d.confidence for d in alone], abs=1e-3)
    assert len(pool) == 0


def test_ending_one_stream_loses_nothing_of_another(engine, stream):
    pool, sound = DetectorPool(engine=engine), stream.samples[:80_000]
    for key in "ab":
        pool.open(key)
        pool.feed(key, sound)
    expected = [(d.digit, d.end) for d in detect(engine, sound, [1600])]
    assert expected
    assert [(d.digit, d.end) for d in pool.flush("a")] == expected  # waiting audio included
    found = pool.run()["b"] + pool.flush("b")
    assert [(d.digit, d.end) for d in found] == expected


def test_a_pool_rejects_invalid_calls(engine):
    pool = DetectorPool(engine=engine, most_seconds=2.0)
    pool.open("a")
    with pytest.raises(StreamError, match="open already"):
        pool.open("a")
    with pytest.raises(StreamError, match="no stream 'b'"):
        pool.feed("b", np.zeros(100))
    with pytest.raises(NonFiniteAudioError):
        pool.feed("a", np.full(100, np.nan))
    pool.feed("a", np.zeros(8000))
    with pytest.raises(StreamError, match="too fast"):
        pool.feed("a", np.zeros(16_000))
    assert pool.run() == {}
    pool.feed("a", np.zeros(16_000))
    pool.close("a")
    with pytest.raises(StreamError, match="no stream 'a'"):
        pool.close("a")


def test_contexts_and_thresholds_are_checked(call):
    strict = StreamingDetector(config=replace(load_config(), digits_threshold=1.0))
    assert strict.feed(call) + strict.flush() == []
    assert StreamingDetector(ANY).engine.config == load_config(context=ANY)
    for make in (StreamingDetector, DetectorPool):
        with pytest.raises(ConfigError, match="expected one of digits, any, got 'all'"):
            make("all")
        with pytest.raises(ConfigError, match="pass one"):
            make(ANY, load_config(context=DIGITS))


def test_detection_imports_nothing_heavy(call, tmp_path):
    np.save(tmp_path / "sound.npy", call)
    code = f"""
import sys, numpy as np
from digit_detector import StreamingDetector
detector = StreamingDetector()
assert detector.feed(np.load({str(tmp_path / "sound.npy")!r})) + detector.flush()
heavy = {{"torch", "librosa", "matplotlib", "scipy", "sklearn", "rich", "onnx"}}
assert not heavy & {{name.split(".")[0] for name in sys.modules}}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
