"""The application on a socket: how uvicorn runs it, and under which address."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

from digit_detector.webapp.settings import Settings


def server_of(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """A server that a socket is still to be given to."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
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
