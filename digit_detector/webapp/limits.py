"""Limits, addresses and models of the server; their flags, `DIGITS_*` variables and table in docs/web.md."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import math
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from digit_detector.errors import ConfigError, did_you_mean
from digit_detector.fields import setting
from digit_detector.labels import PRETRAINED

PREFIX = "DIGITS_"
LOCAL = ("127.0.0.1", "localhost", "::1")
_NAME = re.compile(r"[a-zA-Z0-9.-]+|[0-9a-fA-F:]+")
_ORIGIN = re.compile(r"https?://([a-zA-Z0-9.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?")


@dataclass(frozen=True)
class ServerLimits:
    """All settings of the server. Raises ConfigError that lists every invalid value."""

    host: str = setting("127.0.0.1", "address to listen on; at the default only this machine reaches it")
    port: int = setting(8000, "port; 0 for any that is free. Unless set, the next free one is taken", 0, 65535)
    allow_host: tuple[str, ...] = setting((), "further host names of the server, behind a proxy")
    allow_origin: tuple[str, ...] = setting((), "further sites whose pages may use it, such as https://example.org")
    trusted_proxy: tuple[str, ...] = setting((), "addresses of proxies whose X-Forwarded-For names the client")
    model_dir: str = setting(PRETRAINED, "folder of the models")

    workers: int = setting(min(2, os.cpu_count() or 1), "processes that run the networks on live streams", 1, 256)
    worker_seconds: float = setting(5.0, "seconds without a heartbeat, after which a worker is restarted", 0.5)

    streams: int = setting(150, "live streams at once", 1)
    streams_per_client: int = setting(40, "live streams at once from one address", 1)
    connections: int = setting(250, "WebSockets at once, connections of any kind twice as many", 1)
    connections_per_client: int = setting(64, "WebSockets at once from one address, connections twice as many", 1)
    start_seconds: float = setting(10.0, "seconds within which a WebSocket must start a stream", 0.1)
    idle_seconds: float = setting(30.0, "seconds without a message, after which a WebSocket is closed", 0.1)
    message_bytes: int = setting(1 << 16, "bytes of one message", 2)
    messages_a_second: int = setting(200, "messages a second of one WebSocket", 1)
    max_speed: float = setting(2.0, "how fast audio may come, times real time", 1.0)
    burst_seconds: float = setting(3.0, "seconds of audio that a stream may bring at once, whatever its speed", 0.1)
    min_speed: float = setting(0.5, "how fast audio must come, times real time", 0.01, 1.0)
    slow_seconds: float = setting(10.0, "seconds without audio, after which a stream is closed", 0.5)
    backlog_seconds: float = setting(3.0, "seconds of audio of a stream that may wait for the networks", 0.1)

    head_bytes: int = setting(1 << 16, "bytes of a request's head", 1024)
    head_seconds: int = setting(15, "seconds for a request's head to come, also the next one of a connection", 1)
    request_seconds: float = setting(20.0, "seconds within which the rest of a request must come", 0.1)
    unread_seconds: int = setting(20, "seconds that a client may leave responses unread", 1)

    upload_bytes: int = setting(8 << 20, "bytes of a request", 1)
    upload_seconds: float = setting(60.0, "seconds of audio in a recording", 0.1)
    uploads: int = setting(2, "recordings that are processed at once", 1)
    uploads_waiting: int = setting(32, "recordings that may wait for that", 1)
    uploads_per_client: int = setting(16, "requests with a body at once from one address", 1)
    bodies_bytes: int = setting(64 << 20, "bytes of requests in progress, all together; a quarter from one address", 1)
    decode_cpu_seconds: float = setting(2.0, "seconds of processor time that decoding a recording may take", 0.1)
    decode_seconds: float = setting(10.0, "seconds that decoding a recording may take", 0.1)
    decode_bytes: int = setting(200 << 20, "bytes of memory that decoding a recording may take", 1)

    sessions: int = setting(100, "sessions at once", 1)
    sessions_per_client: int = setting(40, "sessions at once from one address", 1)
    session_seconds: float = setting(3600.0, "seconds without a stream, after which a session is deleted", 0.1)
    kept_bytes: int = setting(64 << 20, "bytes of audio that all sessions keep together", 1)
    downloads_per_client: int = setting(4, "downloads of kept audio at once from one address", 1)

    def __post_init__(self) -> None:
        faults = [
            f"{f.name}: expected {_range(f)}, got {value!r}"
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), (int, float))
            and not (f.metadata["low"] <= value <= f.metadata["high"] and math.isfinite(value))
        ]
        if not self.host or not set(self.host) <= set(map(chr, range(33, 127))):
            faults.append(f"host: expected an address or a name, got {self.host!r}")
        faults += _find_invalid("allow_host", self.allow_host, _NAME.fullmatch, "a host name without a port")
        faults += _find_invalid(
            "allow_origin", self.allow_origin, _ORIGIN.fullmatch, "https://NAME or http://NAME:PORT"
        )
        faults += _find_invalid("trusted_proxy", self.trusted_proxy, as_ip, "an IP address")
        if faults:
            raise ConfigError(faults, "the server's settings")

    @property
    def names(self) -> frozenset[str]:
        """Host names that requests may use, in lower case."""
        own = () if self.host in ("0.0.0.0", "::", "") else (self.host,)
        return frozenset(name.lower() for name in (*LOCAL, *own, *self.allow_host))


def as_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an IP address, IPv4 also in its IPv6 form (::ffff:10.0.0.1); None for any other text."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _range(f: dataclasses.Field[object]) -> str:
    low, high = f.metadata["low"], f.metadata["high"]
    return f"{low:g} to {high:g}" if math.isfinite(high) else f"a number of at least {low:g}"


def _find_invalid(name: str, values: Iterable[str], is_valid: Callable[[str], object], expected: str) -> list[str]:
    return [f"{name}: expected {expected}, got {value!r}" for value in values if not is_valid(value)]


_EXPECTED = {int: "a whole number", float: "a number"}
_FIELDS = dataclasses.fields(ServerLimits)
_KINDS = typing.get_type_hints(ServerLimits)


def add_limit_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag per field; omitted ones are absent from the namespace. Values stay text."""
    group = parser.add_argument_group(
        "settings of the server",
        f"Each can be given by an environment variable, too: {PREFIX}STREAMS=50 for --streams 50; "
        "several values are separated by commas. Flags win.",
    )
    for f in _FIELDS:
        metavar = {int: "N", float: "X", str: "TEXT"}.get(_KINDS[f.name], f.name.rpartition("_")[2].upper())
        group.add_argument(
            f"--{f.name}", *(("--models_dir",) if f.name == "model_dir" else ()), default=argparse.SUPPRESS,
            metavar=metavar, nargs="+" if _is_list(f) else None,
            help=f"{f.metadata['help']} (default: {format_default(f)})",
        )  # fmt: skip


def format_default(f: dataclasses.Field[Any]) -> str:
    """Format the default of a field."""
    if f.default == ():
        return "none"
    return f"{f.default:,}" if isinstance(f.default, int) and f.default >= 1e4 else str(f.default)


def read_limits(flags: argparse.Namespace, environment: Mapping[str, str]) -> ServerLimits:
    """Read flags, then environment variables, then defaults. Raises ConfigError that lists every fault."""
    values: dict[str, Any] = {}
    faults: list[str] = []
    for f in _FIELDS:
        source, given = f"--{f.name}", getattr(flags, f.name, None)
        if given is None:
            source = PREFIX + f.name.upper()
            given = environment.get(source)
            if not given:
                continue
        kind = _KINDS[f.name]
        if _is_list(f):
            values[f.name] = tuple(given if isinstance(given, list) else given.replace(",", " ").split())
            continue
        try:
            values[f.name] = kind(given)
        except ValueError:
            faults.append(f"{source}: expected {_EXPECTED[kind]}, got {given!r}")
    try:
        limits = ServerLimits(**values)
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults], "the server's settings") from error
    if faults:
        raise ConfigError(faults, "the server's settings")
    return limits


def find_misspelt_variables(environment: Mapping[str, str]) -> list[str]:
    """Warnings about variables that look like misspelt settings; other `DIGITS_*` variables are ignored."""
    known = [PREFIX + f.name.upper() for f in _FIELDS]
    return [
        f"{name} is not a setting and is ignored{hint}"
        for name in environment
        if name.startswith(PREFIX) and name not in known and (hint := did_you_mean(name, known))
    ]


def format_limits_table() -> str:
    """Format all flags as the table of docs/web.md."""
    rows = [
        f"| `--{f.name}` | `{PREFIX}{f.name.upper()}` | {format_documented_default(f)} | {f.metadata['help']} |"
        for f in _FIELDS
    ]
    return "\n".join(["| flag | variable | default | |", "|---|---|---:|---|", *rows]) + "\n"


def format_documented_default(f: dataclasses.Field[Any]) -> str:
    """Format a default so that it does not depend on the machine."""
    return "2, or 1 on a single core" if f.name == "workers" else format_default(f)


def _is_list(f: dataclasses.Field[Any]) -> bool:
    return isinstance(f.default, tuple)
