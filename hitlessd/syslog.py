"""Lines for a syslog server, over UDP or a unix datagram socket, as HAProxy sends them, and without ever waiting.

The header is that of HAProxy's default format `local` (configuration manual, "log" of the global section): RFC 3164's
without a host name, which the server knows better.
"""

from __future__ import annotations

import os
import socket
import time

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
_NEVER_WAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Syslog:
    """A syslog server."""

    def __init__(self, address: InetAddress | UnixAddress, facility: str, name: str) -> None:
        self._to = address.sockaddr
        self._facility = FACILITIES.index(facility) << 3
        self._name = name
        self._socket = socket.socket(address.family, socket.SOCK_DGRAM)
        self._second = -1
        self._stamp = ""

    def send(self, priority: int, text: str, whole: bool = False) -> bool:
        """Whether it went out. Longer lines are cut, unless they must be `whole`, as JSON must."""
        second = int(time.time())
        if second != self._second:
            local = time.localtime(second)
            clock = f"{local.tm_hour:02d}:{local.tm_min:02d}:{local.tm_sec:02d}"
            self._stamp = f"{_MONTHS[local.tm_mon - 1]} {local.tm_mday:2d} {clock}"
            self._second = second
        line = f"<{self._facility | priority}>{self._stamp} {self._name}[{os.getpid()}]: {text}"
        data = line.replace("\n", " ").encode(errors="backslashreplace")
        if not whole:
            data = data[: _LONGEST - 1]
        try:
            self._socket.sendto(data + b"\n", _NEVER_WAIT, self._to)
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()
