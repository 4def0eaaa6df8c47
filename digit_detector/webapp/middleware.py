"""What every request goes through: who it is for, where it comes from, how large it is, what the answer forbids."""

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

_HOST = re.compile(r"([a-zA-Z0-9.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?")  # it is quoted in the policy below
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
    """ASGI middleware: no other site may use the server through its visitors' browsers, or show it in a frame."""

    def __init__(self, app: ASGIApp, limits: ServerLimits, sockets: ASGIApp, count: Callable[[str, int], None]) -> None:
        """`sockets` answers at /ws, without the layers that FastAPI would put around each of its messages.

        `count` is told the route and the status of every answer.
        """
        self._app, self._limits, self._sockets, self._count = app, limits, sockets, count
        largest = limits.upload_bytes
        self._bodies = ByteBudget(max(limits.bodies_bytes, largest), max(limits.bodies_bytes // 4, largest))
        self._uploads: Counter[str] = Counter()  # requests with a body that are being answered, by client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            try:
                self._check(scope)
                if scope["path"] != "/ws":
                    raise RejectedError(HTTPStatus.NOT_FOUND, "not_found", "there is no WebSocket but /ws")
            except RejectedError as refused:
                answer = JSONResponse(error_body(refused.code, str(refused)), refused.status, {"Connection": "close"})
                await answer(scope, receive, send)  # in place of a handshake
                return
            await self._sockets(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        client, held = client_address(scope, self._limits.trusted_proxy), 0
        refused: RejectedError | None = None  # while the body was read, which the application takes for its own fault
        headers_of_request = Headers(scope=scope)
        host = headers_of_request.get("host", "")
        host = host if _HOST.fullmatch(host) else ""
        origin = headers_of_request.get("origin")
        uploader: str | None = None  # the client, where this is an upload that counts

        async def guarded(message: Message) -> None:
            nonlocal begun
            if refused is not None and not begun:
                return  # what the application makes of it; it is answered below
            if message["type"] == "http.response.start":
                begun = True
                self._count(getattr(scope.get("route"), "path", "other"), message["status"])
                headers = MutableHeaders(scope=message)
                headers.update(security_headers(host))
                if origin in self._limits.allow_origin:
                    headers["Access-Control-Allow-Origin"] = origin
                    headers.add_vary_header("Origin")
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        async def bounded() -> Message:
            nonlocal refused, held
            try:
                message = await body_of()
                size = len(message.get("body", b""))
                self._bodies.take(client, size)
                held += size
                return message
            except RejectedError as error:
                refused = error
                raise

        try:
            self._check(scope)
            body_of = self._bounded(scope, receive)
            if scope["method"] in _CHANGING:
                uploader = self._count_upload(client)
            await self._app(scope, bounded, guarded)
            if refused is not None:
                raise refused
        except RejectedError as error:
            if not begun:
                refused = None
                answer = JSONResponse(error_body(error.code, str(error)), error.status, {"Connection": "close"})
                await answer(scope, receive, guarded)
        except (Exception, asyncio.CancelledError):  # the latter where the server ends before this has
            if not begun:
                refused = None
                answer = JSONResponse(
                    error_body("failed", "this could not be answered; the server's log says more"), 500
                )
                await answer(scope, receive, guarded)
            raise  # into the log
        finally:
            self._bodies.give_back(client, held)
            if uploader is not None:
                self._uploads[uploader] -= 1
                if not self._uploads[uploader]:
                    del self._uploads[uploader]

    def _count_upload(self, client: str) -> str:
        """One more request with a body from this client. Raises RejectedError where it has too many."""
        most = self._limits.uploads_per_client
        if self._uploads[client] >= most:
            raise RejectedError(
                HTTPStatus.TOO_MANY_REQUESTS, "too_many",
                f"{most} requests of your address are being answered, as many as one client may have: wait for one",
            )  # fmt: skip
        self._uploads[client] += 1
        return client

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not _HOST.fullmatch(host) or _split(f"//{host}").hostname not in self._limits.names:
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
            and _split(origin).netloc.lower() != host.lower()
        ):
            raise RejectedError(
                HTTPStatus.FORBIDDEN,
                "wrong_origin",
                "a page of another site may not use this server: open its own page, or start it with --allow_origin",
            )

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` that refuses a body that is too large, or takes too long to come."""
        most = self._limits.upload_bytes
        said = Headers(scope=scope).get("content-length", "0")
        if not said.isascii() or not said.isdigit():
            raise RejectedError(HTTPStatus.BAD_REQUEST, "bad_request", "Content-Length: expected a number of bytes")
        if int(said) > most:
            raise _too_large(most)
        taken = 0
        until = asyncio.get_running_loop().time() + self._limits.request_seconds
        whole = False

        async def bounded() -> Message:
            nonlocal taken, whole
            if whole:  # now it waits for the client to go, which may take as long as it likes
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise RejectedError(
                    HTTPStatus.REQUEST_TIMEOUT, "too_slow",
                    f"the request did not come whole within {self._limits.request_seconds:g} s: send it again",
                ) from None  # fmt: skip
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if taken > most:
                    raise _too_large(most)
            return message

        return bounded


def _split(address: str) -> SplitResult:
    """An address in its parts; all are empty of what is none."""
    try:
        return urlsplit(address)
    except ValueError:  # brackets around what is no IPv6 address
        return urlsplit("")


def security_headers(host: str = "") -> dict[str, str]:
    """What every answer carries. `host` is the one that was asked for, where it is known to be a host's name."""
    return {**_HEADERS, "Content-Security-Policy": policy(host)}


def policy(host: str) -> str:
    """The content security policy: nothing from elsewhere, nothing inline; WebAssembly for the browser-only mode."""
    sockets = f" ws://{host} wss://{host}" if host else ""  # not every browser counts them as 'self'
    return (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data: blob:; "
        f"media-src 'self' blob:; connect-src 'self'{sockets}; worker-src 'self' blob:; object-src 'none'; "
        "base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
    )


def _too_large(most: int) -> RejectedError:
    return RejectedError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large",
        f"the request is larger than {most / 2**20:g} MB: send a shorter recording, or a compressed one",
    )  # fmt: skip
