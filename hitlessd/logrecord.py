"""What a log entry is made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["LogRecord", "RequestHead"]


class RequestHead(Protocol):
    """What a log asks of a request; see hitlessd.http.heads."""

    @property
    def method(self) -> bytes: ...
    @property
    def target(self) -> bytes: ...
    @property
    def version(self) -> int: ...  # 10 or 11
    @property
    def host(self) -> bytes: ...

    line: str  # as logs show it, once somebody has asked


class LogRecord(Protocol):
    """A connection in TCP mode, or a request in HTTP mode, that has just ended.

    Times are seconds on the worker's clock, negative for what never happened. In TCP mode the request has begun and was
    done when the connection was accepted. Only what a format asks for is read.
    """

    @property
    def client(self) -> tuple[str, int] | None: ...  # numeric address and port; None: a unix socket
    @property
    def listener(self) -> int: ...  # the number of the unix listener, which stands for a port
    @property
    def local(self) -> tuple[str, int] | None: ...  # where the client connected to
    @property
    def server_address(self) -> tuple[str, int] | None: ...
    @property
    def server_source(self) -> tuple[str, int] | None: ...  # our end of the connection to the server
    @property
    def frontend_name(self) -> str: ...
    @property
    def backend_name(self) -> str: ...
    @property
    def server_name(self) -> str: ...  # "": none was found
    @property
    def http(self) -> bool: ...
    @property
    def request(self) -> RequestHead | None: ...  # None: TCP mode, or no sound request came
    @property
    def status(self) -> int: ...  # of the answer that the client got, 0 for none
    @property
    def sni(self) -> str: ...
    @property
    def cause(self) -> str: ...  # two letters (configuration manual, section 8.5), "" for a normal end
    @property
    def cookie_state(self) -> str: ...  # two letters (section 8.5), "" for no persistence cookie

    @property
    def accepted(self) -> float: ...  # the connection; of later requests on it: the end of the answer before
    @property
    def handshake(self) -> float: ...  # seconds that a PROXY header took
    @property
    def request_began(self) -> float: ...  # its first byte
    @property
    def request_done(self) -> float: ...  # the head's last byte
    @property
    def assigned(self) -> float: ...  # a server was found, or waiting for one was given up
    @property
    def connected(self) -> float: ...
    @property
    def response_began(self) -> float: ...  # its whole head was there
    @property
    def ended(self) -> float: ...
    def wall(self, at: float) -> float:
        """CLOCK_REALTIME of a time on the worker's clock."""

    @property
    def bytes_read(self) -> int: ...  # to the client
    @property
    def bytes_uploaded(self) -> int: ...  # from the client
    @property
    def process_connections(self) -> int: ...  # now, in the whole process
    @property
    def frontend_connections(self) -> int: ...
    @property
    def backend_connections(self) -> int: ...
    @property
    def server_connections(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def redispatched(self) -> bool: ...
    @property
    def server_queue(self) -> int: ...
    @property
    def backend_queue(self) -> int: ...
    @property
    def request_captures(self) -> Sequence[str]: ...
    @property
    def response_captures(self) -> Sequence[str]: ...
    @property
    def number(self) -> int: ...  # of the connection, over all generations
