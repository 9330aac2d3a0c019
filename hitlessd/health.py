"""What checks say of a server: HAProxy's counter between down and up, and its words for results. No I/O.

The counter runs from 0 to rise + fall - 1, and the server is up from `rise` on. A failed check takes one off, a passed
one adds one; what falls below `rise` falls to 0, and what reaches it jumps to the top: `fall` failures in a row take a
server down, `rise` passes bring it back. It starts at `rise`: up, but the first failure takes it down (HAProxy 2.6's
check.c).
"""

from __future__ import annotations

import time
import zlib
from enum import IntEnum
from typing import NamedTuple

from hitlessd.model import Backend, Check, Server

__all__ = [
    "DESCRIPTIONS",
    "STALE",
    "STALE_CHECKS",
    "Outcome",
    "Result",
    "after",
    "first_delay",
    "forced_identity",
    "identity",
    "interval",
    "moment",
    "shortest_interval",
    "status",
    "struck",
    "top",
]

#: Seconds for which what is known of a server counts, when nobody has checked it since; or STALE_CHECKS intervals, if
#: that is longer. See docs/health-checks.md.
STALE = 60.0
STALE_CHECKS = 3
#: Seconds over which the first checks are spread at least (HAProxy's SRV_CHK_INTER_THRES).
_LEAST_SPREAD = 1.0


def moment() -> float:
    """Seconds of CLOCK_BOOTTIME: what generations tell each other the times of checks by. Nobody sets it, all processes
    have the same, and it goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Result(IntEnum):
    """How a check ended, by HAProxy's names for `check_status` (management guide, 9.1)."""

    INI = 0  # there was none yet
    SOCKERR = 1
    L4OK = 2
    L4TOUT = 3
    L4CON = 4
    L7OK = 5
    L7TOUT = 6
    L7RSP = 7
    L7STS = 8
    HANA = 9  # not a check: `observe` has seen enough errors

    @property
    def passed(self) -> bool:
        return self in (Result.L4OK, Result.L7OK)


DESCRIPTIONS = {
    Result.INI: "Initializing",
    Result.SOCKERR: "Socket error",
    Result.L4OK: "Layer4 check passed",
    Result.L4TOUT: "Layer4 timeout",
    Result.L4CON: "Layer4 connection problem",
    Result.L7OK: "Layer7 check passed",
    Result.L7TOUT: "Layer7 timeout",
    Result.L7RSP: "Layer7 invalid response",
    Result.L7STS: "Layer7 wrong status",
    Result.HANA: "Health analyze",
}


class Outcome(NamedTuple):
    """What one check has found. `code` is an HTTP status, 0 for none; `text` is for a person."""

    result: Result
    code: int = 0
    text: str = ""


def top(check: Check) -> int:
    """The counter of a server of which nothing bad is known."""
    return check.rise + check.fall - 1


def after(check: Check, counter: int, passed: bool) -> int:
    """The counter after a check."""
    if passed:
        return counter + 1 if counter + 1 < check.rise else top(check)
    return counter - 1 if counter - 1 >= check.rise else 0


def struck(check: Check, counter: int, how: str) -> int:
    """The counter after `observe` has seen too many errors; `how` is the server's on-error."""
    if how == "mark-down":
        return 0
    if how == "sudden-death":
        counter = min(counter, check.rise + 1)
    return counter if how == "fastinter" else after(check, counter, False)


def interval(check: Check, counter: int) -> float:
    """Seconds from the end of a check to the next one."""
    if counter == top(check):
        return check.inter
    if counter == 0:
        return check.inter if check.downinter is None else check.downinter
    return check.inter if check.fastinter is None else check.fastinter


def shortest_interval(check: Check) -> float:
    return min(check.inter, check.fastinter or check.inter, check.downinter or check.inter)


def first_delay(check: Check, position: int, count: int, shortest: float) -> float:
    """Seconds until a server's first check: `count` servers, `shortest` of all their intervals, are spread over it."""
    return max(shortest, check.inter, _LEAST_SPREAD) * position / count if count > 1 else 0.0


def status(check: Check, counter: int, up: bool) -> str:
    """As `show stat` writes it: UP, UP 1/3 on its way down, DOWN 1/2 on its way up."""
    if up:
        return "UP" if counter >= top(check) else f"UP {counter - check.rise + 1}/{check.fall}"
    return f"DOWN {counter}/{check.rise}" if counter else "DOWN"


def identity(backend: Backend, server: Server) -> int:
    """A number of where and how a server is checked, not of how often: what is known of another one says nothing."""
    check = server.check
    if check is None:
        return 0
    words = [str(server.address), str(check.address or server.address), str(check.send_proxy)]
    if http := backend.http_check:
        words += [http.method, http.uri, http.version, http.body]
        words += [word for header in http.headers for word in header]
        words += [word for e in http.expect for word in (e.kind, e.name, e.value, str(e.negated))]
    text = "\0".join(words).encode(errors="surrogateescape")
    return zlib.crc32(text) << 32 | zlib.crc32(b"\1" + text)


def forced_identity(server: Server) -> int:
    """The same of a server that nobody checks, and of which an operator has said how it is."""
    text = str(server.address).encode(errors="surrogateescape")
    return zlib.crc32(text) << 32 | zlib.crc32(b"\2" + text)
