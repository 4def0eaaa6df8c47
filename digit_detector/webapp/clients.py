"""Clients: the address that a request counts for, and what each client may hold and take turns for."""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from starlette.datastructures import Headers
from starlette.types import Scope

from digit_detector.webapp.errors import make_busy_error
from digit_detector.webapp.limits import ServerLimits, as_ip

_IPV6_PREFIX = 64  # bits: the network that a provider gives to one customer
T = TypeVar("T")


def client_address(scope: Scope, trusted: Iterable[str]) -> str:
    """Return the address that limits apply to: the peer's, or the client that a trusted proxy names.

    Of X-Forwarded-For the last address that is not a trusted proxy counts: proxies append to it, and clients can put
    anything before.
    """
    peer = scope.get("client")
    address = str(peer[0]) if peer else ""
    proxies = {as_ip(proxy) for proxy in trusted}
    if as_ip(address) in proxies:
        hops = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
        for hop in map(str.strip, reversed(hops)):
            if as_ip(hop) is None:
                break
            address = hop
            if as_ip(hop) not in proxies:
                break
    return group_address(address)


def group_address(address: str) -> str:
    """Map an address to its client: an IPv4 address, or an IPv6 network of 64 bits."""
    ip = as_ip(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(ip), _IPV6_PREFIX), strict=False))
    return str(ip) if ip else address


class Quota:
    """What clients hold of something that is limited for each of them, and for all together."""

    def __init__(self, each: float, total: float = math.inf) -> None:
        self._each, self._most = each, total
        self._held: Counter[str] = Counter()
        self.total = 0

    def take(self, client: str, amount: int = 1) -> bool:
        """Reserve an amount, unless that exceeds a limit; returns whether it is reserved."""
        if self._held[client] + amount > self._each or self.total + amount > self._most:
            return False
        self._held[client] += amount
        self.total += amount
        return True

    def give_back(self, client: str, amount: int = 1) -> None:
        self.total -= amount
        self._held[client] -= amount
        if not self._held[client]:
            del self._held[client]


class FairPool(Generic[T]):
    """Lends items round-robin to waiting clients; one client never holds all of several items."""

    def __init__(self, items: Sequence[T], waiting: int) -> None:
        """At most `waiting` requests wait."""
        self._free = list(items)
        self._each = max(1, len(items) - 1)
        self._most = waiting
        self._lent: Counter[str] = Counter()
        self._queues: dict[str, deque[asyncio.Future[T]]] = {}  # in the order of turns

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    async def take(self, client: str) -> T:
        """Wait for this client's turn and return an item. Raises RejectedError if too many requests wait."""
        if self._free and self._lent[client] < self._each:  # no waiting client could take it
            self._lent[client] += 1
            return self._free.pop()
        if self.waiting >= self._most:
            raise make_busy_error(f"{self._most} recordings wait already")
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
                if not queue:
                    self._queues.pop(client, None)
            raise

    def give_back(self, client: str, item: T) -> None:
        """Return an item that `client` took; the next client in turn gets it."""
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


class Connections:
    """Open TCP connections, including WebSockets: limited in total and for each address."""

    def __init__(self, limits: ServerLimits) -> None:
        self._most, self._quota = 2 * limits.connections, Quota(2 * limits.connections_per_client)
        self._proxies = {group_address(proxy) for proxy in limits.trusted_proxy}  # not limited
        self._clients: dict[asyncio.Transport, str] = {}  # oldest first

    def add(self, transport: asyncio.Transport, address: str) -> bool:
        """Add a connection; returns whether it may stay. At the total limit, the oldest idle one is closed."""
        client = group_address(address)
        if client not in self._proxies and not self._quota.take(client):
            return False
        self._clients[transport] = client
        return len(self._clients) <= self._most or self._close_idle()

    def remove(self, transport: asyncio.Transport) -> None:
        """Remove a closed connection."""
        client = self._clients.pop(transport, None)
        if client is not None and client not in self._proxies:
            self._quota.give_back(client)

    def _close_idle(self) -> bool:
        for transport in list(self._clients)[:-1]:
            if getattr(transport.get_protocol(), "is_idle", False):
                self.remove(transport)
                transport.abort()
                return True
        return False
