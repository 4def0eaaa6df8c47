"""What the server allows, in one place."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from ml_training.errors import ConfigError
from ml_training.inference import PRETRAINED

LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """Limits that keep one client from taking what the others need."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0 takes any that is free
    hosts: tuple[str, ...] = ()  # further names that the page may be asked for by, behind a proxy
    model_dir: str = PRETRAINED
    processes: int = min(2, os.cpu_count() or 1)  # that hear live streams
    streams: int = 150  # live ones at once
    connections: int = 250  # sockets at once, silent ones included
    start_seconds: float = 10.0  # until a socket must begin a stream
    idle_seconds: float = 30.0  # without a message, after which a socket is closed
    message_bytes: int = 1 << 16  # of one message
    messages_a_second: int = 200
    faster: float = 2.0  # times real time; how fast a stream may come
    burst_seconds: float = 3.0  # of sound that may come at once
    behind_seconds: float = 3.0  # of sound of a stream that may wait to be heard
    head_bytes: int = 1 << 16  # of a request
    head_seconds: int = 15  # for a request's head to come whole, and for the next of a connection
    unread_seconds: int = 20  # that a client may leave what it is sent
    upload_bytes: int = 8 << 20
    upload_seconds: float = 60.0  # of sound in a recording
    uploads: int = 2  # recordings that are answered at once
    uploads_waiting: int = 32
    uploads_per_client: int = 8  # that may wait
    decode_cpu_seconds: float = 2.0  # of a processor, rounded up to whole ones, that decoding an upload may take
    decode_seconds: float = 10.0  # of the clock that it may take
    decode_bytes: int = 200 << 20  # of memory that it may take
    bodies_bytes: int = 64 << 20  # of requests that are not answered yet, all together; of one client a quarter
    upload_patience: float = 20.0  # seconds for a request to come whole
    sessions: int = 100
    session_seconds: float = 3600.0  # without a stream, after which a session is forgotten
    kept_bytes: int = 64 << 20  # of sound that sessions keep, all together
    downloads_each: int = 4  # of that sound, by one client at once

    def __post_init__(self) -> None:
        faults = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and field.name != "port" and not value > 0:
                faults.append(f"{field.name}: expected more than 0, got {value!r}")
        if not 0 <= self.port <= 65535:
            faults.append(f"port: expected 0 to 65535, got {self.port}")
        if faults:
            raise ConfigError(faults, "the server's settings")

    @property
    def names(self) -> frozenset[str]:
        """The host names that a request may be for."""
        own = () if self.host in ("0.0.0.0", "::", "") else (self.host,)
        return frozenset(name.lower() for name in (*LOCAL, *own, *self.hosts))
