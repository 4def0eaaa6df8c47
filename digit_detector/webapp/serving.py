"""The application on a socket: how uvicorn runs it, and under which address."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from digit_detector.webapp.settings import Settings


class _Requests(H11Protocol):
    """Uvicorn's, of the two the one that bounds a request's head in bytes; here it is bounded in time, too.

    So is how long a client may leave what it is sent: then its connection is cut and what waits for it freed.
    """

    unread_seconds = 20.0
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._late, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _await_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(self.timeout_keep_alive, self._hang_up)

    def _hang_up(self) -> None:
        if self in self.connections and (self.cycle is None or self.cycle.response_complete):  # it is no socket of /ws
            self.transport.close()


class _Messages(WebSocketsSansIOProtocol):
    """Uvicorn's, but who asks what it cannot read, or pings and does not take the answers, is cut off."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated:  # the whole head came at once, with a line of more than 8 KiB, say
            self.transport.close()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.transport.abort()  # they would fill the memory


def server_of(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """A server that a socket is still to be given to."""
    requests = type("_Requests", (_Requests,), {"unread_seconds": settings.unread_seconds})
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
        http=requests, h11_max_incomplete_event_size=settings.head_bytes, timeout_keep_alive=settings.head_seconds,
        ws=_Messages, ws_max_size=2 * settings.message_bytes,
        ws_per_message_deflate=False,  # sound of 16 bits gets no smaller, and packing it costs more than hearing it
        limit_concurrency=2 * settings.connections, timeout_graceful_shutdown=2,
    )  # fmt: skip
    return uvicorn.Server(config)


def page_address(listening: socket.socket) -> str:
    """Where a browser on this machine finds the page."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
