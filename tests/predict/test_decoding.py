"""Decoding ahead: in order, bounded, and no file ends the work for the others."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector.audio import load_audio
from ml_training.predict import decoding
from ml_training.predict.decoding import AHEAD_BYTES, CLIP_BYTES, STRETCH, Decoded, decoded
from ml_training.predict.walk import Found


def test_files_come_in_order_however_long_each_takes(tmp_path, make_clips, monkeypatch) -> None:
    names = [f"{n:03}.wav" for n in range(70)]
    make_clips(tmp_path, names)

    def slow(name: str) -> np.ndarray:
        time.sleep(0.02 if name.endswith("00.wav") else 0)
        return load_audio(name)

    monkeypatch.setattr(decoding, "load_audio", slow)
    found = [Found(str(tmp_path / name)) for name in names]
    for decoders in (1, 3):
        clips = list(decoded(iter(found), decoders))
        assert [one.name for one in clips] == [one.name for one in found]
        for one in clips[::10]:
            np.testing.assert_array_equal(one.clip, load_audio(one.name))


@pytest.mark.parametrize("decoders", [2, 64])
def test_no_more_is_read_ahead_than_is_allowed(tmp_path, make_clips, decoders) -> None:
    make_clips(tmp_path, ["x.wav"])
    taken = 0

    def endless() -> Iterator[Found]:
        nonlocal taken
        while True:
            taken += 1
            yield Found(str(tmp_path / "x.wav"))

    clips = decoded(endless(), decoders)
    for _ in range(100):
        next(clips)
    assert 100 + 2 * decoders < taken <= 100 + STRETCH + AHEAD_BYTES // CLIP_BYTES
    clips.close()
    deadline = time.monotonic() + 20
    while any(thread.name.startswith("decoder") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the threads outlive whoever takes their clips"
        time.sleep(0.01)


def test_what_cannot_be_decoded_is_told_and_the_others_come(tmp_path, make_clips, monkeypatch) -> None:
    make_clips(tmp_path, ["a.wav", "z.wav"])
    (tmp_path / "empty.wav").touch()
    (tmp_path / "odd.wav").touch()

    def breaking(name: str) -> np.ndarray:
        if "odd" in name:
            raise RuntimeError("what nobody thought of")
        return load_audio(name)

    monkeypatch.setattr(decoding, "load_audio", breaking)
    found = [Found(str(tmp_path / name)) for name in ("a.wav", "empty.wav", "gone.wav", "odd.wav", "z.wav")]
    first, empty, gone, odd, last = decoded(iter([*found[:4], Found("pipe", "is a pipe")][:4] + found[4:]), 1)
    assert first.error is last.error is None
    assert "is empty (0 bytes)" in str(empty.error)
    assert "No such file" in str(gone.error)
    assert str(odd.error).endswith("made the decoder fail (RuntimeError: what nobody thought of): please report it")
    assert list(decoded(iter([Found("pipe", "is a pipe")]), 1)) == [Decoded("pipe", error="is a pipe")]


def test_a_file_that_found_no_memory_is_tried_again_alone(tmp_path, make_clips, monkeypatch) -> None:
    make_clips(tmp_path, ["x.wav"])
    tries: list[str] = []

    def short(name: str) -> np.ndarray:
        tries.append(threading.current_thread().name)
        if len(tries) == 1 or name == "huge.wav":
            raise MemoryError
        return load_audio(name)

    monkeypatch.setattr(decoding, "load_audio", short)
    one, huge = decoded(iter([Found(str(tmp_path / "x.wav")), Found("huge.wav")]), 1)
    assert one.clip is not None
    assert huge.error == "huge.wav takes more memory to decode than there is"
    assert len(tries) == 4
    assert tries[2:] == [threading.current_thread().name] * 2


def test_what_waits_holds_a_second_and_no_more(tmp_path, monkeypatch) -> None:
    """A view would keep all of the recording: here 70 MB."""
    noise = np.random.default_rng(0).integers(-9000, 9000, 30 * 8000, dtype=np.int16)
    soundfile.write(tmp_path / "x.wav", noise, 8000)
    found = [Found(str(tmp_path / "x.wav"))] * 72
    assert len(list(decoded(iter(found[:1]), 1))) == 1  # imports what is imported late
    tracemalloc.start()
    clips = [one.clip for one in decoded(iter(found), 2)]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < len(clips) * CLIP_BYTES + (4 << 20)
    monkeypatch.setattr(decoding, "load_audio", lambda name: np.ones(1 << 16, np.float32)[:8000])
    clips += [one.clip for one in decoded(iter(found), 2)]
    assert all(clip.flags.owndata and clip.nbytes == CLIP_BYTES for clip in clips)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_that_nobody_writes_to_is_an_error_and_no_wait(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (one,) = decoded(iter([Found(str(tmp_path / "pipe.wav"))]), 1)
    assert one.error == f"{tmp_path / 'pipe.wav'} is a pipe: give it alone, without --out"


LONG_ONES = """
import resource, sys
from digit_detector.audio import load_audio
from ml_training.predict.decoding import decoded
from ml_training.predict.walk import Found
before = load_audio(sys.argv[1]) is None or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for one in decoded(map(Found, sys.argv[2:]), 4):
    print((one.error or f"answered {one.clip.any()}").rsplit("/")[-1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="measures memory by rusage")
def test_four_hours_at_once_are_not_in_memory_nor_what_a_header_promises(tmp_path: Path, make_clips) -> None:
    make_clips(tmp_path, ["a.wav"])
    content = (tmp_path / "a.wav").read_bytes()
    hour = 3590 * 8000
    for name, samples, there in (("billion", 10**9, 10**9), ("cut", hour, 400), *((n, hour, hour) for n in "1234")):
        with (tmp_path / f"{name}.wav").open("wb") as file:  # nearly all of it a hole in the file
            head = content[:4] + (36 + 2 * samples).to_bytes(4, "little") + content[8:40]
            file.write(head + (2 * samples).to_bytes(4, "little") + content[44:])
            file.truncate(44 + 2 * there)
    files = [tmp_path / f"{name}.wav" for name in ("a", "1", "2", "3", "4", "billion", "cut")]
    done = subprocess.run([sys.executable, "-c", LONG_ONES, *files], capture_output=True, text=True, timeout=120)
    *told, megabytes = done.stdout.splitlines()
    assert told == ["answered True"] * 4 + [
        "billion.wav is longer than 60 minutes: cut it to the utterance, expected about a second",
        f"cut.wav is cut off: its header promises {44 + 2 * hour} bytes, and 844 are there; copy or record it again",
    ], done.stderr
    assert int(megabytes) < 80, "each hour would be 115 MB"
