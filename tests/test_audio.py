"""Any recording becomes one second at 8 kHz, or a typed error."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile
from audio_bytes import av_file, sound_file, tone
from hypothesis import given, settings
from hypothesis import strategies as st

from digit_detector.audio import (
    LOUDEST,
    NUM_SAMPLES,
    SAMPLE_RATE,
    decode,
    decode_sound,
    file_blocks,
    load_audio,
    mono_blocks,
    pad_or_trim,
    trim_silence,
)
from digit_detector.errors import (
    EmptyAudioError,
    NonFiniteAudioError,
    SilentAudioError,
    TooLongAudioError,
    TruncatedAudioError,
    UndecodableAudioError,
)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two clips at their best alignment within 50 ms (lossy codecs delay)."""
    n = min(len(a), len(b))
    cross = np.correlate(a[:n], b[:n], "full")[n - 400 : n + 400]
    return float(np.abs(cross).max() / np.linalg.norm(a[:n]) / np.linalg.norm(b[:n]))


@pytest.mark.parametrize(
    ("rate", "subtype", "container"),
    [
        (8000, "PCM_16", "WAV"), (44100, "PCM_16", "WAV"), (16000, "PCM_U8", "WAV"), (48000, "FLOAT", "WAV"),
        (22050, "PCM_24", "FLAC"), (11025, "DOUBLE", "WAV"), (8000, "ULAW", "WAV"), (44100, "VORBIS", "OGG"),
        (48000, "OPUS", "OGG"), (44100, "MPEG_LAYER_III", "MP3"), (96000, "PCM_32", "AIFF"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_becomes_the_same_second(rate, subtype, container, channels):
    samples = tone(rate)
    content = sound_file(np.stack([samples] * channels, axis=1), rate, subtype, container)
    clip = load_audio(content)
    assert clip.shape == (NUM_SAMPLES,)
    assert clip.dtype == np.float32
    assert similarity(clip, pad_or_trim(tone(SAMPLE_RATE))) > 0.98


def test_webm_is_decoded_by_pyav():
    assert similarity(load_audio(av_file("webm", "libopus", 48000, seconds=0.5)), pad_or_trim(tone(SAMPLE_RATE))) > 0.98


def test_path_text_bytes_file_object_and_array_agree(tmp_path):
    samples = tone(16000)
    content = sound_file(samples, 16000, "FLOAT")
    path = tmp_path / "ünï 口.wav"
    path.write_bytes(content)
    expected = load_audio(path)
    for source in (str(path), content, bytearray(content), memoryview(content), io.BytesIO(content)):
        np.testing.assert_array_equal(load_audio(source), expected)
    with path.open("rb") as file:
        np.testing.assert_array_equal(load_audio(file), expected)
        assert not file.closed, "a caller's file object stays open"
    np.testing.assert_array_equal(load_audio(samples, 16000), expected)


def test_file_objects_are_read_from_their_position():
    file = io.BytesIO(b"header" + sound_file(tone(8000), 8000))
    file.seek(6)
    assert len(decode(file)) == 4000


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint8, np.float64, np.float16])
def test_arrays_of_any_sample_type_have_one_scale(dtype):
    samples = tone(8000)
    if dtype is np.uint8:
        array = np.round(samples * 128 + 128).astype(dtype)
    elif np.issubdtype(dtype, np.integer):
        array = np.round(samples.astype(np.float64) * -np.iinfo(dtype).min).astype(dtype)
    else:
        array = samples.astype(dtype)
    np.testing.assert_allclose(decode(array), samples, atol=0.006)


def test_channels_may_come_first_or_last():
    left, right = tone(8000, hz=300), tone(8000, hz=900)
    expected = (left + right) / 2
    np.testing.assert_allclose(decode(np.stack([left, right])), expected, atol=1e-6)
    np.testing.assert_allclose(decode(np.stack([left, right], axis=1)), expected, atol=1e-6)


def test_missing_pyav_is_named(tmp_path):
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from digit_detector.audio import decode\nfrom digit_detector.errors import MissingExtraError\n"
        "try: decode(b'\\x1a\\x45\\xdf\\xa3' + bytes(100))\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "[formats]" in done.stdout


@pytest.mark.parametrize("length", [1, 2, 999, 4001, 8000])
def test_short_clips_are_centred(length):
    clip = pad_or_trim(np.ones(length, dtype=np.float32))
    start = (NUM_SAMPLES - length) // 2
    assert clip[start : start + length].all()
    assert clip.sum() == length


@given(at=st.integers(0, 8000 * 5), level=st.floats(0.003, 1.0), offset=st.floats(-0.3, 0.3))
@settings(max_examples=40, deadline=None)
def test_the_word_of_a_long_clip_is_kept(at, level, offset):
    word = tone(8000, 0.4) * level
    noise = np.random.default_rng(at).normal(0, level * 0.01, 8000 * 6)
    clip = (noise + offset).astype(np.float32)
    at = min(at, len(clip) - len(word))
    clip[at : at + len(word)] += word
    kept = pad_or_trim(clip) - np.float32(offset)
    assert np.square(kept).sum() > 0.95 * np.square(word).sum()


def test_one_click_does_not_outweigh_a_word():
    clip = np.random.default_rng(0).normal(0, 1e-3, 8000 * 4).astype(np.float32)
    clip[2000:2010] = 0.9
    clip[22000:26000] += tone(8000) * 0.4
    assert np.abs(pad_or_trim(clip)).max() < 0.5


@pytest.mark.parametrize("seconds", [1.01, 5.12, 140.0])  # the last is longer than what is held in memory
def test_the_second_of_a_file_is_that_of_its_samples_and_keeps_nothing_else_alive(seconds):
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.05, int(8000 * seconds)).astype(np.float32)
    samples *= np.repeat(rng.random(len(samples) // 800 + 1), 800)[: len(samples)].astype(np.float32)
    second = pad_or_trim(samples)
    assert second.base is None
    np.testing.assert_array_equal(load_audio(sound_file(samples, 8000, "FLOAT")), second)
    np.testing.assert_array_equal(load_audio(samples), second)
    # the definition, of the whole at once
    edges = np.diff(samples, prepend=samples[:1])
    frames = edges[: len(edges) // 80 * 80].reshape(-1, 80)
    amplitude = np.sqrt(np.mean(np.square(frames), axis=1, dtype=np.float64))
    above = np.maximum(amplitude - 2.0 * np.percentile(amplitude, 15), 0.0)
    sums = np.convolve(above, np.ones(100), "valid")
    start = next(i for i in range(0, len(samples), 80) if np.array_equal(samples[i : i + 8000], second)) // 80
    assert sums[start] >= sums.max() * (1.0 - 1.1e-3)


def test_channels_that_cancel_leave_the_louder_one():
    word = tone(16000)
    for offset, stereo in ((0.0, np.stack([word, -word])), (0.1, np.stack([0.1 - 0.98 * word, word + 0.1]))):
        assert similarity(decode(stereo, 16000)[100:-100] - offset, decode(word, 16000)[100:-100]) > 0.999
        content = sound_file(stereo.T, 16000, "FLOAT")
        np.testing.assert_allclose(decode(content), decode(stereo, 16000), atol=1e-6)
        found = np.concatenate([block for _, block in mono_blocks(content)])
        assert similarity(found - offset, word) > 0.999
    one_of_eight = np.stack([word, *np.zeros((7, len(word)), np.float32)])
    np.testing.assert_allclose(decode(one_of_eight, 16000), decode(word / 8, 16000), atol=1e-6)


def test_blocks_join_without_a_seam():
    long = np.concatenate([tone(44100, 1.0)] * 20)
    one_by_one = decode(sound_file(long, 44100, "FLOAT"))
    np.testing.assert_allclose(one_by_one, decode(long, 44100), atol=1e-5)
    assert abs(len(one_by_one) - 20 * 8000) <= 1


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (b"", EmptyAudioError, "0 bytes"),
        (np.zeros(0), EmptyAudioError, "empty"),
        (sound_file(np.zeros(0, dtype=np.float32), 8000), EmptyAudioError, "no samples"),
        (b"this is a letter, not a sound" * 9, UndecodableAudioError, "not audio"),
        (sound_file(tone(8000), 8000)[:30], UndecodableAudioError, "not audio"),
        (np.full(800, 3e38, dtype=np.float32), NonFiniteAudioError, "too loud"),
        (sound_file(np.full(9000, 3e38, dtype=np.float32), 8000, "FLOAT"), NonFiniteAudioError, "from frame 0 on, 3e"),
        ((tone(8000) * 32767).astype(np.int64), UndecodableAudioError, "int16"),
        (np.zeros((9000, 9)), UndecodableAudioError, "9 channels: expected 8 at most"),
        (np.array([0.0, np.nan, 0.1]), NonFiniteAudioError, "NaN"),
        (sound_file(np.array([0.0, np.inf, 0.1], dtype=np.float32), 8000, "FLOAT"), NonFiniteAudioError, "infinite"),
        (np.array([0.0, 1e300]), NonFiniteAudioError, "infinite"),
        (np.zeros((2, 3, 4)) + 1, UndecodableAudioError, "shape"),
        (np.array(0.5), UndecodableAudioError, "shape"),
        (np.array([1 + 2j, 3]), UndecodableAudioError, "complex"),
        (np.array([True, False]), UndecodableAudioError, "bool"),
        (np.array(["a", "b"]), UndecodableAudioError, "type"),
        (7, UndecodableAudioError, "int"),
        (io.StringIO("text"), UndecodableAudioError, "text mode"),
        ("no such file.wav", UndecodableAudioError, "No such file"),
        ("nul\0byte.wav", UndecodableAudioError, "null"),
        (".", UndecodableAudioError, "is a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isprintable() else type(value).__name__,
)  # fmt: skip
def test_bad_audio_has_its_own_error(source, error, words):
    with pytest.raises(error, match=words):
        load_audio(source)  # type: ignore[arg-type]


def test_truncated_recordings_are_decoded_on_request(tmp_path):
    path = tmp_path / "cut.mp3"
    samples = np.random.default_rng(0).normal(0, 0.1, 8000 * 5).astype(np.float32)
    soundfile.write(path, samples, 8000)
    whole = decode(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # the header still promises five seconds
    with pytest.raises(TruncatedAudioError, match="cut off: its header promises"):
        load_audio(path)
    notes: list[str] = []
    found = np.concatenate([block[:, 0] for _, block in file_blocks(path, warn=notes.append)])
    assert ["cut off" in note for note in notes] == [True]
    assert 8000 < len(found) < 8000 * 4, "and not what lay in memory"
    np.testing.assert_allclose(found[:8000], whole[:8000], atol=1e-3)


def test_the_name_of_a_file_does_not_matter(tmp_path):
    path = tmp_path / "recorder.raw"
    path.write_bytes(sound_file(tone(8000), 8000))
    with path.open("rb") as file:
        np.testing.assert_array_equal(load_audio(path), load_audio(file))
    path.write_bytes(b"no sound, and no header either " * 9)
    with pytest.raises(UndecodableAudioError, match="audio"):
        load_audio(path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_is_read(tmp_path):
    path, content = tmp_path / "pipe.wav", sound_file(tone(8000), 8000)
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(content,))
    writer.start()
    np.testing.assert_array_equal(load_audio(path), load_audio(content))
    writer.join()


class _FailingDisk(io.BytesIO):
    """Reads its header well, and then nothing."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= 44 and size != 4:  # libsndfile looks at four bytes after the header
            raise OSError(5, "Input/output error")
        return super().read(size)


@pytest.mark.filterwarnings("error")
def test_stream_errors_become_audio_errors():
    closed = io.BytesIO(sound_file(tone(8000), 8000))
    closed.close()
    with pytest.raises(UndecodableAudioError, match="closed"):
        load_audio(closed)
    with pytest.raises(UndecodableAudioError, match="Input/output error"):
        load_audio(_FailingDisk(sound_file(tone(8000), 8000)))
    np.testing.assert_array_equal(
        load_audio(memoryview(sound_file(tone(8000), 8000).replace(b"", b"\0"))[1::2]),
        load_audio(sound_file(tone(8000), 8000)),
    )


def test_levels_are_bounded_behind_the_resampler_too():
    steps = np.where(np.random.default_rng(0).random(20_000) < 0.5, -LOUDEST, LOUDEST).astype(np.float32)
    assert load_audio(steps).any()
    with pytest.raises(NonFiniteAudioError, match="too loud"):
        load_audio(steps, 11_025)


@pytest.mark.parametrize("samples", [np.zeros(800), np.full(800, 0.25), tone(8000) * 1e-7, np.zeros(8000 * 140)])
def test_silence_is_zeros_and_an_error_only_where_sound_is_needed(samples):
    samples = samples.astype(np.float32)
    assert not decode(samples).any()
    assert len(decode(samples)) == len(samples)
    np.testing.assert_array_equal(load_audio(samples), np.zeros(NUM_SAMPLES, np.float32))
    with pytest.raises(SilentAudioError, match="digital silence"):
        decode_sound(samples)
    assert load_audio(tone(8000) * 1e-5).any()


@pytest.mark.parametrize("rate", [0, -8000, 999, 10**9, 8000.5, True])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(UndecodableAudioError, match="sample rate"):
        load_audio(tone(8000), rate)
    with pytest.raises(UndecodableAudioError, match="states its own rate"):
        load_audio(sound_file(tone(8000), 8000), 16000)


def test_too_long_recordings_raise(tmp_path):
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 1000, 1, "PCM_U8") as file:
        for _ in range(62):
            file.write(np.random.default_rng(0).uniform(-1, 1, 60_000).astype(np.float32))
    with pytest.raises(TooLongAudioError, match="60 minutes"):
        decode(path)


@pytest.mark.parametrize(("silence_db", "expected"), [(-30.0, (3920, 5680)), (-50.0, (1920, 7680))])
def test_trim_silence_keeps_10_ms(silence_db, expected):
    clip = np.zeros(9000, dtype=np.float32)
    clip[2000:7600] = 0.01  # 40 dB below
    clip[4000:5600] = 1.0
    begin, end = expected
    np.testing.assert_array_equal(trim_silence(clip, silence_db), clip[begin:end])


def test_a_clip_without_silence_stays_whole_and_so_does_a_click():
    loud = np.full(8000, 0.5, dtype=np.float32)
    click = np.r_[np.zeros(80), 0.5 * np.ones(20)].astype(np.float32)
    for samples in (loud, loud[:1], loud[:79], click):
        np.testing.assert_array_equal(trim_silence(samples, -30.0), samples)


@pytest.mark.parametrize("offset", [0.1, -0.3])
@pytest.mark.parametrize("seconds", [0.5, 3.0, 140.0])  # the last is more than is held: it is decoded twice
def test_a_large_offset_is_removed(offset, seconds):
    word = tone(400.0, 0.4)
    sound = np.zeros(int(seconds * SAMPLE_RATE), dtype=np.float32)
    sound[800 : 800 + len(word)] = 0.3 * word
    np.testing.assert_allclose(load_audio(sound + np.float32(offset)), load_audio(sound), atol=0.02)
    np.testing.assert_allclose(decode(sound + np.float32(offset)), sound, atol=0.02)
    slightly = (0.3 * word + 0.01).astype(np.float32)
    np.testing.assert_array_equal(decode(slightly), slightly)


def test_masked_arrays():
    sound = 0.3 * tone(8000, 0.4)
    np.testing.assert_array_equal(load_audio(np.ma.masked_greater(sound, 0.1)), load_audio(sound))
