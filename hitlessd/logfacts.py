"""The facts of a log record by name: as an object of JSON, and as fields of an entry in the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from hitlessd.logcode import RECORDS, Code, Made, Shape, Source
from hitlessd.logfields import escape_controls

__all__ = ["compile_fields", "compile_json"]

#: Name, expression over `r` (see logcode.py), and the condition without which there is no such thing.
_Fact = tuple[str, str, str]
_REQUEST = "r.request is not None"


def _time(name: str, start: str, end: str) -> _Fact:
    return name, f"int(({end} - {start}) * 1000.0)", f"{start} >= 0.0 <= {end}"


_WHO: tuple[_Fact, ...] = (
    ("client_addr", "(r.client[0] if r.client else 'unix')", ""),
    ("client_port", "r.client[1]", "r.client"),
    ("frontend", "r.frontend_name", ""),
    ("backend", "r.backend_name", ""),
    ("server", "r.server_name", "r.server_name"),
)
_ASKED: tuple[_Fact, ...] = (
    ("method", "r.request.method.decode('latin-1')", _REQUEST),
    ("uri", "r.request.target.decode('latin-1')", _REQUEST),
    ("version", "'HTTP/%d.%d' % divmod(r.request.version, 10)", _REQUEST),
    ("host", "r.request.host.decode('latin-1')", _REQUEST),
    ("status", "r.status", "r.status"),
    _time("time_idle", "(r.accepted + r.handshake)", "r.request_began"),
    _time("time_request", "r.request_began", "r.request_done"),
)
_ASSIGNED: tuple[_Fact, ...] = (
    _time("time_queue", "r.request_done", "r.assigned"),
    _time("time_connect", "r.assigned", "r.connected"),
)
_ANSWERED: tuple[_Fact, ...] = (
    _time("time_response", "r.connected", "r.response_began"),
    _time("time_active", "r._began", "r.ended"),
)
_TOTAL: tuple[_Fact, ...] = (
    _time("time_total", "r.accepted", "r.ended"),
    ("bytes_read", "r.bytes_read", ""),
    ("bytes_uploaded", "r.bytes_uploaded", ""),
    ("termination_state", "(r.cause or '--')", ""),
    ("retries", "r.retries", ""),
    ("redispatched", "r.redispatched", ""),
    ("server_queue", "r.server_queue", ""),
    ("backend_queue", "r.backend_queue", ""),
    ("process_connections", "r.process_connections", ""),
    ("frontend_connections", "r.frontend_connections", ""),
    ("backend_connections", "r.backend_connections", ""),
    ("server_connections", "r.server_connections", ""),
)
_LINE = "%s\n"  # what follows a field's name
#: Of these nothing is said where there is none.
_SNI = ("sni", "r.sni", "r.sni")
#: What is no number.
_WORDS = frozenset(
    ("client_addr", "frontend", "backend", "server", "method", "uri", "version", "host", "termination_state", "sni")
)


def _facts(http: bool) -> Iterator[_Fact]:
    """All that a machine may want to know."""
    yield from _WHO
    if http:
        yield from _ASKED
    yield from _ASSIGNED
    if http:
        yield from _ANSWERED
    yield from _TOTAL


def compile_json(source: Source = RECORDS, *, http: bool = True) -> Callable[[Any], str]:
    """A function that gives a record as one line of JSON, in ASCII; times in milliseconds, null for what there is not
    or never was. `http`: it is of a request."""
    return _json(http, source.shape).bind(source)


@lru_cache
def _json(http: bool, shape: Shape) -> Made:
    from json.encoder import encode_basestring_ascii  # json costs a reload 3 ms, which those without it need not pay

    code = Code(shape, {"quoted": encode_basestring_ascii, "iso": _IsoTimes().text})
    code.text('{"time":"')
    code.value("iso(r.wall(r.accepted))")
    code.text('"')
    for name, expression, condition in _facts(http):
        code.text(f',"{name}":')
        if name in _WORDS:
            expression = f"quoted({expression})"
        elif name == "redispatched":
            expression = "('true' if r.redispatched else 'false')"
        code.value(f"({expression} if {condition} else 'null')" if condition else expression)
    name, expression, condition = _SNI
    code.value(f"""(',"{name}":' + quoted({expression}) if {condition} else '')""")
    code.text("}")
    return code.made()


def compile_fields(source: Source = RECORDS, *, http: bool = True) -> Callable[[Any], str]:
    """The same facts as fields of a journal entry, a line each; what there is not has no field."""
    return _fields(http, source.shape).bind(source)


@lru_cache
def _fields(http: bool, shape: Shape) -> Made:
    code = Code(shape, {"controls": escape_controls})
    facts = {name: (expression, condition) for name, expression, condition in _facts(http)}
    facts["redispatched"] = "(1 if r.redispatched else 0)", ""
    facts["sni"] = "controls(r.sni)", "r.sni"
    facts["bytes"] = facts.pop("bytes_read")
    for name, (expression, condition) in facts.items():
        field = f"{name.upper()}="
        if condition:
            code.value(f"({field + _LINE!r} % ({expression},) if {condition} else '')")
        else:
            code.text(field)
            code.value(expression)
            code.text("\n")
    return code.made()


class _IsoTimes:
    """Local times with milliseconds and the zone (ISO 8601). Most are of the same second as the one before."""

    def __init__(self) -> None:
        self._second = -1
        self._start = self._zone = ""

    def text(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            local = time.localtime(second)
            zone = time.strftime("%z", local)
            self._start = time.strftime("%Y-%m-%dT%H:%M:%S", local)
            self._zone = f"{zone[:3]}:{zone[3:]}"
            self._second = second
        return f"{self._start}.{int(at * 1000) % 1000:03d}{self._zone}"
