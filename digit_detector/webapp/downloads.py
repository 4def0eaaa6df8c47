"""Answers that are sent in small pieces, of which one client may have a few at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from digit_detector.webapp.errors import make_busy_error


class Downloads:
    """Counts those that are being sent."""

    def __init__(self, most_each: int) -> None:
        self._most_each = most_each
        self._open: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(list(self._open.values()))  # of a copy, since a thread asks too (/metrics)

    def begin(self, client: str) -> None:
        """Raises RejectedError for a client that has enough of them already."""
        if self._open[client] >= self._most_each:
            raise make_busy_error(f"{self._most_each} downloads of yours are open already")
        self._open[client] += 1

    def end(self, client: str) -> None:
        self._open[client] -= 1
        if not self._open[client]:
            del self._open[client]


class Download(Response):
    """So many bytes in pieces, each read when the client has taken those before it.

    Where they are fewer than was said, the connection is cut, so that nobody takes the part for the whole.
    """

    def __init__(
        self, downloads: Downloads, client: str, size: int, pieces: Iterator[bytes], media_type: str,
        headers: Mapping[str, str],
    ) -> None:  # fmt: skip
        super().__init__(media_type=media_type, headers={**headers, "Content-Length": str(size)})
        self._downloads, self._client, self._size, self._pieces = downloads, client, size, pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._downloads.begin(self._client)
        gone = asyncio.ensure_future(wait_for_disconnect(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            left = self._size
            for piece in self._pieces:
                left -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": left > 0})
                await asyncio.sleep(0)  # live sound goes on, however fast the client reads
                if gone.done():
                    return
        finally:
            gone.cancel()
            self._downloads.end(self._client)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has hung up; the request must have been read whole."""
    while (await receive())["type"] != "http.disconnect":
        pass
