"""The WebSocket /ws: audio in, detected digits out, in real time. docs/web.md describes its messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import asdict
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from digit_detector.audio import MAX_RATE
from digit_detector.streaming.config import CONTEXTS
from digit_detector.streaming.engine import Detection
from digit_detector.webapp.clients import client_address
from digit_detector.webapp.errors import RejectedError, error_body, make_busy_error
from digit_detector.webapp.limits import ServerLimits
from digit_detector.webapp.sessions import Recording, Session, Sessions
from digit_detector.webapp.worker_pool import StreamHandle, StreamUpdate, WorkerPool

_MIN_RATE = 4000  # Hz
_PROTOCOLS = {1: "heard", 2: "status"}  # version that the client asks for -> type of the status messages
_REFUSED: Final = 1008  # close codes of RFC 6455 and its registry
_TOO_LARGE: Final = 1009
_BUSY: Final = 1013
_CHECK_SECONDS = 1.0  # between two checks of how fast audio comes
_SEND_SECONDS = 2.0  # for a client to take the message that ends the connection
_EXPECTED = 'expected {"type":"start","sample_rate":48000}, then audio as 16-bit samples, then {"type":"stop"}'
_log = logging.getLogger("digits.serve")


class WebSocketServer:
    """The ASGI application behind /ws."""

    def __init__(self, pool: WorkerPool, sessions: Sessions, limits: ServerLimits) -> None:
        self.pool, self.sessions, self.limits = pool, sessions, limits
        self._open: dict[_Connection, None] = {}  # oldest first
        self._has_warned = False

    @property
    def count(self) -> int:
        """Number of open WebSockets."""
        return len(self._open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        await send({"type": "websocket.accept"})
        client = client_address(scope, self.limits.trusted_proxy)
        try:
            self._make_room(client)
        except RejectedError as rejection:
            await _send_rejection(send, rejection)
            return
        connection = _Connection(scope, receive, send, self, client)
        self._open[connection] = None
        try:
            await connection.run()
        finally:
            self._open.pop(connection, None)

    def _make_room(self, client: str) -> None:
        """Check the connection limits; at the total, close the oldest WebSocket without a stream.

        Raises RejectedError if a limit is reached and none is idle.
        """
        most = self.limits.connections_per_client
        if sum(other.client == client for other in self._open) >= most:
            raise make_busy_error(f"{most} WebSockets of your address are open, as many as one client may have")
        if len(self._open) >= self.limits.connections:
            idle = next((other for other in self._open if other.stream is None), None)
            if idle is None:
                raise make_busy_error("too many WebSockets are open")
            del self._open[idle]
            idle.close(make_busy_error("a WebSocket without a stream made room for others: start a stream at once"))

    def check_streams(self, client: str) -> None:
        """Raise RejectedError if a client has reached its limit of streams."""
        most = self.limits.streams_per_client
        if sum(other.client == client and other.stream is not None for other in self._open) >= most:
            raise make_busy_error(f"{most} streams of your address are open, as many as one client may have")

    def warn_of_protocol_1(self) -> None:
        """Log once that a client uses the status messages of version 0.1."""
        if not self._has_warned:
            _log.warning('a WebSocket client did not ask for "protocol":2; protocol 1 is deprecated')
        self._has_warned = True


class _Connection:
    """One open WebSocket."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, sockets: WebSocketServer, client: str) -> None:
        """`client`: the address that the limits per client apply to."""
        self._scope, self._receive_raw, self._send_raw = scope, receive, send
        self._sockets, self.client = sockets, client
        self._pool, self._sessions, self._limits = sockets.pool, sockets.sessions, sockets.limits
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()  # time of the last message
        self._session: Session | None = None
        self._recording: Recording | None = None
        self.stream: StreamHandle | None = None
        self._stopping = False
        self._started = 0.0  # time at which the stream started
        self._status_type = _PROTOCOLS[1]
        self._fed = 0.0  # seconds of audio received for it
        self._slack = self._limits.slow_seconds  # seconds for which no audio need come; audio adds to them
        self._ended_by_server: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._second = self._messages = 0  # the current second, and the messages received in it
        self._updates: asyncio.Queue[StreamUpdate] = asyncio.Queue()

    def close(self, why: RejectedError) -> None:
        """Close the WebSocket with this error."""
        if not self._ended_by_server.done():
            self._ended_by_server.set_exception(why)

    async def run(self) -> None:
        """Serve the connection until either side ends it."""
        jobs = (self._send_updates(), self._receive(), self._enforce_timeouts())
        tasks = [*map(asyncio.ensure_future, jobs), self._ended_by_server]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except RejectedError as rejection:
            await _send_rejection(self._send_raw, rejection)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._end_stream(drop=True)

    async def _receive(self) -> None:
        """Handle messages until the client disconnects."""
        query = parse_qs(self._scope["query_string"].decode("latin-1"))
        if "session" in query:
            self._session = self._sessions.find(query["session"][0])
        while True:
            message = await self._receive_raw()
            self._last = self._clock()
            if message["type"] == "websocket.disconnect":
                return
            second = int(self._last)
            self._messages = self._messages + 1 if second == self._second else 1
            self._second, most = second, self._limits.messages_a_second
            if self._messages > most:
                raise _refuse("too_many", f"more than {most} messages in a second: send 20 to 100 ms in each")
            if (samples := message.get("bytes")) is not None:
                self._feed(samples)
            else:
                await self._on_message(message.get("text") or "")

    def _feed(self, samples: bytes) -> None:
        limits, size = self._limits, len(samples)
        if self.stream is None or self._stopping:
            raise _refuse("not_started", f"audio came before a stream was started: {_EXPECTED}")
        if size % 2:
            raise _refuse("bad_audio", f"{size} bytes are no 16-bit samples: expected an even number")
        if size > limits.message_bytes:
            message = f"a message of {size} bytes: expected {limits.message_bytes} at most"
            raise RejectedError(_TOO_LARGE, "too_large", message)
        seconds = size / 2 / self.stream.rate
        self._fed += seconds
        self._slack = min(limits.slow_seconds, self._slack + seconds / limits.min_speed)
        if self._fed > limits.burst_seconds + limits.max_speed * (self._clock() - self._started):
            faster = f"more than {limits.max_speed:g} times as fast as it was spoken"
            raise _refuse("too_fast", f"audio came {faster}: send it in real time")
        self._pool.feed(self.stream, samples)
        if self._session is not None:
            self._sessions.append_audio(self._session, self._recording, samples, self.stream.rate)

    async def _enforce_timeouts(self) -> None:
        """Raise RejectedError if no message comes for too long, or audio comes too slowly.

        The latter is counted in steps, not by the clock: time during which this process was suspended does not count.
        """
        limits = self._limits
        while True:
            timeout = limits.idle_seconds if self.stream else limits.start_seconds
            left = self._last + timeout - self._clock()
            if left <= 0:
                raise _refuse("idle", f"nothing came for {timeout:g} s: connect again to go on")
            step = min(_CHECK_SECONDS, limits.slow_seconds / 10, left)
            await asyncio.sleep(step)
            if self.stream is not None and not self._stopping:
                self._slack -= min(step, self._clock() - self._started)
            if self._slack <= 0:
                slower = f"less than {limits.min_speed:g} times as fast as it is spoken"
                raise _refuse(
                    "too_slow",
                    f"audio came {slower}: send it in real time, silence too, and stop the stream for pauses",
                )

    async def _on_message(self, text: str) -> None:
        try:
            message = json.loads(text) if len(text) <= 1000 else None
        except (ValueError, RecursionError):
            message = None
        message = message if isinstance(message, dict) else {}
        kind = message.get("type")
        if kind == "start":
            await self._start(message)
        elif kind == "stop" and self.stream is not None and not self._stopping:
            self._stopping = True
            self._pool.end(self.stream)
        else:
            raise _refuse("bad_message", f"unknown message: {_EXPECTED}")

    async def _start(self, message: dict[str, Any]) -> None:
        if self.stream is not None:
            raise _refuse("started", "a stream is open already: stop it before the next")
        rate, protocol = message.get("sample_rate"), message.get("protocol", 1)
        context = message.get("context", self._pool.context)
        if type(rate) is not int or not _MIN_RATE <= rate <= MAX_RATE:
            raise _refuse("bad_rate", f"sample_rate: expected a whole number of Hz from {_MIN_RATE} to {MAX_RATE}")
        if type(protocol) is not int or protocol not in _PROTOCOLS:
            raise _refuse("bad_message", f"protocol: expected one of {', '.join(map(str, _PROTOCOLS))}")
        if context not in tuple(CONTEXTS):
            raise _refuse("bad_message", f"context: expected one of {', '.join(CONTEXTS)}")
        if protocol == 1:
            self._sockets.warn_of_protocol_1()
        self._status_type = _PROTOCOLS[protocol]
        self._sockets.check_streams(self.client)
        self.stream = self._pool.open(rate, context, self._updates.put_nowait)
        self._stopping, self._started, self._fed = False, self._clock(), 0.0
        if self._session is not None:
            self._recording = self._sessions.begin(self._session, rate)
        session = self._session.id if self._session else None
        await self._send("ready", sample_rate=rate, session=session, context=context)

    async def _send_updates(self) -> None:
        """Send digits and status as soon as a worker reports them; status is skipped if a later one waits."""
        while True:
            update = await self._updates.get()
            for detection in update.detections:
                await self._send("digit", **_rounded(detection))
            if self._session is not None:
                self._sessions.append_detections(self._session, update.detections)
            if update.fault is not None:
                raise update.fault
            if self._updates.empty():  # formatted by hand: there are thousands a second, and json.dumps is slower
                status = (
                    f'{{"type":"{self._status_type}","frames":{update.chunks},"seconds":{update.seconds:.3f},'
                    f'"level_db":{update.level_db:.1f},"voice":{update.voice:.3f},'
                    f'"provisional":{json.dumps([_rounded(digit) for digit in update.provisional])}}}'
                )
                await self._send_raw({"type": "websocket.send", "text": status})
            if update.ended:
                self._end_stream(drop=False)
                await self._send("stopped", seconds=round(update.seconds, 4))

    async def _send(self, kind: str, **values: object) -> None:
        await self._send_raw({"type": "websocket.send", "text": json.dumps({"type": kind, **values})})

    def _end_stream(self, drop: bool) -> None:
        if self.stream is not None:
            if drop:
                self._pool.close(self.stream)
            self.stream = None
            if self._session is not None:
                self._sessions.end(self._session)


def _rounded(detection: Detection) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(detection).items()}


def _refuse(code: str, message: str) -> RejectedError:
    return RejectedError(_REFUSED, code, message)


async def _send_rejection(send: Send, rejection: RejectedError) -> None:
    """Send an error message and close the WebSocket."""
    may_retry = rejection.code in ("busy", "restarted")
    code = rejection.status if rejection.status > 1000 else _BUSY if may_retry else _REFUSED
    message = {"type": "error", **error_body(rejection.code, str(rejection))["error"]}
    with contextlib.suppress(RuntimeError, OSError):  # disconnected, or not reading (TimeoutError)
        async with asyncio.timeout(_SEND_SECONDS):
            await send({"type": "websocket.send", "text": json.dumps(message)})
            await send({"type": "websocket.close", "code": code, "reason": rejection.code})
