"""Log records without a connection behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Head:
    """As much of a request as logs ask for."""

    method: bytes = b"GET"
    target: bytes = b"/"
    version: int = 11
    host: bytes = b"example.org"
    fields: Sequence[tuple[bytes, bytes]] = ()
    path: bytes = b"/"
    query: bytes = b""
    line: str = ""

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name]


@dataclass
class Answer:
    """As much of a response."""

    status: int = 200
    version: int = 11
    fields: Sequence[tuple[bytes, bytes]] = ()

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name]


@dataclass
class Record:
    """A LogRecord whose clock is CLOCK_REALTIME."""

    http: bool = True
    request: Head | None = field(default_factory=Head)
    response: Answer | None = None
    status: int = 200
    client: tuple[str, int] | None = ("192.0.2.7", 33088)
    listener: int = 3
    local: tuple[str, int] | None = ("192.0.2.1", 80)
    server_address: tuple[str, int] | None = ("10.0.0.1", 8080)
    server_source: tuple[str, int] | None = ("10.0.0.9", 40000)
    frontend_name: str = "www"
    backend_name: str = "app"
    server_name: str = "s1"
    sni: str = ""
    cause: str = ""
    cookie_state: str = ""
    accepted: float = 1_700_000_000.25
    handshake: float = 0.0
    request_began: float = 1_700_000_000.5
    request_done: float = 1_700_000_000.625
    assigned: float = 1_700_000_000.75
    connected: float = 1_700_000_001.0
    response_began: float = 1_700_000_002.0
    ended: float = 1_700_000_004.0
    bytes_read: int = 2750
    bytes_uploaded: int = 120
    process_connections: int = 5
    frontend_connections: int = 4
    backend_connections: int = 3
    server_connections: int = 2
    retries: int = 0
    redispatched: bool = False
    server_queue: int = 0
    backend_queue: int = 0
    request_captures: Sequence[str] = ()
    response_captures: Sequence[str] = ()
    number: int = 7

    def wall(self, at: float) -> float:
        return at
