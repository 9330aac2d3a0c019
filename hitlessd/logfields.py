"""The variables of HAProxy's log-format language (configuration manual, section 8.2.6): what each one says of a record.

Each is a Python expression over `r`, a LogRecord, and the names of `tools()`; logformat.py joins those of a format into
one function, because calling a function for each of twenty variables would take as long as all the rest of a line.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

from hitlessd.logrecord import LogRecord

__all__ = ["VARIABLES", "Kind", "Variable", "escape_controls", "tools"]

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


def _line(r: LogRecord) -> str:
    request = r.request
    if request is None:
        return "<BADREQ>"
    text = (b"%b %b HTTP/1.%d" % (request.method, request.target, request.version % 10))[:_LINE].decode("latin-1")
    return _UNFIT.sub(_escaped, text)


def _method(r: LogRecord) -> str:
    request = r.request
    return "<BADREQ>" if request is None else _UNFIT.sub(_escaped, request.method.decode("latin-1"))


def _version(r: LogRecord) -> str:
    request = r.request
    return "<BADREQ>" if request is None else f"HTTP/1.{request.version % 10}"


def _target(r: LogRecord, part: str) -> str:
    """`part`: U all, P without the query, PO the path alone, Q the query with its question mark."""
    request = r.request
    if request is None:
        return "<BADREQ>"
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


def _ms(start: float, end: float) -> int:
    return int((end - start) * 1000) if end >= 0.0 and start >= 0.0 else -1


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


class _Dates:
    """Dates with milliseconds. Most lines are of the same second as the one before."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def text(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            local = time.localtime(second)
            self._text = (
                f"{local.tm_mday:02d}/{_MONTHS[local.tm_mon - 1]}/{local.tm_year}:"
                f"{local.tm_hour:02d}:{local.tm_min:02d}:{local.tm_sec:02d}"
            )
            self._second = second
        return f"{self._text}.{int((at - second) * 1000):03d}"


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
        "ms": _ms,
        "pid": os.getpid,
        "target": _target,
        "version": _version,
        "zone_date": _zone_date,
    }


_BEGAN = "(r.request_began if r.request_began >= 0.0 else r.accepted)"
_T, _F, _H, _A, _C = Kind.TEXT, Kind.FIXED, Kind.HEX, Kind.ADDRESS, Kind.CAPTURES

VARIABLES: dict[str, Variable] = {
    "B": Variable(_F, "r.bytes_read"),
    "CC": Variable(_T, "''", True),
    "CS": Variable(_T, "''", True),
    "H": Variable(_T, "host"),
    "HM": Variable(_T, "method(r)", True),
    "HP": Variable(_T, "target(r, 'P')", True),
    "HPO": Variable(_T, "target(r, 'PO')", True),
    "HQ": Variable(_T, "target(r, 'Q')", True),
    "HU": Variable(_T, "target(r, 'U')", True),
    "HV": Variable(_T, "version(r)", True),
    "ID": Variable(_T, "''"),
    "ST": Variable(_F, "r.status"),
    "T": Variable(_F, "zone_date(r.wall(r.accepted), True)"),
    "TR": Variable(_F, "ms(r.request_began, r.request_done)", True),
    "Ta": Variable(_F, f"ms({_BEGAN}, r.ended)", True),
    "Tc": Variable(_F, "ms(r.assigned, r.connected)"),
    "Td": Variable(_F, "ms(r.response_began if r.http else r.connected, r.ended)"),
    "Th": Variable(_F, "int(r.handshake * 1000)"),
    "Ti": Variable(_F, f"max(ms(r.accepted + r.handshake, {_BEGAN}), 0)", True),
    "Tl": Variable(_F, "zone_date(r.wall(r.accepted))"),
    "Tq": Variable(_F, "ms(r.accepted, r.request_done)", True),
    "Tr": Variable(_F, "ms(r.connected, r.response_began)", True),
    "Ts": Variable(_H, "int(r.wall(r.accepted))"),
    "Tt": Variable(_F, "ms(r.accepted, r.ended)"),
    "Tu": Variable(_F, f"ms({_BEGAN}, r.ended) + int(r.handshake * 1000)"),
    "Tw": Variable(_F, "ms(r.request_done, r.assigned)"),
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
    "ms": Variable(_F, "'%03d' % (r.wall(r.accepted) % 1 * 1000)"),
    "pid": Variable(_H, "pid()"),
    "r": Variable(_T, "line(r)", True),
    "rc": Variable(_F, "('+%d' % r.retries if r.redispatched else r.retries)"),
    "rt": Variable(_H, "r.number"),
    "s": Variable(_T, "(r.server_name or '<NOSRV>')"),
    "sc": Variable(_F, "r.server_connections"),
    "si": Variable(_A, "(r.server_address[0] if r.server_address else '-')"),
    "sp": Variable(_H, "(r.server_address[1] if r.server_address else '-')"),
    "sq": Variable(_F, "r.server_queue"),
    "t": Variable(_F, "date(r.wall(r.accepted))"),
    "tr": Variable(_F, f"date(r.wall({_BEGAN}))", True),
    "trg": Variable(_F, f"zone_date(r.wall({_BEGAN}), True)", True),
    "trl": Variable(_F, f"zone_date(r.wall({_BEGAN}))", True),
    "ts": Variable(_F, "(r.cause or '--')"),
    "tsc": Variable(_F, "((r.cause or '--') + (r.cookie_state or '--'))"),
}
