"""What a client says before it is served: a PROXY header; and see routing.py.

Its socket is only looked into (MSG_PEEK) until the header is complete, then exactly the header is taken out. So a
connection in this state moves to another process as it is.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING

from hitlessd.logformat import compile_format
from hitlessd.proxyprotocol import MOST, TRUNCATED, Header, Malformed, parse
from hitlessd.worker.connection import Connection, State
from hitlessd.worker.logline import ConnectionRecord
from hitlessd.worker.relay import READABLE, TROUBLE, WRITABLE
from hitlessd.worker.timers import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Preface", "await_header", "proceed"]

#: HAProxy's words for one who never said all of it.
_CLOSED = "Connection closed while waiting for PROXY protocol header"
_TIMEOUT = "Timeout while waiting for PROXY protocol header"
_PEEK = int(socket.MSG_PEEK)


class Preface:
    """Listens to the client of one connection that is not served yet."""

    __slots__ = ("conn",)

    def __init__(self, conn: Connection) -> None:
        self.conn = conn

    def on_event(self, events: int) -> None:
        """Something may have come."""

    def expired(self) -> None:
        """The connection's deadline has come."""


def await_header(conn: Connection) -> None:
    """Just accepted, or come from elsewhere, where a PROXY header comes first."""
    conn.state, conn.due = State.HEADER, NEVER
    waiting = conn.waiting = _AwaitsHeader(conn)
    # What has come already is an event of its registration, or of the next turn.
    conn.worker.handlers[conn.client.fd] = waiting.on_event


class _AwaitsHeader(Preface):
    __slots__ = ()

    def on_event(self, events: int) -> None:
        conn = self.conn
        client = conn.client
        try:
            data = client.sock.recv(MOST, _PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            header = parse(data) if data else None
        except Malformed as malformed:
            self._refuse(str(malformed))
            return
        if header is not None:
            self._take(header)
            more = events & TROUBLE or len(data) > header.length
            proceed(conn, events & READABLE | select.EPOLLIN if more else 0, conn.frontend.first)
        elif not data:
            self._refuse(_CLOSED, silent=True)
        elif events & TROUBLE:
            self._refuse(TRUNCATED)  # all that comes before a FIN was there to be seen

    def _take(self, header: Header) -> None:
        """Take it out of the stream, and believe it."""
        conn = self.conn
        client = conn.client
        client.sock.recv(header.length)
        client.received = conn.accounted_in = header.length
        client.shift = -header.length
        client.last = conn.worker.now
        conn.header = header
        if header.source is not None:
            # The client of a unix socket has no address, as with accept(2).
            conn.address = header.source if isinstance(header.source, tuple) else ""

    def expired(self) -> None:
        try:
            said = bool(self.conn.client.sock.recv(1, _PEEK))
        except OSError:
            said = False
        self._refuse(_TIMEOUT, silent=not said)

    def _refuse(self, why: str, silent: bool = False) -> None:
        """Close what never became a session. Like HAProxy, log that whatever the format of the log; `silent`: nothing
        has come, which may not be worth a line."""
        conn = self.conn
        worker, frontend = conn.worker, conn.frontend
        if not (silent and frontend.config.dontlognull):
            who = compile_format("%ci:%cp [%t] %f", log=True)(ConnectionRecord(conn))
            worker.log("info", f"{who}/1: {why}")
        if conn.shared:
            worker.parking.end(conn)
        conn.leave()


def proceed(conn: Connection, ready: int, step: Callable[[Connection], None]) -> None:
    """The client need not be looked into any more. `ready`: events that nobody will see again; `step`: what is next."""
    client = conn.client
    conn.waiting = None
    conn.worker.handlers[client.fd] = client.on_event
    client.ready |= ready
    step(conn)
    if not client.live or conn.waiting is not None:
        return
    if client.held:
        if ready & TROUBLE:
            conn.trouble(client, ready)
    elif client.ready:
        ready, client.ready = client.ready, 0
        client.on_event(ready | WRITABLE)
    if client.live:
        conn.rearm()
