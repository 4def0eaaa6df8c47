"""The application on a socket: how uvicorn runs it, and under which address."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from digit_detector.webapp.settings import Settings


class _Connection(HttpToolsProtocol):
    """One that is closed when the head of a request does not come whole, for which uvicorn would wait for ever."""

    patience: float  # seconds
    head_bytes: int

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = None
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expected()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._late is not None and self._head > self.head_bytes:
            self.transport.abort()

    def on_message_begin(self) -> None:
        self._expect()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._expected()
        super().on_headers_complete()

    def _expect(self) -> None:
        self._expected()
        self._head = 0  # bytes of it that came
        self._late = self.loop.call_later(self.patience, self.transport.abort)

    def _expected(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def server_of(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """A server that a socket is still to be given to."""

    class Connection(_Connection):
        patience, head_bytes = settings.start_seconds, settings.head_bytes

    config = uvicorn.Config(
        app, http=Connection, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
        ws="websockets-sansio", ws_max_size=2 * settings.message_bytes,
        ws_per_message_deflate=False,  # sound of 16 bits gets no smaller, and packing it costs more than hearing it
        limit_concurrency=2 * settings.connections, timeout_keep_alive=15, timeout_graceful_shutdown=2,
    )  # fmt: skip
    return uvicorn.Server(config)


def page_address(listening: socket.socket) -> str:
    """Where a browser on this machine finds the page."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
