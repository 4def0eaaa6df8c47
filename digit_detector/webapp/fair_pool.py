"""Who is served next: a few things to work with, lent to one client after the other, so that nobody has to wait for one
client's many requests."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from digit_detector.webapp.faults import busy

T = TypeVar("T")


class FairPool(Generic[T]):
    """Lends items, by turns to each client that waits, and to none all of them where there are several."""

    def __init__(self, items: Sequence[T], waiting: int) -> None:
        """At most `waiting` requests wait."""
        self._free = list(items)
        self._each = max(1, len(items) - 1)
        self._most = waiting
        self._lent: Counter[str] = Counter()
        self._queues: dict[str, deque[asyncio.Future[T]]] = {}  # in the order in which clients come next

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    async def take(self, client: str) -> T:
        """An item, as soon as it is this client's turn. Raises RefusedError where too many wait already."""
        if self._free and self._lent[client] < self._each:  # nobody who waits could have it
            self._lent[client] += 1
            return self._free.pop()
        if self.waiting >= self._most:
            raise busy(f"{self._most} recordings wait already")
        queue = self._queues.setdefault(client, deque())
        turn: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(client, turn.result())
            elif turn in queue:
                queue.remove(turn)
                self._forget(client)
            raise

    def give_back(self, client: str, item: T) -> None:
        """An item that `client` took; it goes to the next who waits."""
        self._free.append(item)
        self._lent[client] -= 1
        if not self._lent[client]:
            del self._lent[client]
        for name in list(self._queues):
            if self._free and self._lent[name] < self._each:
                self._lend(name)

    def _lend(self, client: str) -> None:
        queue = self._queues.pop(client)
        turn = queue.popleft()
        while turn.done() and queue:  # cancelled in this step of the event loop, and still in the queue
            turn = queue.popleft()
        if queue:
            self._queues[client] = queue  # behind the others
        if not turn.done():
            self._lent[client] += 1
            turn.set_result(self._free.pop())

    def _forget(self, client: str) -> None:
        if client in self._queues and not self._queues[client]:
            del self._queues[client]


class ByteBudget:
    """Bounds what all clients, and each of them, may have the server hold."""

    def __init__(self, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._held: Counter[str] = Counter()
        self._total = 0

    def take(self, client: str, size: int) -> None:
        """Raises RefusedError where there is no room for so many bytes more."""
        if self._total + size > self._most or self._held[client] + size > self._most_each:
            raise busy("too many requests are being received")
        self._held[client] += size
        self._total += size

    def give_back(self, client: str, size: int) -> None:
        self._total -= size
        self._held[client] -= size
        if not self._held[client]:
            del self._held[client]
