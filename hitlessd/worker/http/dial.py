"""A new connection to a server for the direct way, spelt out: what HttpConnection.connect(), on_connecting() and
send_request() do where there is nothing to ask.

A server on this machine is connected when connect(2) returns, whatever it returns: the request is sent at once, which
saves an event, or has the one that reports the connection report the response, too.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from hitlessd.worker.connection import State
from hitlessd.worker.counters import CONNECTS
from hitlessd.worker.relay import EVENTS
from hitlessd.worker.timers import GRAIN

if TYPE_CHECKING:
    from hitlessd.worker.backend import LiveServer
    from hitlessd.worker.http.connection import HttpConnection
    from hitlessd.worker.http.side import HttpSide

__all__ = ["dial"]

_CONNECTING, _EXCHANGING = State.CONNECTING, State.EXCHANGING
_send = socket.SocketType.send


def dial(conn: HttpConnection, target: LiveServer) -> None:
    """Connect to the server of which the connection has a slot, and which is no other's yet; tell it `outgoing`."""
    worker, client, route, exchange = conn.worker, conn.client, conn.route, conn.exchange
    now = worker.now
    if worker.idle and not worker.room_for_idle:
        worker.spare_idle()
    codes = target.codes
    assert codes is not None and exchange is not None
    codes[CONNECTS] += 1
    conn.target = target
    conn.assigned_at = now
    conn.state = _CONNECTING
    conn.due = now + route.connect
    sock = conn.reach(target)
    if sock is None:
        return
    fd = sock.fileno()
    sent = 0
    outgoing = conn.outgoing
    try:
        worker.epoll.register(fd, EVENTS)
        if target.near:
            sent = _send(sock, outgoing)
    except BlockingIOError:
        pass  # too many wait for it already
    except OSError as failure:
        sock.close()
        conn.connect_failed(failure.errno or errno.EIO)
        return
    server: HttpSide = conn.server_side(worker, conn, sock, fd, now)  # type: ignore[assignment]
    conn.server = server
    server.peer = client
    client.peer = server
    if not sent:
        worker.handlers[fd] = conn.on_connecting
        due = conn.due
    else:
        worker.handlers[fd] = server.on_event
        conn.state = _EXCHANGING
        conn.connected_at = client.last = now
        exchange.sent = True
        server.uses = 1
        server.held = False
        if target.observer4 is not None:
            target.observer4.passed()
        due = now + route.least
    if due < conn.bucket * GRAIN or not conn.bucket:
        conn.rearm()
    if sent and sent != len(outgoing):
        server.block(memoryview(outgoing)[sent:])
