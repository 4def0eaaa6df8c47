"""Responses that are sent in small pieces, limited per client."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from digit_detector.webapp.errors import make_busy_error


class Downloads:
    """Counts downloads in progress."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(list(self._open.values()))  # a copy: /metrics runs in a thread

    def begin(self, client: str) -> None:
        """Count a download. Raises RejectedError if the client is at its limit."""
        if self._open[client] >= self._limit:
            raise make_busy_error(f"{self._limit} downloads of yours are open already")
        self._open[client] += 1

    def end(self, client: str) -> None:
        self._open[client] -= 1
        if not self._open[client]:
            del self._open[client]


class Download(Response):
    """`size` bytes in pieces; each is read once the client has received the ones before.

    If there are fewer bytes than `size`, the connection is cut, so that the client notices.
    """

    def __init__(
        self, downloads: Downloads, client: str, size: int, pieces: Iterator[bytes], media_type: str,
        headers: Mapping[str, str],
    ) -> None:  # fmt: skip
        super().__init__(media_type=media_type, headers={**headers, "Content-Length": str(size)})
        self._downloads, self._client, self._size, self._pieces = downloads, client, size, pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._downloads.begin(self._client)
        disconnected = asyncio.ensure_future(wait_for_disconnect(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            remaining = self._size
            for piece in self._pieces:
                remaining -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": remaining > 0})
                await asyncio.sleep(0)  # let live streams run, however fast the client reads
                if disconnected.done():
                    return
        finally:
            disconnected.cancel()
            self._downloads.end(self._client)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected; the request must have been read completely."""
    while (await receive())["type"] != "http.disconnect":
        pass
