"""Uvicorn configuration: connection limits, timeouts, error responses."""

from __future__ import annotations

import asyncio
import json
import socket
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Response
from websockets.server import ServerProtocol

from digit_detector.webapp.clients import Connections
from digit_detector.webapp.errors import error_body
from digit_detector.webapp.limits import ServerLimits
from digit_detector.webapp.middleware import security_headers


class _HttpProtocol(H11Protocol):
    """Uvicorn's h11 protocol, which limits the size of a request's head.

    This adds time limits for the head, and for clients that do not read what they are sent: their connection is cut.
    Connections are counted per client, and uvicorn's own errors get the application's body and headers.
    """

    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, limits: ServerLimits, open_connections: Connections, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unread_seconds, self._open_connections = limits.unread_seconds, open_connections

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._open_connections.add(transport, self.client[0] if self.client else ""):
            self._await_head()
        else:
            transport.write(format_rejection(HTTPStatus.SERVICE_UNAVAILABLE, "busy", "too many connections are open"))
            transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open_connections.remove(self.transport)
        for timer in (self._late, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # otherwise a response has started
            self.transport.write(format_rejection(HTTPStatus.BAD_REQUEST, "bad_request", f"{msg} Expected HTTP/1.1"))
        self.transport.close()

    def _await_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(self.timeout_keep_alive, self._hang_up)

    def _hang_up(self) -> None:
        if self in self.connections and self.is_idle:  # not upgraded to a WebSocket
            self.transport.close()


class _Handshake(ServerProtocol):
    """The handshake of websockets, with the security headers on rejections."""

    def send_response(self, response: Response) -> None:
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            for name, value in security_headers().items():
                if name not in response.headers:
                    response.headers[name] = value
        super().send_response(response)


class _WebSocketProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's WebSocket protocol; it also cuts off invalid handshakes, and clients that ping without reading."""

    def __init__(self, *args: Any, open_connections: Connections, **options: Any) -> None:
        super().__init__(*args, **options)
        self._open_connections = open_connections
        self.conn = _Handshake(max_size=self.config.ws_max_size, logger=self.logger)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated:  # the head came at once and is invalid, e.g. a line of more than 8 KiB
            refusal = b"".join(self.conn.data_to_send())
            self.transport.write(
                refusal or format_rejection(HTTPStatus.BAD_REQUEST, "bad_request", "no valid WebSocket handshake")
            )
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open_connections.remove(self.transport)
        super().connection_lost(exc)

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.transport.abort()  # pending pongs would fill the memory


def format_rejection(status: HTTPStatus, code: str, message: str) -> bytes:
    """Format a complete HTTP response, for requests that never reach the application."""
    content = json.dumps(error_body(code, message)).encode()
    headers = {
        "Content-Type": "application/json", "Content-Length": str(len(content)), "Connection": "close",
        "Cache-Control": "no-cache", **security_headers(),
    }  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{head}\r\n".encode() + content


def make_server(app: FastAPI, limits: ServerLimits) -> uvicorn.Server:
    """Configure a uvicorn server for `app`; run it with a listening socket."""
    open_connections = Connections(limits)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
        http=cast("type[_HttpProtocol]", partial(_HttpProtocol, limits=limits, open_connections=open_connections)),
        h11_max_incomplete_event_size=limits.head_bytes, timeout_keep_alive=limits.head_seconds,
        ws=cast("type[_WebSocketProtocol]", partial(_WebSocketProtocol, open_connections=open_connections)),
        ws_max_size=2 * limits.message_bytes,
        ws_per_message_deflate=False,  # 16-bit audio hardly compresses, and compressing costs more than recognising it
        timeout_graceful_shutdown=2,
    )  # fmt: skip
    return uvicorn.Server(config)


def page_address(listening: socket.socket) -> str:
    """Return the URL of the page for a browser on this machine."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
