"""The variables of HAProxy's log-format language (configuration manual, section 8.2.6): what each one says of a record.

Each is a Python expression over `r`, a LogRecord, and the names of `tools()`; see logcode.py.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

from hitlessd.logrecord import RequestHead

__all__ = ["VARIABLES", "Kind", "Variable", "escape_controls", "milliseconds", "tools"]

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
#: HAProxy's tune.http.logurilen: so much of the request line is logged.
_LINE = 1023
# Section 8.6: what must not stand in a log as it is; a header's value has to leave the captures' own marks alone, too.
_UNFIT = re.compile(r"[^ !$-~]")
_UNFIT_IN_HEADER = re.compile(r"[^ !$-z~]")
_CONTROL = re.compile(r"[^ -~]")


class Kind(Enum):
    """How flags change a variable's text: Q quotes, E escapes, X makes it hexadecimal."""

    TEXT = "text"  # Q and E; `-` in a log where it is empty
    FIXED = "fixed"  # none
    HEX = "hex"  # a number; X
    ADDRESS = "address"  # Q, X
    CAPTURES = "captures"  # Q and E; vanishes where it is empty


class Variable(NamedTuple):
    """One of them."""

    kind: Kind
    expression: str
    http: bool = False  # in HTTP mode only


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"#{byte:02X}" for byte in match[0].encode("latin-1", "replace"))


def escape_controls(text: str) -> str:
    """Leave no character in that is not printable ASCII: a log line stays one line, whatever a client sends."""
    return _CONTROL.sub(_escaped, text) if not text.isascii() or not text.isprintable() else text


def _line(request: RequestHead) -> str:
    text = (b"%b %b HTTP/1.%d" % (request.method, request.target, request.version % 10))[:_LINE].decode("latin-1")
    line = request.line = _UNFIT.sub(_escaped, text)
    return line


def _method(request: RequestHead) -> str:
    return _UNFIT.sub(_escaped, request.method.decode("latin-1"))


def _target(request: RequestHead, part: str) -> str:
    """`part`: U all, P without the query, PO the path alone, Q the query with its question mark."""
    text = request.target[:_LINE].decode("latin-1")
    if part != "U":
        text, mark, query = text.partition("?")
        if part == "Q":
            text = mark + query
        elif part == "PO" and not text.startswith("/"):
            _, mark, rest = text.partition("://")
            _, slash, path = rest.partition("/")
            text = slash + path
    return _UNFIT.sub(_escaped, text)


def _captures(values: Sequence[str]) -> str:
    return "{" + "|".join(_UNFIT_IN_HEADER.sub(_escaped, value) for value in values) + "}" if values else ""


def _captures_list(values: Sequence[str]) -> str:
    return " ".join(_UNFIT_IN_HEADER.sub(_escaped, value) or "-" for value in values)


def milliseconds(start: str, end: str, never: str = "-1") -> str:
    """The expression of the time between two others, whole milliseconds; `never` if one of them never happened."""
    # Much happens in one turn, and then the two are one object.
    return f"((int(({end} - {start}) * 1000.0) if {end} is not {start} else 0) if {start} >= 0.0 <= {end} else {never})"


def _sound(expression: str) -> str:
    """What there is only of a request that could be read."""
    return f"({expression} if r.request is not None else '<BADREQ>')"


def _zone_date(at: float, utc: bool = False) -> str:
    parts = time.gmtime(at) if utc else time.localtime(at)
    zone = "+0000" if utc else time.strftime("%z", parts)
    return (
        f"{parts.tm_mday:02d}/{_MONTHS[parts.tm_mon - 1]}/{parts.tm_year}:"
        f"{parts.tm_hour:02d}:{parts.tm_min:02d}:{parts.tm_sec:02d} {zone}"
    )


def _hex_address(text: str) -> str:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return socket.inet_pton(family, text.partition("%")[0]).hex().upper()
    except OSError:
        return text  # `unix`, or none


#: The end of a date, by its milliseconds: half of what formatting a date would take.
_MILLISECONDS = tuple(f".{number:03d}" for number in range(1000))


class _Dates:
    """Dates with milliseconds. Most lines are of the same second as the one before, many of the same turn."""

    __slots__ = ("_at", "_second", "_start", "_text")

    def __init__(self) -> None:
        self._at = -1.0
        self._text = ""
        self._second = -1
        self._start = ""

    def text(self, at: float) -> str:
        if at == self._at:
            return self._text
        second = int(at)
        if second != self._second:
            local = time.localtime(second)
            self._start = (
                f"{local.tm_mday:02d}/{_MONTHS[local.tm_mon - 1]}/{local.tm_year}:"
                f"{local.tm_hour:02d}:{local.tm_min:02d}:{local.tm_sec:02d}"
            )
            self._second = second
        self._at = at
        text = self._text = self._start + _MILLISECONDS[int((at - second) * 1000)]
        return text


def tools() -> dict[str, Any]:
    """What the expressions call; made anew for each format, because of what is remembered from line to line."""
    return {
        "captures": _captures,
        "captures_list": _captures_list,
        "controls": escape_controls,
        "date": _Dates().text,
        "hex_address": _hex_address,
        "host": socket.gethostname(),
        "line": _line,
        "method": _method,
        "pid": os.getpid,
        "target": _target,
        "zone_date": _zone_date,
    }


_ms = milliseconds
_T, _F, _H, _A, _C = Kind.TEXT, Kind.FIXED, Kind.HEX, Kind.ADDRESS, Kind.CAPTURES

VARIABLES: dict[str, Variable] = {
    "B": Variable(_F, "r.bytes_read"),
    "CC": Variable(_T, "r._nothing", True),
    "CS": Variable(_T, "r._nothing", True),
    "H": Variable(_T, "host"),
    "HM": Variable(_T, _sound("method(r.request)"), True),
    "HP": Variable(_T, _sound("target(r.request, 'P')"), True),
    "HPO": Variable(_T, _sound("target(r.request, 'PO')"), True),
    "HQ": Variable(_T, _sound("target(r.request, 'Q')"), True),
    "HU": Variable(_T, _sound("target(r.request, 'U')"), True),
    "HV": Variable(_T, _sound("'HTTP/1.%d' % (r.request.version % 10)"), True),
    "ID": Variable(_T, "r._nothing"),
    "ST": Variable(_F, "r.status"),
    "T": Variable(_F, "zone_date(r.wall(r.accepted), True)"),
    "TR": Variable(_F, _ms("r.request_began", "r.request_done"), True),
    "Ta": Variable(_F, _ms("r._began", "r.ended"), True),
    "Tc": Variable(_F, _ms("r.assigned", "r.connected")),
    "Td": Variable(_F, _ms("(r.response_began if r.http else r.connected)", "r.ended")),
    "Th": Variable(_F, "int(r.handshake * 1000)"),
    "Ti": Variable(_F, f"max({_ms('(r.accepted + r.handshake)', 'r._began')}, 0)", True),
    "Tl": Variable(_F, "zone_date(r.wall(r.accepted))"),
    "Tq": Variable(_F, _ms("r.accepted", "r.request_done"), True),
    "Tr": Variable(_F, _ms("r.connected", "r.response_began"), True),
    "Ts": Variable(_H, "int(r.wall(r.accepted))"),
    "Tt": Variable(_F, _ms("r.accepted", "r.ended")),
    "Tu": Variable(_F, _ms("r._began", "r.ended") + " + int(r.handshake * 1000)"),
    "Tw": Variable(_F, _ms("r.request_done", "r.assigned")),
    "U": Variable(_F, "r.bytes_uploaded"),
    "ac": Variable(_F, "r.process_connections"),
    "b": Variable(_T, "r.backend_name"),
    "bc": Variable(_F, "r.backend_connections"),
    "bi": Variable(_A, "(r.server_source[0] if r.server_source else '-')"),
    "bp": Variable(_H, "(r.server_source[1] if r.server_source else '-')"),
    "bq": Variable(_F, "r.backend_queue"),
    "ci": Variable(_A, "(r.client[0] if r.client else 'unix')"),
    "cp": Variable(_H, "(r.client[1] if r.client else r.listener)"),
    "f": Variable(_T, "r.frontend_name"),
    "fc": Variable(_F, "r.frontend_connections"),
    "fi": Variable(_A, "(r.local[0] if r.local else 'unix')"),
    "fp": Variable(_H, "(r.local[1] if r.local else r.listener)"),
    "ft": Variable(_T, "r.frontend_name"),
    "hr": Variable(_C, "captures(r.request_captures)"),
    "hrl": Variable(_C, "captures_list(r.request_captures)"),
    "hs": Variable(_C, "captures(r.response_captures)"),
    "hsl": Variable(_C, "captures_list(r.response_captures)"),
    "lc": Variable(_H, "r.number"),
    "ms": Variable(_F, "'%03d' % ((r.wall(r.accepted)) % 1 * 1000)"),
    "pid": Variable(_H, "pid()"),
    "r": Variable(_T, _sound("(r.request.line or line(r.request))"), True),
    "rc": Variable(_F, "('+%d' % r.retries if r.redispatched else r.retries)"),
    "rt": Variable(_H, "r.number"),
    "s": Variable(_T, "(r.server_name or '<NOSRV>')"),
    "sc": Variable(_F, "r.server_connections"),
    "si": Variable(_A, "(r.server_address[0] if r.server_address else '-')"),
    "sp": Variable(_H, "(r.server_address[1] if r.server_address else '-')"),
    "sq": Variable(_F, "r.server_queue"),
    "t": Variable(_F, "date(r.wall(r.accepted))"),
    "tr": Variable(_F, "date(r.wall(r._began))", True),
    "trg": Variable(_F, "zone_date(r.wall(r._began), True)", True),
    "trl": Variable(_F, "zone_date(r.wall(r._began))", True),
    "ts": Variable(_F, "(r.cause or '--')"),
    "tsc": Variable(_F, "((r.cause or '--') + (r.cookie_state or '--'))"),
}
