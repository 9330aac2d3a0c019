"""Lines for a syslog server, over UDP or a unix datagram socket, as HAProxy sends them, and without ever waiting.

The header is that of HAProxy's default format `local` (configuration manual, "log" of the global section): RFC 3164's
without a host name, which the server knows better.
"""

from __future__ import annotations

import os
import time
from time import time as _time

from hitlessd.datagrams import Datagrams
from hitlessd.model import InetAddress, UnixAddress

__all__ = ["FACILITIES", "Syslog"]

#: HAProxy's names of the facilities, in the order of their numbers (RFC 3164, section 4.1.1).
FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "auth2", "ftp"),
    *("ntp", "audit", "alert", "cron2"),
    *(f"local{number}" for number in range(8)),
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
#: Bytes of a packet with its header, as RFC 3164, section 4.1, wants it and HAProxy does it.
_LONGEST = 1024
_INFO = 6


class Syslog:
    """A syslog server."""

    def __init__(self, address: InetAddress | UnixAddress, facility: str, name: str) -> None:
        self._facility = FACILITIES.index(facility) << 3
        self._name = name
        self._datagrams = Datagrams(address.family, address.sockaddr)
        self._datagrams.open()
        self._send = self._datagrams.send
        self._second = -1  # of the head of access log lines
        self._head = ""

    def send(self, priority: int, text: str) -> bool:
        """Whether it went out. Longer lines are cut."""
        line = self._head_at(int(time.time()), priority) + text
        data = line.replace("\n", " ").encode(errors="backslashreplace")
        self._datagrams.renew()
        return not self._send(data[: _LONGEST - 1] + b"\n")

    def access(self, line: str, whole: bool = False, fields: str = "", generation: int = 0) -> bool:
        """As send(), with severity info, but the line has no line breaks and may have to stay `whole`, as JSON must.

        `fields` and `generation` have no place here. Who writes access logs forks no more, so that its number can stay
        in the head."""
        second = int(_time())
        if second != self._second:
            self._head = self._head_at(second, _INFO)
            self._second = second
            self._datagrams.renew()
        line = f"{self._head}{line}\n"
        try:
            data = line.encode()
        except UnicodeEncodeError:
            data = line.encode(errors="backslashreplace")
        if len(data) > _LONGEST and not whole:
            data = data[: _LONGEST - 1] + b"\n"
        return not self._send(data)

    def _head_at(self, second: int, priority: int) -> str:
        local = time.localtime(second)
        clock = f"{local.tm_hour:02d}:{local.tm_min:02d}:{local.tm_sec:02d}"
        stamp = f"{_MONTHS[local.tm_mon - 1]} {local.tm_mday:2d} {clock}"
        return f"<{self._facility | priority}>{stamp} {self._name}[{os.getpid()}]: "

    def close(self) -> None:
        self._datagrams.close()
