"""What a worker tells main about its connections, one by one, and the end of those that the operator does not want."""

from __future__ import annotations

import heapq
import json
from typing import TYPE_CHECKING, Any

from hitlessd import channel
from hitlessd.worker.connection import Connection, State
from hitlessd.worker.http.state import HttpState
from hitlessd.worker.serial import to_serial
from hitlessd.worker.timers import NEVER

if TYPE_CHECKING:
    from hitlessd.worker.loop import Worker

__all__ = ["show", "shut_down"]

#: Serial forms in one answer, which take a few milliseconds.
_MOST_SHOWN = 100
#: Bytes of a request's target that are shown.
_LONGEST_TARGET = 100
#: HAProxy's letters for where a connection was when it ended (configuration manual, 8.5).
_WHERE = {State.QUEUED: "Q", State.PAUSED: "C", State.CONNECTING: "C"}


def show(worker: Worker, order: dict[str, Any]) -> dict[str, Any]:
    """The next serial forms behind the number "after", by number, so that who lives through a listing is in it once.

    "more" tells whether there are others behind them. "room": bytes that the answer may have.
    """
    after, only = order.get("after", 0), order.get("only")
    room = min(int(order.get("room", channel.LONGEST)), channel.LONGEST) - 1024
    chosen = heapq.nsmallest(
        _MOST_SHOWN + 1,
        (c for c in worker.connections if (c.number == only if only else c.number > after)),
        key=lambda conn: conn.number,
    )
    shown: list[dict[str, Any]] = []
    for conn in chosen[:_MOST_SHOWN]:
        form = _shown(conn)
        room -= len(json.dumps(form, separators=(",", ":"))) + 1
        if room < 0 and shown:
            break
        shown.append(form)
    return {"sessions": shown, "more": len(shown) < len(chosen)}


def _shown(conn: Connection) -> dict[str, Any]:
    now, route, server = conn.worker.now, conn.route, conn.server
    expires: list[float | None] = [None, None]
    if conn.state is State.ESTABLISHED and server is not None:
        due = (
            conn.due_of(conn.client, route.client_open, route.client_fin),
            conn.due_of(server, route.server_open, route.server_fin),
        )
        expires = [None if at == NEVER else at - now for at in due]
    elif isinstance(conn, HttpState) and conn.state is State.EXCHANGING:
        expires = [None if at == NEVER else at - now for at in (conn.client_due(), conn.server_due())]
    return to_serial(conn, data=False, names=True).as_dict() | {
        "fds": [conn.client.fd, server.fd if server is not None else -1],
        "expires": expires,
        "request": _request(conn),
    }


def _request(conn: Connection) -> str:
    """The request line of an HTTP exchange."""
    request = conn.exchange.request if isinstance(conn, HttpState) and conn.exchange is not None else None
    if request is None:
        return ""
    target = request.target
    if len(target) > _LONGEST_TARGET:
        target = target[:_LONGEST_TARGET] + b"..."
    return f"{request.method.decode()} {target.decode('latin-1')} HTTP/1.{request.version % 10}"


def shut_down(worker: Worker, order: dict[str, Any]) -> dict[str, Any]:
    """End the connection of the number "only", or all of the "server" [backend, name]; answers how many."""
    only, server = order.get("only"), order.get("server")
    closed = 0
    if not only and server:
        _close_idle(worker, server)
    for conn in list(worker.connections):
        target = conn.target
        names = [conn.backend.name, target.name] if target is not None else None
        if conn.number == only if only else names == server:
            conn.cause = "K" + (conn.phase() if isinstance(conn, HttpState) else _WHERE.get(conn.state, "D"))
            conn.close()
            closed += 1
    return {"closed": closed}


def _close_idle(worker: Worker, names: list[str]) -> None:
    """End the connections of the server [backend, name] that wait for a request."""
    backend = worker.backends.get(names[0])
    for server in backend.servers if backend is not None else ():
        if server.name == names[1] and server.pool:
            server.pool.clear()
