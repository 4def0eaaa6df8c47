"""ASGI middleware: checks of host, origin and body size, and the security headers of responses."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from digit_detector.errors import DigitError
from digit_detector.webapp.clients import Quota, client_address
from digit_detector.webapp.errors import RejectedError, as_rejection, error_body, make_busy_error
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
        self._bodies = Quota(max(limits.bodies_bytes // 4, largest), max(limits.bodies_bytes, largest))
        self._requests = Quota(limits.uploads_per_client)  # with a body, in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            try:
                self._check(scope)
                if scope["path"] != "/ws":
                    raise RejectedError(HTTPStatus.NOT_FOUND, "not_found", "there is no WebSocket but /ws")
            except RejectedError as rejection:
                await _respond(rejection)(scope, receive, send)  # instead of a handshake
                return
            await self._sockets(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve_http(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = client_address(scope, self._limits.trusted_proxy)
        body = _Body(receive, self._limits, self._bodies, client)
        has_started = is_counted = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_started
            if body.rejection is not None and not has_started:
                return  # the application's response to it; the rejection is sent below
            if message["type"] == "http.response.start":
                has_started = True
                self._count(getattr(scope.get("route"), "path", "other"), message["status"])
                self._add_headers(scope, message)
            await send(message)

        async def reject(error: RejectedError) -> None:
            body.rejection = None
            if not has_started:
                await _respond(error)(scope, receive, send_guarded)

        try:
            self._check(scope)
            body.check_length(Headers(scope=scope).get("content-length", "0"))
            if scope["method"] in _CHANGING:
                is_counted = self._requests.take(client)
                if not is_counted:
                    raise RejectedError(
                        HTTPStatus.TOO_MANY_REQUESTS, "too_many",
                        f"{self._limits.uploads_per_client} requests of your address are in progress, the limit per "
                        "client: wait for one",
                    )  # fmt: skip
            await self._app(scope, body.receive, send_guarded)
            if body.rejection is not None:
                raise body.rejection
        except RejectedError as error:
            await reject(error)
        except (Exception, asyncio.CancelledError):  # cancelled when the server stops
            await reject(as_rejection(DigitError()))
            raise  # into the log
        finally:
            self._bodies.give_back(client, body.held)
            if is_counted:
                self._requests.give_back(client)

    def _check(self, scope: Scope) -> None:
        """Raise RejectedError for a host name that is not the server's, or a page of another site."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not _HOST.fullmatch(host) or _split_url(f"//{host}").hostname not in self._limits.names:
            raise RejectedError(
                HTTPStatus.MISDIRECTED_REQUEST, "wrong_host",
                "this server is not known by that name: ask for 127.0.0.1 or localhost, or start it with --allow_host",
            )  # fmt: skip
        if scope["type"] == "http" and scope["method"] not in _CHANGING:
            return
        if origin not in (None, *self._limits.allow_origin) and _split_url(origin).netloc.lower() != host.lower():
            raise RejectedError(
                HTTPStatus.FORBIDDEN, "wrong_origin",
                "a page of another site may not use this server: open its own page, or start it with --allow_origin",
            )  # fmt: skip

    def _add_headers(self, scope: Scope, message: Message) -> None:
        headers, request = MutableHeaders(scope=message), Headers(scope=scope)
        host, origin = request.get("host", ""), request.get("origin")
        headers.update(security_headers(host if _HOST.fullmatch(host) else ""))
        if origin in self._limits.allow_origin:
            headers["Access-Control-Allow-Origin"] = origin
            headers.add_vary_header("Origin")
        headers.setdefault("Cache-Control", "no-cache")


class _Body:
    """The body of a request: rejected if it is too large, arrives too slowly, or exceeds what clients may hold."""

    def __init__(self, receive: Receive, limits: ServerLimits, quota: Quota, client: str) -> None:
        self._receive, self._limits, self._quota, self._client = receive, limits, quota, client
        self._deadline = asyncio.get_running_loop().time() + limits.request_seconds
        self._is_complete = False
        self.held = 0  # bytes
        self.rejection: RejectedError | None = None  # raised by `receive`

    def check_length(self, length: str) -> None:
        """Raise RejectedError for an invalid Content-Length."""
        if not length.isascii() or not length.isdigit():
            raise RejectedError(HTTPStatus.BAD_REQUEST, "bad_request", "Content-Length: expected a number of bytes")
        self._check_size(int(length))

    def _check_size(self, size: int) -> None:
        if size > self._limits.upload_bytes:
            raise RejectedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large",
                f"the request is larger than {self._limits.upload_bytes / 2**20:g} MB: send a shorter recording, or a "
                "compressed one",
            )  # fmt: skip

    async def receive(self) -> Message:
        """The next message. Raises RejectedError."""
        if self._is_complete:  # from here on it waits for a disconnect, without a timeout
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
            size = len(message.get("body", b""))
            self._check_size(self.held + size)
            if not self._quota.take(self._client, size):
                raise make_busy_error("too many requests are being received")
            self.held += size
            self._is_complete = message["type"] == "http.request" and not message.get("more_body", False)
            return message
        except TimeoutError:
            self.rejection = RejectedError(
                HTTPStatus.REQUEST_TIMEOUT, "too_slow",
                f"the request did not arrive within {self._limits.request_seconds:g} s: send it again",
            )  # fmt: skip
            raise self.rejection from None
        except RejectedError as error:
            self.rejection = error
            raise


def _respond(error: RejectedError) -> JSONResponse:
    return JSONResponse(error_body(error.code, str(error)), error.status, {"Connection": "close"})


def _split_url(address: str | None) -> SplitResult:
    """Split a URL; an invalid one has empty parts."""
    try:
        return urlsplit(address or "")
    except ValueError:  # brackets around something other than an IPv6 address
        return urlsplit("")


def security_headers(host: str = "") -> dict[str, str]:
    """Headers of every response: same origin only, nothing inline; WebAssembly for the browser-only mode.

    `host`: the request's Host header, or "" if it is invalid.
    """
    sockets = f" ws://{host} wss://{host}" if host else ""  # some browsers do not include them in 'self'
    policy = (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data: blob:; "
        f"media-src 'self' blob:; connect-src 'self'{sockets}; worker-src 'self' blob:; object-src 'none'; "
        "base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
    )
    return {**_HEADERS, "Content-Security-Policy": policy}
