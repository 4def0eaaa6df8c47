"""Clients: the address that a request counts for, and the connections of each address."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import Scope

from digit_detector.webapp.limits import ServerLimits, as_ip

_IPV6_PREFIX = 64  # bits: the network that a provider gives to one customer


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


class Connections:
    """Open TCP connections, including WebSockets: limited in total and for each address."""

    def __init__(self, limits: ServerLimits) -> None:
        self._most, self._most_per_client = 2 * limits.connections, 2 * limits.connections_per_client
        self._proxies = {group_address(proxy) for proxy in limits.trusted_proxy}
        self._clients: dict[asyncio.Transport, str] = {}  # oldest first
        self._counts: Counter[str] = Counter()

    def add(self, transport: asyncio.Transport, address: str) -> bool:
        """Add a connection; returns whether it may stay. At the total limit, the oldest idle one is closed."""
        client = group_address(address)
        self._clients[transport] = client
        self._counts[client] += 1
        if client not in self._proxies and self._counts[client] > self._most_per_client:
            return False
        return len(self._clients) <= self._most or self._close_idle()

    def remove(self, transport: asyncio.Transport) -> None:
        """Remove a closed connection."""
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
