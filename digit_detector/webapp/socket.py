"""/ws: sound in, digits out, while it is spoken."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from digit_detector.audio import MAX_RATE
from digit_detector.webapp.clients import client_of
from digit_detector.webapp.faults import RefusedError, body, busy
from digit_detector.webapp.hearing import Heard, Hearing, Line
from digit_detector.webapp.sessions import Recording, Session, Sessions
from digit_detector.webapp.settings import Settings

_LOWEST_RATE = 4000
_REFUSED, _TOO_LARGE, _BUSY = 1008, 1009, 1013  # close codes of RFC 6455 and its registry
_STEP = 1.0  # seconds between two looks at how fast audio comes
_LAST_WORD = 2.0  # seconds that a client is given to take it
_EXPECTED = 'expected {"type":"start","sample_rate":48000}, then sound as 16-bit samples, then {"type":"stop"}'


class Sockets:
    """The ASGI application behind /ws."""

    def __init__(self, hearing: Hearing, sessions: Sessions, settings: Settings) -> None:
        self.hearing, self.sessions, self.settings = hearing, sessions, settings
        self._open: dict[_Conversation, None] = {}  # in the order in which they were opened

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # that it connects
        await send({"type": "websocket.accept"})
        client = client_of(scope, self.settings.trusted_proxy)
        try:
            self._make_room(client)
        except RefusedError as refused:
            await _refuse(send, refused)
            return
        conversation = _Conversation(scope, receive, send, self, client)
        self._open[conversation] = None
        try:
            await conversation.hold()
        finally:
            self._open.pop(conversation, None)

    def _make_room(self, client: str) -> None:
        """Close the oldest WebSocket without a stream where all are taken. Raises RefusedError where none is idle."""
        most = self.settings.connections_per_client
        if sum(other.client == client for other in self._open) >= most:
            raise busy(f"{most} WebSockets of your address are open, as many as one client may have")
        if len(self._open) >= self.settings.connections:
            idle = next((other for other in self._open if not other.has_stream), None)
            if idle is None:
                raise busy("too many WebSockets are open")
            del self._open[idle]
            idle.end(busy("this WebSocket had no stream, and others came: start a stream soon after connecting"))

    def check_streams(self, client: str) -> None:
        """Raises RefusedError where a client has as many streams as it may have."""
        most = self.settings.streams_per_client
        if sum(other.client == client and other.has_stream for other in self._open) >= most:
            raise busy(f"{most} streams of your address are open, as many as one client may have")


class _Conversation:
    """One socket, from its first message to its last."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, sockets: Sockets, client: str) -> None:
        """`client`: the address that limits count for."""
        self._scope, self._receive, self._send_raw = scope, receive, send
        self._sockets, self.client = sockets, client
        self._hearing, self._sessions, self._settings = sockets.hearing, sockets.sessions, sockets.settings
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()  # when a message came
        self._session: Session | None = None
        self._recording: Recording | None = None
        self._line: Line | None = None
        self._stopping = False
        self._began = 0.0  # when the stream did
        self._fed = 0.0  # seconds of sound of it that came
        self._lead = self._settings.slow_seconds  # seconds that streams may still stand still; audio adds to them
        self._ended_by_server: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._second = self._messages = 0  # the second of the clock, and what came in it
        self._news: list[Heard] = []
        self._told = asyncio.Event()

    @property
    def has_stream(self) -> bool:
        return self._line is not None

    def end(self, why: RefusedError) -> None:
        """Close the socket for this reason."""
        if not self._ended_by_server.done():
            self._ended_by_server.set_exception(why)

    async def hold(self) -> None:
        tasks = [
            *(asyncio.ensure_future(doing) for doing in (self._speak(), self._listen(), self._watch())),
            self._ended_by_server,
        ]
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
        seconds = len(sound) / 2 / self._line.rate
        self._fed += seconds
        self._lead = min(self._settings.slow_seconds, self._lead + seconds / self._settings.min_speed)
        if self._fed > self._settings.burst_seconds + self._settings.max_speed * (self._clock() - self._began):
            raise RefusedError(
                _REFUSED, "too_fast",
                f"sound came more than {self._settings.max_speed:g} times as fast as it was spoken: "
                "send it in real time",
            )  # fmt: skip
        self._hearing.feed(self._line, sound)
        if self._session is not None:
            self._sessions.hear(self._session, self._recording, sound, self._line.rate)

    async def _watch(self) -> None:
        """End the conversation when nothing comes any more, or audio comes too slowly.

        The latter is counted in steps, not by the clock: time in which this process stood still is not the client's.
        """
        settings = self._settings
        while True:
            patience = settings.idle_seconds if self._line else settings.start_seconds
            left = self._last + patience - self._clock()
            if left <= 0:
                raise RefusedError(_REFUSED, "idle", f"nothing came for {patience:g} s: connect again to go on")
            step = min(_STEP, settings.slow_seconds / 10, left)
            await asyncio.sleep(step)
            if self._line is not None and not self._stopping:
                self._lead -= min(step, self._clock() - self._began)
            if self._lead <= 0:
                raise RefusedError(
                    _REFUSED, "too_slow",
                    f"audio came less than {settings.min_speed:g} times as fast as it is spoken: send it in real time, "
                    "silence too, and stop the stream for pauses",
                )  # fmt: skip

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
        self._sockets.check_streams(self.client)
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
    code = refused.status if refused.status > 1000 else _BUSY if refused.code in ("busy", "restarted") else _REFUSED
    said = {"type": "error", **body(refused.code, str(refused))["error"]}
    with contextlib.suppress(RuntimeError, OSError):  # the client may be gone, or read no more (TimeoutError)
        async with asyncio.timeout(_LAST_WORD):
            await send({"type": "websocket.send", "text": json.dumps(said)})
            await send({"type": "websocket.close", "code": code, "reason": refused.code})
