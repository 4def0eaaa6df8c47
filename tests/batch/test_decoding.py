"""Decoding ahead: in order, bounded, and no file ends the work for the others."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ml_training.audio import load_audio
from ml_training.batch import decoding
from ml_training.batch.decoding import AHEAD, STRETCH, Decoded, decoded
from ml_training.batch.walk import Found


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


def test_no_more_is_read_ahead_than_is_allowed(tmp_path, make_clips) -> None:
    make_clips(tmp_path, ["x.wav"])
    taken = 0

    def endless() -> Iterator[Found]:
        nonlocal taken
        while True:
            taken += 1
            yield Found(str(tmp_path / "x.wav"))

    clips = decoded(endless(), 2)
    for _ in range(100):
        next(clips)
    assert taken <= 100 + STRETCH + 2 * AHEAD * STRETCH
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
        if len(tries) == 1:
            raise MemoryError
        return load_audio(name)

    monkeypatch.setattr(decoding, "load_audio", short)
    (one,) = decoded(iter([Found(str(tmp_path / "x.wav"))]), 2)
    assert one.clip is not None
    assert len(tries) == 2
    assert tries[1] == threading.current_thread().name


HUNGRY = """
import resource, sys
from pathlib import Path
from ml_training.audio import load_audio
from ml_training.batch.decoding import decoded
from ml_training.batch.walk import Found
load_audio(sys.argv[1])
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (96 << 20),) * 2)
for one in decoded(map(Found, sys.argv[1:]), 2):
    print(one.error or one.clip.shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_hour_of_sound_takes_little_memory(tmp_path, make_clips) -> None:
    make_clips(tmp_path, ["a.wav", "z.wav"])
    with (tmp_path / "hour.wav").open("wb") as file:  # 58 MB, nearly all of it a hole in the file
        content = (tmp_path / "a.wav").read_bytes()
        size = 2 * 8000 * 3600
        file.write(content[:4] + (36 + size).to_bytes(4, "little") + content[8:40] + size.to_bytes(4, "little"))
        file.write(content[44:])
        file.truncate(44 + size)
    files = [tmp_path / name for name in ("a.wav", "hour.wav", "z.wav")]
    done = subprocess.run([sys.executable, "-c", HUNGRY, *files], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["(8000,)"] * 3, done.stderr


def test_a_clip_that_memory_cannot_hold_is_a_row_of_its_own(tmp_path, make_clips, monkeypatch) -> None:
    make_clips(tmp_path, ["a.wav", "b.wav", "c.wav"])

    def hungry(name: str) -> np.ndarray:
        if name.endswith("b.wav"):
            raise MemoryError
        return load_audio(name)

    monkeypatch.setattr(decoding, "load_audio", hungry)
    names = [str(tmp_path / f"{letter}.wav") for letter in "abc"]
    errors = [one.error for one in decoded(map(Found, names), 2)]
    assert errors == [None, f"{names[1]} takes more memory to decode than there is", None]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_that_nobody_writes_to_is_an_error_and_no_wait(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (one,) = decoded(iter([Found(str(tmp_path / "pipe.wav"))]), 1)
    assert one.error == f"{tmp_path / 'pipe.wav'} is a pipe: give it alone, without --out"


LONG_ONES = """
import resource, sys
from ml_training.audio import load_audio
from ml_training.batch.decoding import decoded
from ml_training.batch.walk import Found
before = load_audio(sys.argv[1]) is None or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for one in decoded(map(Found, sys.argv[2:]), 4):
    print((one.error or "answered").rsplit("/")[-1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="measures memory by rusage")
def test_a_billion_samples_are_never_in_memory_nor_two_long_files_at_once(tmp_path: Path, make_clips) -> None:
    make_clips(tmp_path, ["a.wav"])
    content = (tmp_path / "a.wav").read_bytes()
    for name, samples, there in (("header", 10**9, 400), ("1", 10**9, 10**9), ("2", 10**9, 10**9), ("3", 10**9, 10**9)):
        with (tmp_path / f"{name}.wav").open("wb") as file:
            head = content[:4] + (36 + 2 * samples).to_bytes(4, "little") + content[8:40]
            file.write(head + (2 * samples).to_bytes(4, "little") + content[44:])
            file.truncate(44 + 2 * there)
    files = [tmp_path / f"{name}.wav" for name in ("a", "header", "1", "2", "3")]
    done = subprocess.run([sys.executable, "-c", LONG_ONES, *files], capture_output=True, text=True, timeout=120)
    *told, megabytes = done.stdout.splitlines()
    assert told == [
        "header.wav is cut off: its header promises 2000000044 bytes, and 844 are there; copy or record it again",
    ] + [f"{n}.wav is longer than 60 minutes: cut it to the utterance, expected about a second" for n in "123"], (
        done.stderr
    )
    assert int(megabytes) < 60, "an hour at 8 kHz is 115 MB"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
