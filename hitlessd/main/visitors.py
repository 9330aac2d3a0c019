"""Clients whose request main answers itself, as workers pass them on: to our web server, or to our successor's.

Whoever is asked shows what the current generation knows. So during a handover clients are held until it is clear who
that is, and what the workers of a generation that drains pass on goes over its line to the current one.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Protocol

from hitlessd.main.site import page_of
from hitlessd.model import Config
from hitlessd.web.message import Grant, Service

__all__ = ["Host", "Line", "Visitors"]

#: Clients that are held at a time.
_MOST = 256
_SORRY = b"HTTP/1.1 %b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"


class Host(Protocol):
    """The web server."""

    def adopt(self, sock: socket.socket, already: bytes, grant: Grant) -> None: ...


class Line(Protocol):
    """To the successor."""

    def pass_on(self, message: dict[str, Any], fd: int) -> bool: ...


class Visitors:
    """`config()` is the configuration in force."""

    def __init__(self, config: Callable[[], Config], host: Host) -> None:
        self._config = config
        self._host = host
        self._held: list[tuple[socket.socket, dict[str, Any]]] | None = None  # None: nobody is
        self._line: Line | None = None

    def came(self, sock: socket.socket, message: dict[str, Any]) -> None:
        """A worker, or a generation that drains, has passed a client on; owns the socket."""
        if self._held is not None:
            if len(self._held) < _MOST:
                self._held.append((sock, message))
            else:
                _apologize(sock, b"503 Service Unavailable", b"cannot answer: a reload takes too long\n")
        elif self._line is None:
            self._admit(sock, message)
        elif self._line.pass_on(message, sock.fileno()):
            sock.close()  # the successor has it
        else:
            _apologize(sock, b"503 Service Unavailable", b"cannot answer: this generation is being replaced\n")

    def hold(self) -> None:
        """A successor may be about to take over."""
        if self._held is None:
            self._held = []

    def stay(self) -> None:
        """There is no successor: they are ours."""
        self._go_on()

    def leave_to(self, line: Line | None) -> None:
        """There is one, and they are its. None: it cannot be told, so they are ours still."""
        self._line = line
        self._go_on()

    def _go_on(self) -> None:
        held, self._held = self._held or [], None
        for sock, message in held:
            self.came(sock, message)

    def _admit(self, sock: socket.socket, message: dict[str, Any]) -> None:
        proxy = str(message.get("proxy", ""))
        try:
            already = base64.b64decode(str(message.get("already", "")), validate=True)
        except binascii.Error:
            already = b""
        page = None
        if message.get("service") != "metrics":
            page = page_of(self._config(), proxy)
            if page is None:  # a reload has removed it
                _apologize(sock, b"404 Not Found", b"cannot show this page: it is configured no more\n")
                return
        admin = message.get("admin") is True and page is not None and page.admin is not None
        service: Service = "metrics" if page is None else "page"
        self._host.adopt(sock, already, Grant(service, page, proxy, admin, str(message.get("peer", ""))))


def _apologize(sock: socket.socket, status: bytes, why: bytes) -> None:
    """Answer without waiting, and end it, although duplicates of the socket may lie in a park."""
    with sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(_SORRY % (status, len(why), why), socket.MSG_NOSIGNAL)
        sock.shutdown(socket.SHUT_RDWR)
