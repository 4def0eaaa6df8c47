"""Sessions: the digits of several streams of one client, and optionally their audio."""

from __future__ import annotations

import logging
import secrets
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import IO

from digit_detector.streaming.engine import Detection
from digit_detector.webapp.errors import RejectedError, make_busy_error

_MAX_DIGITS = 10_000  # per session
_MAX_RECORDINGS = 1000  # per session
_PENDING = 1 << 14  # bytes of a recording that are buffered before a write
_CHUNK = 1 << 16  # bytes read at a time
_log = logging.getLogger("digits.serve")


@dataclass(eq=False)
class Recording:
    """Kept audio of one stream, 16-bit samples: its place in the file of the session."""

    rate: int
    size: int = 0  # bytes
    whole: bool = True  # False once audio was dropped for lack of room
    pending: bytearray = field(default_factory=bytearray)  # not yet written
    parts: list[tuple[int, int]] = field(default_factory=list)  # (offset in the file, length) in bytes


@dataclass(eq=False)
class Session:
    id: str
    keep_audio: bool
    created: datetime
    used: float  # monotonic seconds
    streams: int = 0
    open: int = 0  # streams that have not ended
    seconds: float = 0.0
    detections: list[Detection] = field(default_factory=list)
    recordings: list[Recording] = field(default_factory=list)
    file: IO[bytes] | None = None  # unnamed temporary file with the audio
    file_size: int = 0


class Sessions:
    """All open sessions. They end with the server, and may only be used in the thread of its event loop."""

    def __init__(
        self, most: int, idle_seconds: float, kept_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._idle, self._kept, self._clock = most, idle_seconds, kept_bytes, clock
        self._sessions: dict[str, Session] = {}
        self.kept_bytes = 0  # of audio, in all sessions

    def create(self, keep_audio: bool) -> Session:
        """Create a session. Raises RejectedError at the limit."""
        self._delete_expired()
        if len(self._sessions) >= self._most:
            raise make_busy_error(f"{self._most} sessions are open, the limit of this server; close one")
        session = Session(secrets.token_urlsafe(16), keep_audio, datetime.now(UTC), self._clock())
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

    def end(self, session: Session, recording: Recording | None = None) -> None:
        """End a stream and its recording."""
        session.open -= 1
        session.used = self._clock()
        if recording is not None and session.id in self._sessions:
            self._write(session, recording)

    def append_audio(self, session: Session, recording: Recording | None, samples: bytes, rate: int) -> None:
        """Add 16-bit samples to a stream's recording, if it has one, there is room, and the session is open."""
        session.seconds += len(samples) / 2 / rate
        if recording is not None and session.id in self._sessions:
            if self.kept_bytes + len(samples) > self._kept:
                recording.whole = False
            if recording.whole:
                recording.pending += samples
                recording.size += len(samples)
                self.kept_bytes += len(samples)
                if len(recording.pending) >= _PENDING:
                    self._write(session, recording)

    def read_wav(self, session: Session, recording: Recording) -> tuple[int, Iterator[bytes]]:
        """Return the size of a WAV file with the audio so far, and its bytes in small pieces.

        They end early if the session is closed meanwhile.
        """
        self._write(session, recording)
        parts, size = list(recording.parts), recording.size

        def pieces() -> Iterator[bytes]:
            yield _wav_header(recording.rate, size)
            for first, length in parts:
                for begin in range(first, first + length, _CHUNK):
                    if session.file is None:
                        return
                    session.file.seek(begin)
                    yield session.file.read(min(_CHUNK, first + length - begin))

        return len(_wav_header(recording.rate, size)) + size, pieces()

    def append_detections(self, session: Session, detections: list[Detection]) -> None:
        session.detections += detections[: _MAX_DIGITS - len(session.detections)]

    def _write(self, session: Session, recording: Recording) -> None:
        """Write the buffered audio into the session's file; if the disk is full, that part is lost."""
        waiting = len(recording.pending)
        if not waiting:
            return
        try:
            if session.file is None:
                session.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed by _forget)
            session.file.seek(session.file_size)
            written = session.file.write(recording.pending)
            if written < waiting:
                raise OSError(f"{written} of {waiting} bytes were written")
        except OSError as error:
            _log.error("audio of a session could not be kept: %s", error)
            recording.whole = False
            recording.size -= waiting
            self.kept_bytes -= waiting
        else:
            if recording.parts and sum(recording.parts[-1]) == session.file_size:
                first, length = recording.parts[-1]
                recording.parts[-1] = first, length + waiting
            else:
                recording.parts.append((session.file_size, waiting))
            session.file_size += waiting
        recording.pending.clear()

    def _is_expired(self, session: Session) -> bool:
        return not session.open and self._clock() - session.used > self._idle

    def _delete_expired(self) -> None:
        for session in list(self._sessions.values()):
            if self._is_expired(session):
                self._delete(session)

    def _delete(self, session: Session) -> None:
        del self._sessions[session.id]
        self.kept_bytes -= sum(recording.size for recording in session.recordings)
        if session.file is not None:
            session.file.close()
            session.file = None
        for recording in session.recordings:
            recording.pending.clear()

    def close_all(self) -> None:
        for session in list(self._sessions.values()):
            self._delete(session)


def _wav_header(rate: int, size: int) -> bytes:
    """Header of a WAV file with `size` bytes of 16-bit samples, one channel."""
    about = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)  # PCM, channels, Hz, bytes a second, of a frame, bits
    return (
        struct.pack("<4sI4s4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16) + about + struct.pack("<4sI", b"data", size)
    )
