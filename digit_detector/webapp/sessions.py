"""Sessions: the digits of several streams of one client, and optionally their audio, with its downloads."""

from __future__ import annotations

import asyncio
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from digit_detector.streaming.engine import Detection
from digit_detector.webapp.clients import Quota
from digit_detector.webapp.errors import RejectedError, make_busy_error

_MAX_DIGITS = 10_000  # per session
_MAX_RECORDINGS = 1000  # per session
_CHUNK = 1 << 16  # bytes read at a time
_HEADER_BYTES = 44


@dataclass(eq=False)
class Recording:
    """Kept audio of one stream, 16-bit samples."""

    rate: int
    audio: bytearray = field(default_factory=bytearray)
    whole: bool = True  # False once audio was dropped for lack of room


@dataclass(eq=False)
class Session:
    id: str
    keep_audio: bool
    client: str  # address that created it
    created: datetime
    used: float  # monotonic seconds
    streams: int = 0
    open: int = 0  # streams that have not ended
    seconds: float = 0.0
    detections: list[Detection] = field(default_factory=list)
    recordings: list[Recording] = field(default_factory=list)

    @property
    def digits(self) -> str:
        return "".join(str(detection.digit) for detection in self.detections)


class Sessions:
    """All open sessions. They end with the server, and may only be used in the thread of its event loop."""

    def __init__(
        self, most: int, most_per_client: int, idle_seconds: float, kept_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._most, self._most_per_client = most, most_per_client
        self._idle, self._kept, self._clock = idle_seconds, kept_bytes, clock
        self._sessions: dict[str, Session] = {}
        self.kept_bytes = 0  # of audio, in all sessions

    def create(self, keep_audio: bool, client: str = "") -> Session:
        """Create a session. Raises RejectedError at a limit."""
        self._delete_expired()
        if sum(session.client == client for session in self._sessions.values()) >= self._most_per_client:
            raise RejectedError(
                HTTPStatus.TOO_MANY_REQUESTS, "too_many",
                f"{self._most_per_client} sessions of your address are open, the limit per client: close one",
            )  # fmt: skip
        if len(self._sessions) >= self._most:
            raise make_busy_error(f"{self._most} sessions are open, the limit of this server; close one")
        session = Session(secrets.token_urlsafe(16), keep_audio, client, datetime.now(UTC), self._clock())
        self._sessions[session.id] = session
        return session

    def find(self, name: str) -> Session:
        """Return the session of an id. Raises RejectedError if there is none."""
        self._delete_expired()
        session = self._sessions.get(name)
        if session is None:
            raise RejectedError(
                HTTPStatus.NOT_FOUND, "no_session", "there is no such session: create one with POST /sessions"
            )
        return session

    def close(self, name: str) -> None:
        """Delete a session and its audio. Raises RejectedError if there is none."""
        self._delete(self.find(name))

    def __len__(self) -> int:
        # a copy: /metrics runs in a thread
        return sum(not self._is_expired(session) for session in list(self._sessions.values()))

    def all(self) -> list[Session]:
        self._delete_expired()
        return list(self._sessions.values())

    def begin(self, session: Session, rate: int) -> Recording | None:
        """Start a stream; returns the recording for its audio if the session keeps audio and has room."""
        session.streams += 1
        session.open += 1
        session.used = self._clock()
        if not session.keep_audio or len(session.recordings) >= _MAX_RECORDINGS:
            return None
        session.recordings.append(Recording(rate))
        return session.recordings[-1]

    def end(self, session: Session) -> None:
        """End a stream."""
        session.open -= 1
        session.used = self._clock()

    def append_audio(self, session: Session, recording: Recording | None, samples: bytes, rate: int) -> None:
        """Add 16-bit samples to a stream's recording, if it has one, there is room, and the session is open."""
        session.seconds += len(samples) / 2 / rate
        if recording is None or session.id not in self._sessions:
            return
        recording.whole &= self.kept_bytes + len(samples) <= self._kept
        if recording.whole:
            recording.audio += samples
            self.kept_bytes += len(samples)

    def append_detections(self, session: Session, detections: list[Detection]) -> None:
        session.detections += detections[: _MAX_DIGITS - len(session.detections)]

    def read_wav(self, recording: Recording) -> tuple[int, Iterator[bytes]]:
        """Return the size of a WAV file with the audio so far, and its bytes in small pieces.

        They end early if the session is closed meanwhile.
        """
        size = len(recording.audio)

        def pieces() -> Iterator[bytes]:
            rate = recording.rate
            # PCM, one channel, Hz, bytes per second and per frame, bits per sample
            yield struct.pack("<4sI4s4sI", b"RIFF", _HEADER_BYTES - 8 + size, b"WAVE", b"fmt ", 16) + struct.pack(
                "<HHIIHH4sI", 1, 1, rate, 2 * rate, 2, 16, b"data", size
            )
            for first in range(0, size, _CHUNK):
                yield bytes(recording.audio[first : min(first + _CHUNK, size)])

        return _HEADER_BYTES + size, pieces()

    def close_all(self) -> None:
        for session in list(self._sessions.values()):
            self._delete(session)

    def _is_expired(self, session: Session) -> bool:
        return not session.open and self._clock() - session.used > self._idle

    def _delete_expired(self) -> None:
        for session in self._sessions.copy().values():
            if self._is_expired(session):
                self._delete(session)

    def _delete(self, session: Session) -> None:
        del self._sessions[session.id]
        for recording in session.recordings:
            self.kept_bytes -= len(recording.audio)
            recording.audio.clear()


class Download(Response):
    """`size` bytes in pieces; each is read once the client has received the ones before.

    If there are fewer bytes than `size`, the connection is cut, so that the client notices.
    """

    def __init__(
        self, quota: Quota, client: str, size: int, pieces: Iterator[bytes], media_type: str,
        headers: Mapping[str, str],
    ) -> None:  # fmt: skip
        """`quota` limits the downloads of a client."""
        super().__init__(media_type=media_type, headers={**headers, "Content-Length": str(size)})
        self._quota, self._client, self._size, self._pieces = quota, client, size, pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._quota.take(self._client):
            raise make_busy_error("as many downloads of your address are open as one client may have")
        disconnected = asyncio.ensure_future(wait_for_disconnect(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            remaining = self._size
            for piece in self._pieces:
                remaining -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": remaining > 0})
                await asyncio.sleep(0)  # let live streams run, however fast the client reads
                if disconnected.done():
                    return
        finally:
            disconnected.cancel()
            self._quota.give_back(self._client)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected; the request must have been read completely."""
    while (await receive())["type"] != "http.disconnect":
        pass
