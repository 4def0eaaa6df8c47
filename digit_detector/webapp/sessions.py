"""Sessions: several streams of one client, what was said in them, and their sound where that was asked for."""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus

from digit_detector.streaming.engine import Detection
from digit_detector.webapp.faults import RefusedError, busy

_MOST_DIGITS = 10_000  # that a session remembers
_MOST_RECORDINGS = 1000  # that a session keeps


@dataclass
class Recording:
    """The sound of one stream, 16-bit samples."""

    rate: int
    samples: bytearray = field(default_factory=bytearray)
    whole: bool = True  # until there is no more room


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


class Sessions:
    """All that are open. They live in memory and end with the server."""

    def __init__(
        self, most: int, idle_seconds: float, kept_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._idle, self._kept, self._clock = most, idle_seconds, kept_bytes, clock
        self._sessions: dict[str, Session] = {}
        self.kept_bytes = 0  # of sound, in all of them

    def create(self, keep_audio: bool) -> Session:
        """A new session. Raises RefusedError where there are too many."""
        self._forget_old()
        if len(self._sessions) >= self._most:
            raise busy(f"{self._most} sessions are open, as many as there may be; close one")
        session = Session(secrets.token_urlsafe(16), keep_audio, datetime.now(UTC), self._clock())
        self._sessions[session.id] = session
        return session

    def find(self, name: str) -> Session:
        """The session of that id. Raises RefusedError where there is none."""
        self._forget_old()
        session = self._sessions.get(name)
        if session is None:
            raise RefusedError(
                HTTPStatus.NOT_FOUND, "no_session", "there is no such session: make one with POST /sessions"
            )
        return session

    def close(self, name: str) -> None:
        """Forget a session and all it kept. Raises RefusedError where there is none."""
        self._forget(self.find(name))

    def all(self) -> list[Session]:
        self._forget_old()
        return list(self._sessions.values())

    def begin(self, session: Session, rate: int) -> Recording | None:
        """A stream of it begins -> what its sound is kept in, where that was asked for and there is room."""
        session.streams += 1
        session.open += 1
        session.used = self._clock()
        if not session.keep_audio or len(session.recordings) >= _MOST_RECORDINGS:
            return None
        session.recordings.append(Recording(rate))
        return session.recordings[-1]

    def end(self, session: Session) -> None:
        """One of its streams is over."""
        session.open -= 1
        session.used = self._clock()

    def hear(self, session: Session, recording: Recording | None, samples: bytes, rate: int) -> None:
        """16-bit samples that came; kept where that was asked for, there is room, and nobody closed the session."""
        session.seconds += len(samples) / 2 / rate
        if recording is not None and session.id in self._sessions:
            if self.kept_bytes + len(samples) > self._kept:
                recording.whole = False
            if recording.whole:
                recording.samples += samples
                self.kept_bytes += len(samples)

    def told(self, session: Session, detections: list[Detection]) -> None:
        session.detections += detections[: _MOST_DIGITS - len(session.detections)]

    def _forget_old(self) -> None:
        now = self._clock()
        for session in list(self._sessions.values()):
            if not session.open and now - session.used > self._idle:
                self._forget(session)

    def _forget(self, session: Session) -> None:
        del self._sessions[session.id]
        self.kept_bytes -= sum(len(recording.samples) for recording in session.recordings)


def as_wav(recording: Recording) -> bytes:
    """The bytes of a WAV file."""
    import numpy as np
    import soundfile

    file = io.BytesIO()
    samples = np.frombuffer(bytes(recording.samples), dtype="<i2")
    soundfile.write(file, samples, recording.rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
