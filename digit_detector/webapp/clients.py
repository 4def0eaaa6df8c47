"""Clients: which address a request counts for, and how many connections each address may hold."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import Scope

from digit_detector.webapp.limits import ServerLimits, as_ip

_IPV6_PREFIX = 64  # bits: a provider gives each customer such a network, every address of which is that customer's


def client_address(scope: Scope, trusted: Iterable[str]) -> str:
    """The address that limits count for: the peer's, or what the trusted proxy at that address says it is.

    Of X-Forwarded-For the last address that is no trusted proxy counts: a proxy appends, clients write what they like
    before it.
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
    return group(address)


def group(address: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 network of 64 bits."""
    ip = as_ip(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(ip), _IPV6_PREFIX), strict=False))
    return str(ip) if ip else address


class Connections:
    """All open TCP connections, those of WebSockets included: bounded in all and for each address."""

    def __init__(self, limits: ServerLimits) -> None:
        self._most, self._most_per_client = 2 * limits.connections, 2 * limits.connections_per_client
        self._proxies = {group(proxy) for proxy in limits.trusted_proxy}
        self._clients: dict[asyncio.Transport, str] = {}  # in the order in which they were opened
        self._counts: Counter[str] = Counter()

    def add(self, transport: asyncio.Transport, address: str) -> bool:
        """A connection was opened -> whether it may stay. Where there are too many, the oldest idle one is closed."""
        client = group(address)
        self._clients[transport] = client
        self._counts[client] += 1
        if client not in self._proxies and self._counts[client] > self._most_per_client:
            return False
        return len(self._clients) <= self._most or self._close_idle()

    def remove(self, transport: asyncio.Transport) -> None:
        """A connection was closed."""
        client = self._clients.pop(transport, None)
        if client is not None:
            self._counts[client] -= 1
            if not self._counts[client]:
                del self._counts[client]

    def _close_idle(self) -> bool:
        for transport in list(self._clients)[:-1]:
            if getattr(transport.get_protocol(), "is_idle", False):
                self.remove(transport)
                transport.abort()
                return True
        return False
