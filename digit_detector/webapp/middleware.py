"""ASGI middleware: checks of host, origin and body size, and the security headers of responses."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from digit_detector.webapp.clients import client_address
from digit_detector.webapp.errors import RejectedError, error_body
from digit_detector.webapp.fair_pool import ByteBudget
from digit_detector.webapp.limits import ServerLimits

_HOST = re.compile(r"([a-zA-Z0-9.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?")  # the policy below quotes it
_CHANGING = ("POST", "PUT", "PATCH", "DELETE")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
}


class RequestGuard:
    """ASGI middleware: keeps other sites from using the server through a visitor's browser, and bounds requests."""

    def __init__(self, app: ASGIApp, limits: ServerLimits, sockets: ASGIApp, count: Callable[[str, int], None]) -> None:
        """`sockets` serves /ws, without FastAPI's layers around each message.

        `count` is called with the route and the status of every response.
        """
        self._app, self._limits, self._sockets, self._count = app, limits, sockets, count
        largest = limits.upload_bytes
        self._bodies = ByteBudget(max(limits.bodies_bytes, largest), max(limits.bodies_bytes // 4, largest))
        self._uploads: Counter[str] = Counter()  # requests with a body in progress, by client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            try:
                self._check(scope)
                if scope["path"] != "/ws":
                    raise RejectedError(HTTPStatus.NOT_FOUND, "not_found", "there is no WebSocket but /ws")
            except RejectedError as rejection:
                answer = JSONResponse(
                    error_body(rejection.code, str(rejection)), rejection.status, {"Connection": "close"}
                )
                await answer(scope, receive, send)  # instead of a handshake
                return
            await self._sockets(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        client, held = client_address(scope, self._limits.trusted_proxy), 0
        rejection: RejectedError | None = None  # while the body was read
        headers_of_request = Headers(scope=scope)
        host = headers_of_request.get("host", "")
        host = host if _HOST.fullmatch(host) else ""
        origin = headers_of_request.get("origin")
        uploader: str | None = None  # the client, if this request counts as an upload

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if rejection is not None and not started:
                return  # the application's response to it; the rejection is sent below
            if message["type"] == "http.response.start":
                started = True
                self._count(getattr(scope.get("route"), "path", "other"), message["status"])
                headers = MutableHeaders(scope=message)
                headers.update(security_headers(host))
                if origin in self._limits.allow_origin:
                    headers["Access-Control-Allow-Origin"] = origin
                    headers.add_vary_header("Origin")
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        async def receive_limited() -> Message:
            nonlocal rejection, held
            try:
                message = await receive_body()
                size = len(message.get("body", b""))
                self._bodies.take(client, size)
                held += size
                return message
            except RejectedError as error:
                rejection = error
                raise

        try:
            self._check(scope)
            receive_body = self._limit_body(scope, receive)
            if scope["method"] in _CHANGING:
                uploader = self._count_upload(client)
            await self._app(scope, receive_limited, send_guarded)
            if rejection is not None:
                raise rejection
        except RejectedError as error:
            if not started:
                rejection = None
                answer = JSONResponse(error_body(error.code, str(error)), error.status, {"Connection": "close"})
                await answer(scope, receive, send_guarded)
        except (Exception, asyncio.CancelledError):  # cancelled when the server stops
            if not started:
                rejection = None
                answer = JSONResponse(
                    error_body("failed", "this could not be answered; the server's log says more"), 500
                )
                await answer(scope, receive, send_guarded)
            raise  # into the log
        finally:
            self._bodies.give_back(client, held)
            if uploader is not None:
                self._uploads[uploader] -= 1
                if not self._uploads[uploader]:
                    del self._uploads[uploader]

    def _count_upload(self, client: str) -> str:
        """Count a request with a body. Raises RejectedError if the client has too many."""
        limit = self._limits.uploads_per_client
        if self._uploads[client] >= limit:
            raise RejectedError(
                HTTPStatus.TOO_MANY_REQUESTS, "too_many",
                f"{limit} requests of your address are in progress, the limit per client: wait for one",
            )  # fmt: skip
        self._uploads[client] += 1
        return client

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not _HOST.fullmatch(host) or _split_url(f"//{host}").hostname not in self._limits.names:
            raise RejectedError(
                HTTPStatus.MISDIRECTED_REQUEST, "wrong_host",
                "this server is not known by that name: ask for 127.0.0.1 or localhost, or start it with --allow_host",
            )  # fmt: skip
        origin = headers.get("origin")
        changing = scope["type"] == "websocket" or scope["method"] in _CHANGING
        if (
            changing
            and origin is not None
            and origin not in self._limits.allow_origin
            and _split_url(origin).netloc.lower() != host.lower()
        ):
            raise RejectedError(
                HTTPStatus.FORBIDDEN,
                "wrong_origin",
                "a page of another site may not use this server: open its own page, or start it with --allow_origin",
            )

    def _limit_body(self, scope: Scope, receive: Receive) -> Receive:
        """Wrap `receive`: it raises RejectedError for a body that is too large, or arrives too slowly."""
        limit = self._limits.upload_bytes
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise RejectedError(HTTPStatus.BAD_REQUEST, "bad_request", "Content-Length: expected a number of bytes")
        if int(length) > limit:
            raise _too_large(limit)
        received = 0
        until = asyncio.get_running_loop().time() + self._limits.request_seconds
        complete = False

        async def receive_limited() -> Message:
            nonlocal received, complete
            if complete:  # from here on it waits for a disconnect, without a timeout
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise RejectedError(
                    HTTPStatus.REQUEST_TIMEOUT, "too_slow",
                    f"the request did not arrive within {self._limits.request_seconds:g} s: send it again",
                ) from None  # fmt: skip
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if received > limit:
                    raise _too_large(limit)
            return message

        return receive_limited


def _split_url(address: str) -> SplitResult:
    """Split a URL; an invalid one has empty parts."""
    try:
        return urlsplit(address)
    except ValueError:  # brackets around something other than an IPv6 address
        return urlsplit("")


def security_headers(host: str = "") -> dict[str, str]:
    """Headers of every response. `host`: the request's Host header, or "" if it is invalid."""
    return {**_HEADERS, "Content-Security-Policy": build_policy(host)}


def build_policy(host: str) -> str:
    """The content security policy: same origin only, nothing inline; WebAssembly for the browser-only mode."""
    sockets = f" ws://{host} wss://{host}" if host else ""  # some browsers do not include them in 'self'
    return (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data: blob:; "
        f"media-src 'self' blob:; connect-src 'self'{sockets}; worker-src 'self' blob:; object-src 'none'; "
        "base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
    )


def _too_large(limit: int) -> RejectedError:
    return RejectedError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large",
        f"the request is larger than {limit / 2**20:g} MB: send a shorter recording, or a compressed one",
    )  # fmt: skip
