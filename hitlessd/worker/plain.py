"""The serial form of the many as text: connections that are established, and of which nothing is buffered or unusual.

The same fields as to_serial() and as_dict() of serial.py tell, at a fifth of the time: a reload writes thousands of
these, once for the way and once for the park. What has its default is left out, as is what is only for people.
"""

from __future__ import annotations

import select
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING

from hitlessd.worker.connection import Connection, State
from hitlessd.worker.timers import NEVER

if TYPE_CHECKING:
    from hitlessd.worker.relay import Side

__all__ = ["for_park", "for_way", "is_plain"]

_ESTABLISHED = State.ESTABLISHED
_URGENT = select.EPOLLPRI


def is_plain(conn: Connection) -> bool:
    """Whether the functions below tell all that there is to tell of it, besides its descriptors."""
    server = conn.server
    return (
        conn.__class__ is Connection
        and conn.state is _ESTABLISHED
        and server is not None
        and conn.target is not None
        and conn.dead is None
        and conn.header is None
        and not (conn.cause or conn.retries or conn.redispatched or conn.queue_position)
        and _idle(conn.client)
        and _idle(server)
    )


def _idle(side: Side) -> bool:
    return side.pipe is None and side.out is None and not (side.eof or side.shut or side.bulky or side.ready & _URGENT)


def for_way(conn: Connection, names: str) -> str:
    """For another worker. `names` are those of its frontend, backend and server, as fields of JSON."""
    return (
        f'{{{names},"number":{conn.number},"accounted_in":{conn.accounted_in},'
        f'"accounted_out":{conn.accounted_out}{_rest(conn, True)}'
    )


def for_park(conn: Connection, lane: int) -> str:
    """For its slot in the book, which has the other numbers."""
    return f'{{"lane":{lane}{_rest(conn, False)}'


def _rest(conn: Connection, families: bool) -> str:
    server = conn.server
    assert server is not None
    now, started, address, client = conn.worker.now, conn.started, conn.address, conn.client
    whose = (
        f',"client_address":[{encode_basestring_ascii(address[0])},{address[1]}]' if address.__class__ is tuple else ""
    )
    due = f',"due_in":{conn.due - now:.6f}' if conn.due != NEVER else ""
    # A version that knows of no shift shall look itself, see to_serial().
    flags = _FLAGS[conn.entered, conn.shared, conn.counted and not (client.shift or server.shift)]
    return (
        f'{whose},"age":{now - started:.6f},"assigned_after":{conn.assigned_at - started:.6f}'
        f',"connected_after":{conn.connected_at - started:.6f}{due}{flags}'
        f',"client":{_side(client, now, families)},"server_side":{_side(server, now, families)}}}'
    )


def _side(side: Side, now: float, families: bool) -> str:
    family = f'"family":{side.sock.family:d},' if families else ""
    shift = f',"shift":{side.shift}' if side.shift else ""
    return f'{{{family}"received":{side.received}{shift},"idle":{now - side.last:.6f}}}'


_FLAGS = {
    (entered, shared, counted): "".join(
        f',"{name}":true' for name, on in (("entered", entered), ("shared", shared), ("counted", counted)) if on
    )
    for entered in (False, True)
    for shared in (False, True)
    for counted in (False, True)
}
