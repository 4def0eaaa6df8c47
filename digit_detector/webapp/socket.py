"""/ws: sound in, digits out, while it is spoken."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from digit_detector.webapp.faults import RefusedError, body
from digit_detector.webapp.hearing import Heard, Hearing, Line
from digit_detector.webapp.sessions import Recording, Session, Sessions
from digit_detector.webapp.settings import Settings
from ml_training.audio import MAX_RATE

_LOWEST_RATE = 4000
_REFUSED, _TOO_LARGE, _BUSY = 1008, 1009, 1013  # close codes of RFC 6455 and its registry
_LAST_WORD = 2.0  # seconds that a client is given to take it
_EXPECTED = 'expected {"type":"start","sample_rate":48000}, then sound as 16-bit samples, then {"type":"stop"}'


class Sockets:
    """The ASGI application behind /ws."""

    def __init__(self, hearing: Hearing, sessions: Sessions, settings: Settings) -> None:
        self._hearing, self._sessions, self._settings = hearing, sessions, settings
        self.count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # that it connects
        await send({"type": "websocket.accept"})
        if self.count >= self._settings.connections:
            await _refuse(send, RefusedError(_BUSY, "busy", "too many connections are open: try again in a moment"))
            return
        self.count += 1
        try:
            await _Conversation(scope, receive, send, self._hearing, self._sessions, self._settings).hold()
        finally:
            self.count -= 1


class _Conversation:
    """One socket, from its first message to its last."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, hearing: Hearing, sessions: Sessions, settings: Settings
    ) -> None:
        self._scope, self._receive, self._send_raw = scope, receive, send
        self._hearing, self._sessions, self._settings = hearing, sessions, settings
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()  # when a message came
        self._session: Session | None = None
        self._recording: Recording | None = None
        self._line: Line | None = None
        self._stopping = False
        self._began = 0.0  # when the stream did
        self._fed = 0.0  # seconds of sound of it that came
        self._second = self._messages = 0  # the second of the clock, and what came in it
        self._news: list[Heard] = []
        self._told = asyncio.Event()

    async def hold(self) -> None:
        tasks = [asyncio.ensure_future(doing) for doing in (self._speak(), self._listen(), self._watch())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except RefusedError as refused:
            await _refuse(self._send_raw, refused)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._end(forget=True)

    async def _listen(self) -> None:
        """Take messages until the client goes."""
        asked = parse_qs(self._scope["query_string"].decode("latin-1"))
        if "session" in asked:
            self._session = self._sessions.find(asked["session"][0])
        while True:
            message = await self._receive()
            self._last = self._clock()
            if message["type"] == "websocket.disconnect":
                return
            self._pace()
            if (sound := message.get("bytes")) is not None:
                self._feed(sound)
            else:
                await self._obey(message.get("text") or "")

    def _pace(self) -> None:
        second = int(self._clock())
        if second != self._second:
            self._second, self._messages = second, 0
        self._messages += 1
        if self._messages > self._settings.messages_a_second:
            raise RefusedError(
                _REFUSED, "too_many",
                f"more than {self._settings.messages_a_second} messages in a second: send 20 to 100 ms in each",
            )  # fmt: skip

    def _feed(self, sound: bytes) -> None:
        if self._line is None or self._stopping:
            raise RefusedError(_REFUSED, "not_started", f"sound came before a stream was started: {_EXPECTED}")
        if len(sound) % 2:
            raise RefusedError(
                _REFUSED, "bad_audio", f"{len(sound)} bytes are no 16-bit samples: expected an even number"
            )
        if len(sound) > self._settings.message_bytes:
            raise RefusedError(
                _TOO_LARGE, "too_large",
                f"a message of {len(sound)} bytes: expected {self._settings.message_bytes} at most",
            )  # fmt: skip
        self._fed += len(sound) / 2 / self._line.rate
        if self._fed > self._settings.burst_seconds + self._settings.faster * (self._clock() - self._began):
            raise RefusedError(
                _REFUSED, "too_fast",
                f"sound came more than {self._settings.faster:g} times as fast as it was spoken: send it in real time",
            )  # fmt: skip
        self._hearing.feed(self._line, sound)
        if self._session is not None:
            self._sessions.hear(self._session, self._recording, sound, self._line.rate)

    async def _watch(self) -> None:
        """End the conversation when nothing comes any more."""
        while True:
            patience = self._settings.idle_seconds if self._line else self._settings.start_seconds
            left = self._last + patience - self._clock()
            if left <= 0:
                raise RefusedError(_REFUSED, "idle", f"nothing came for {patience:g} s: connect again to go on")
            await asyncio.sleep(left)

    async def _obey(self, text: str) -> None:
        try:
            said = json.loads(text) if len(text) <= 1000 else None
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            said = {}
        kind = said.get("type")
        if kind == "start":
            await self._start(said)
        elif kind == "stop" and self._line is not None and not self._stopping:
            self._stopping = True
            self._hearing.end(self._line)
        else:
            raise RefusedError(_REFUSED, "bad_message", f"a message that is none of ours: {_EXPECTED}")

    async def _start(self, said: dict[str, Any]) -> None:
        if self._line is not None:
            raise RefusedError(_REFUSED, "started", "a stream is open already: stop it before the next")
        rate = said.get("sample_rate")
        if isinstance(rate, bool) or not isinstance(rate, int) or not _LOWEST_RATE <= rate <= MAX_RATE:
            raise RefusedError(
                _REFUSED, "bad_rate", f"sample_rate: expected a whole number of Hz from {_LOWEST_RATE} to {MAX_RATE}"
            )
        self._line = self._hearing.open(rate, self._heard)
        self._stopping, self._began, self._fed = False, self._clock(), 0.0
        if self._session is not None:
            self._recording = self._sessions.begin(self._session, rate)
        session = self._session.id if self._session else None
        await self._send({"type": "ready", "sample_rate": rate, "session": session})

    def _heard(self, heard: Heard) -> None:
        self._news.append(heard)
        self._told.set()

    async def _speak(self) -> None:
        """Tell what was heard as soon as it was."""
        while True:
            await self._told.wait()
            self._told.clear()
            news, self._news = self._news, []
            detections = [detection for heard in news for detection in heard.detections]
            for detection in detections:
                await self._send({"type": "digit", **{k: _short(v) for k, v in asdict(detection).items()}})
            if self._session is not None:
                self._sessions.told(self._session, detections)
            last = news[-1]
            if last.fault is not None:
                raise last.fault
            await self._send_raw({"type": "websocket.send", "text": _state(last)})
            if last.ended:
                self._end(forget=False)
                await self._send({"type": "stopped", "seconds": _short(last.seconds)})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._send_raw({"type": "websocket.send", "text": json.dumps(message)})

    def _end(self, forget: bool) -> None:
        if self._line is not None:
            if forget:
                self._hearing.close(self._line)
            self._line = None
            if self._session is not None:
                self._sessions.end(self._session, self._recording)


def _state(heard: Heard) -> str:
    """What is told of every piece; there are thousands a second of them, hence no json.dumps."""
    return (
        f'{{"type":"heard","frames":{heard.pieces},"seconds":{heard.seconds:.3f},"level_db":{heard.level_db:.1f},'
        f'"voice":{heard.voice:.3f}}}'
    )


def _short(value: float) -> float:
    return round(value, 4)


async def _refuse(send: Send, refused: RefusedError) -> None:
    code = refused.status if refused.status > 1000 else _BUSY if refused.code == "busy" else _REFUSED
    said = {"type": "error", **body(refused.code, str(refused))["error"]}
    with contextlib.suppress(RuntimeError, OSError):  # the client may be gone, or read no more (TimeoutError)
        async with asyncio.timeout(_LAST_WORD):
            await send({"type": "websocket.send", "text": json.dumps(said)})
            await send({"type": "websocket.close", "code": code, "reason": refused.code})
