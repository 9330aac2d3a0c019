"""What a log entry is made from, and the facts of it by name, for JSON and for the journal's fields."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

__all__ = ["Fact", "LogRecord", "RequestHead", "compile_json", "facts", "iso_time", "journal_fields"]

Fact = str | int | bool | None


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


def milliseconds(start: float, end: float) -> int | None:
    """None where one of the two never happened."""
    return int((end - start) * 1000) if end >= 0 and start >= 0 else None


def iso_time(at: float) -> str:
    """Local time with milliseconds and the zone (ISO 8601)."""
    local = time.localtime(at)
    zone = time.strftime("%z", local)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{int(at * 1000) % 1000:03d}{zone[:3]}:{zone[3:]}"


def facts(record: LogRecord) -> dict[str, Fact]:
    """All that a machine may want to know; times in milliseconds, None for what there is not or never was."""
    client = record.client
    accepted, began, done, assigned = record.accepted, record.request_began, record.request_done, record.assigned
    connected, ended = record.connected, record.ended
    found: dict[str, Fact] = {
        "client_addr": client[0] if client else "unix",
        "client_port": client[1] if client else None,
        "frontend": record.frontend_name,
        "backend": record.backend_name,
        "server": record.server_name or None,
    }
    if record.http:
        request = record.request
        found["method"] = request.method.decode("latin-1") if request else None
        found["uri"] = request.target.decode("latin-1") if request else None
        found["version"] = f"HTTP/{request.version // 10}.{request.version % 10}" if request else None
        found["host"] = request.host.decode("latin-1") if request else None
        found["status"] = record.status or None
        found["time_idle"] = milliseconds(accepted + record.handshake, began)
        found["time_request"] = milliseconds(began, done)
    found["time_queue"] = milliseconds(done, assigned)
    found["time_connect"] = milliseconds(assigned, connected)
    if record.http:
        found["time_response"] = milliseconds(connected, record.response_began)
        found["time_active"] = milliseconds(began if began >= 0 else accepted, ended)
    found["time_total"] = milliseconds(accepted, ended)
    found["bytes_read"] = record.bytes_read
    found["bytes_uploaded"] = record.bytes_uploaded
    found["termination_state"] = record.cause or "--"
    found["retries"] = record.retries
    found["redispatched"] = record.redispatched
    found["server_queue"] = record.server_queue
    found["backend_queue"] = record.backend_queue
    found["process_connections"] = record.process_connections
    found["frontend_connections"] = record.frontend_connections
    found["backend_connections"] = record.backend_connections
    found["server_connections"] = record.server_connections
    if record.sni:
        found["sni"] = record.sni
    return found


def compile_json() -> Callable[[LogRecord], str]:
    """A function that gives a record as one line of JSON, in ASCII."""
    import json  # costs a reload 3 ms, which those without it need not pay

    encode = json.JSONEncoder(separators=(",", ":")).encode

    def line(record: LogRecord) -> str:
        return encode({"time": iso_time(record.wall(record.accepted)), **facts(record)})

    return line


def journal_fields(record: LogRecord) -> dict[str, str]:
    """The same facts as fields of a journal entry; what there is not has no field."""
    found = facts(record)
    found["bytes"] = found.pop("bytes_read")
    found["redispatched"] = int(record.redispatched)
    return {name.upper(): str(value) for name, value in found.items() if value is not None}
