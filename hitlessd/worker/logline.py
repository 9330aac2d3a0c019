"""The log line of a connection, in HAProxy's TCP log format (configuration manual, section 8.2.2)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from hitlessd.table import Column

if TYPE_CHECKING:
    from hitlessd.worker.connection import Connection
    from hitlessd.worker.counters import Row

__all__ = ["accept_date", "address_text", "log_line"]

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def address_text(address: Any, listener: int = 1) -> str:
    """IP:PORT as HAProxy logs it, without brackets; `unix:N` for a client of a unix socket."""
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}"
    return f"unix:{listener}"


def accept_date(at: float) -> str:
    """A time of CLOCK_REALTIME as HAProxy logs it."""
    local = time.localtime(at)
    return (
        f"{local.tm_mday:02d}/{_MONTHS[local.tm_mon - 1]}/{local.tm_year}:"
        f"{local.tm_hour:02d}:{local.tm_min:02d}:{local.tm_sec:02d}.{int(at * 1000) % 1000:03d}"
    )


def _milliseconds(start: float, end: float) -> int:
    return int((end - start) * 1000) if end >= 0 else -1


def log_line(conn: Connection) -> str:
    """The line for a connection that is about to be closed."""
    worker, frontend = conn.worker, conn.frontend
    backend, target, table = conn.backend, conn.target, worker.table
    worker.write_counters()
    # Without a backend of its own yet, it is the frontend that is shown, as with HAProxy.
    routed = conn.entered or frontend.bound

    def now_on(row: Row) -> int:
        return table.value(row.number, Column.SCUR) if row.number >= 0 else row.scur

    waited = _milliseconds(conn.started, conn.assigned_at)
    if waited < 0 and conn.queue_position:
        waited = _milliseconds(conn.started, worker.now)
    answered = conn.server.received if conn.server is not None else 0
    # As with HAProxy, the connection itself counts on its frontend still, and on its backend and server no more.
    return (
        f"{address_text(conn.address)} [{accept_date(worker.realtime(conn.started))}] {frontend.name} "
        f"{backend.name if routed else frontend.name}/{target.name if target else '<NOSRV>'} "
        f"{waited}/{_milliseconds(conn.assigned_at, conn.connected_at)}/"
        f"{_milliseconds(conn.started, worker.now)} {answered} {conn.cause or '--'} "
        f"{now_on(worker.process.row)}/{now_on(frontend.row)}/{now_on(backend.row) - 1 if routed else 0}/"
        f"{now_on(target.row) - 1 if target else 0}/{'+' if conn.redispatched else ''}{conn.retries} "
        f"0/{conn.queue_position}"
    )
