"""What sessions keep, counted as it comes and goes."""

import asyncio
import errno
import io
import sys
import tempfile

import numpy as np
import pytest
import soundfile

from digit_detector.webapp.downloads import Download, Downloads
from digit_detector.webapp.errors import RejectedError
from digit_detector.webapp.sessions import Sessions


def test_what_is_kept_is_counted_until_it_is_forgotten():
    now = [0.0]
    sessions = Sessions(most=3, idle_seconds=10.0, kept_bytes=100, clock=lambda: now[0])
    closed, old = sessions.create(keep_audio=True), sessions.create(keep_audio=True)
    for session in (closed, old):
        recording = sessions.begin(session, 8000)
        sessions.append_audio(session, recording, bytes(40), 8000)
        sessions.end(session)
    assert sessions.kept_bytes == 80
    sessions.append_audio(closed, recording, bytes(40), 8000)
    assert (sessions.kept_bytes, recording.whole) == (80, False)
    sessions.close(closed.id)
    assert sessions.kept_bytes == 40
    sessions.append_audio(closed, closed.recordings[0], bytes(40), 8000)
    assert sessions.kept_bytes == 40
    now[0] = 11.0
    assert sessions.all() == []
    assert sessions.kept_bytes == 0


def test_streams_without_end_cost_neither_memory_nor_time():
    sessions = Sessions(most=1, idle_seconds=10.0, kept_bytes=1 << 20)
    session = sessions.create(keep_audio=True)
    first = sessions.begin(session, 8000)
    for _ in range(20_000):
        sessions.begin(session, 8000)
        sessions.end(session)
    assert len(session.recordings) == 1000
    assert session.streams == 20_001
    lines = 0

    def count(*_: object) -> object:
        nonlocal lines
        lines += 1
        return count

    sys.settrace(count)
    sessions.append_audio(session, first, bytes(2), 8000)
    sys.settrace(None)
    assert lines < 100  # a sum over all of them would take a thousand


def test_sound_is_kept_on_disk_and_read_in_small_pieces_as_the_wav_that_it_is():
    sessions = Sessions(most=1, idle_seconds=10.0, kept_bytes=1 << 24)
    session = sessions.create(keep_audio=True)
    rng = np.random.default_rng(0)
    spoken = [rng.integers(-(2**15), 2**15, size, dtype=np.int16).astype("<i2") for size in (500_000, 123_457, 3)]
    rates = (48_000, 8000, 16_000)
    recordings = [sessions.begin(session, rate) for rate in rates]
    for first in range(0, 500_000, 1000):  # three streams at once
        for samples, recording, rate in zip(spoken, recordings, rates, strict=True):
            sessions.append_audio(session, recording, samples[first : first + 1000].tobytes(), rate)
    for recording in recordings:
        assert len(recording.pending) < 1 << 15
        sessions.end(session, recording)
        assert not recording.pending
    for samples, recording, rate in zip(spoken, recordings, rates, strict=True):
        expected = io.BytesIO()
        soundfile.write(expected, samples, rate, format="WAV", subtype="PCM_16")
        size, pieces = sessions.read_wav(session, recording)
        pieces = list(pieces)
        assert max(map(len, pieces)) <= 1 << 16
        assert b"".join(pieces) == expected.getvalue()
        assert size == len(expected.getvalue())
    sessions.close_all()
    assert sessions.kept_bytes == 0


def test_a_session_that_is_closed_frees_its_file_also_while_it_is_read():
    sessions = Sessions(most=1, idle_seconds=10.0, kept_bytes=1 << 24)
    session = sessions.create(keep_audio=True)
    recording = sessions.begin(session, 8000)
    sessions.append_audio(session, recording, bytes(1_000_000), 8000)
    size, pieces = sessions.read_wav(session, recording)
    file = session.file
    came = len(next(pieces)) + len(next(pieces))
    sessions.close(session.id)
    assert file.closed
    assert list(pieces) == []
    assert came < size
    assert sessions.kept_bytes == 0


def test_a_full_disk_ends_what_is_kept_and_not_the_stream(monkeypatch: pytest.MonkeyPatch):
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    sessions = Sessions(most=1, idle_seconds=10.0, kept_bytes=1 << 24)
    session = sessions.create(keep_audio=True)
    recording = sessions.begin(session, 8000)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    for _ in range(3):
        sessions.append_audio(session, recording, bytes(20_000), 8000)
    assert (recording.whole, recording.size, sessions.kept_bytes, session.seconds) == (False, 0, 0, 3.75)
    assert sessions.read_wav(session, recording)[0] == 44


def test_downloads_wait_for_their_client_and_are_few_for_each():
    async def use() -> None:
        downloads, taken = Downloads(2), 0

        def pieces():
            nonlocal taken
            for _ in range(100):
                taken += 1
                yield bytes(1000)

        async def send(message: dict) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()  # a client that reads nothing

        async def receive() -> dict:
            return await asyncio.get_running_loop().create_future()

        def download(client: str) -> asyncio.Future:
            answer = Download(downloads, client, 100_000, pieces(), "audio/wav", {})
            return asyncio.ensure_future(answer({"type": "http"}, receive, send))

        unread = [download("a"), download("a"), download("b")]
        await asyncio.sleep(0.01)
        assert taken == 3
        with pytest.raises(RejectedError, match="2 downloads of yours"):
            await download("a")
        assert len(downloads) == 3
        for task in unread:
            task.cancel()
        await asyncio.gather(*unread, return_exceptions=True)
        assert len(downloads) == 0

    asyncio.run(use())
