"""What sessions keep, and downloads of it."""

import asyncio
import io

import numpy as np
import pytest
import soundfile

from digit_detector.webapp.clients import Quota
from digit_detector.webapp.errors import RejectedError
from digit_detector.webapp.sessions import Download, Sessions


def make_sessions(most: int = 1, kept_bytes: int = 1 << 24, **options: object) -> Sessions:
    return Sessions(most=most, most_per_client=most, idle_seconds=10.0, kept_bytes=kept_bytes, **options)


def test_kept_audio_is_counted_until_its_session_is_closed_or_expires():
    now = [0.0]
    sessions = make_sessions(3, 100, clock=lambda: now[0])
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


def test_recordings_of_a_session_are_limited():
    sessions = make_sessions()
    session = sessions.create(keep_audio=True)
    for _ in range(2000):
        sessions.begin(session, 8000)
        sessions.end(session)
    assert len(session.recordings) == 1000
    assert session.streams == 2000


def test_kept_audio_is_read_as_wav_in_small_pieces():
    sessions = make_sessions()
    session = sessions.create(keep_audio=True)
    rng = np.random.default_rng(0)
    spoken = [rng.integers(-(2**15), 2**15, size, dtype=np.int16).astype("<i2") for size in (500_000, 123_457, 3)]
    rates = (48_000, 8000, 16_000)
    recordings = [sessions.begin(session, rate) for rate in rates]
    for first in range(0, 500_000, 1000):  # three streams at once
        for samples, recording, rate in zip(spoken, recordings, rates, strict=True):
            sessions.append_audio(session, recording, samples[first : first + 1000].tobytes(), rate)
    for samples, recording, rate in zip(spoken, recordings, rates, strict=True):
        expected = io.BytesIO()
        soundfile.write(expected, samples, rate, format="WAV", subtype="PCM_16")
        size, pieces = sessions.read_wav(recording)
        pieces = list(pieces)
        assert max(map(len, pieces)) <= 1 << 16
        assert b"".join(pieces) == expected.getvalue()
        assert size == len(expected.getvalue())


def test_closing_a_session_ends_downloads_of_its_audio():
    sessions = make_sessions()
    session = sessions.create(keep_audio=True)
    recording = sessions.begin(session, 8000)
    sessions.append_audio(session, recording, bytes(1_000_000), 8000)
    size, pieces = sessions.read_wav(recording)
    came = len(next(pieces)) + len(next(pieces))
    sessions.close_all()
    assert came + len(b"".join(pieces)) < size
    assert sessions.kept_bytes == 0


@pytest.mark.anyio
async def test_downloads_wait_for_their_client_and_are_limited_for_each():
    downloads, taken = Quota(2), 0

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
    with pytest.raises(RejectedError, match="downloads of your address"):
        await download("a")
    assert downloads.total == 3
    for task in unread:
        task.cancel()
    await asyncio.gather(*unread, return_exceptions=True)
    assert downloads.total == 0
