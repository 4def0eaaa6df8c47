"""A response that is sent in small pieces, and waiting for a client to disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from digit_detector.webapp.clients import Quota
from digit_detector.webapp.errors import make_busy_error


class Download(Response):
    """`size` bytes in pieces; each is read once the client has received the ones before.

    If there are fewer bytes than `size`, the connection is cut, so that the client notices.
    """

    def __init__(
        self, quota: Quota, client: str, size: int, pieces: Iterator[bytes], media_type: str,
        headers: Mapping[str, str],
    ) -> None:  # fmt: skip
        """`quota` limits the downloads of a client."""
        super().__init__(media_type=media_type, headers={**headers, "Content-Length": str(size)})
        self._quota, self._client, self._size, self._pieces = quota, client, size, pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._quota.take(self._client):
            raise make_busy_error("as many downloads of your address are open as one client may have")
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
            self._quota.give_back(self._client)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected; the request must have been read completely."""
    while (await receive())["type"] != "http.disconnect":
        pass
