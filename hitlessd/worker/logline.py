"""What the access log says of a connection in TCP mode: a record, and how its attributes are had without making one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from hitlessd.logcode import Shape, Source
from hitlessd.logrecord import RequestHead
from hitlessd.table import Column

if TYPE_CHECKING:
    from hitlessd.worker.connection import Connection
    from hitlessd.worker.counters import Row, Tally
    from hitlessd.worker.frontend import LiveFrontend
    from hitlessd.worker.loop import Worker

__all__ = ["ATTRIBUTES", "ConnectionRecord", "connection_source", "live_shapes", "live_source"]

_SCUR = int(Column.SCUR)
_ELSEWHERE = re.compile(r" \+ elsewhere\([^()]*\)")


class ConnectionRecord:
    """A LogRecord (hitlessd.logrecord) of a connection that is about to be closed.

    What costs nothing is copied; what asks the kernel or adds up counters of all workers waits until a format wants it.
    """

    __slots__ = (
        "_routed",
        "accepted",
        "assigned",
        "backend_name",
        "backend_queue",
        "bytes_read",
        "bytes_uploaded",
        "cause",
        "client",
        "conn",
        "connected",
        "ended",
        "frontend_name",
        "number",
        "redispatched",
        "request_began",
        "request_done",
        "retries",
        "server_name",
        "wall",
    )

    conn: Connection
    wall: Callable[[float], float]
    client: tuple[str, int] | None
    server_name: str
    ended: float
    bytes_read: int
    accepted: float
    assigned: float
    backend_name: str
    backend_queue: int
    bytes_uploaded: int
    cause: str
    connected: float
    frontend_name: str
    number: int
    redispatched: bool
    request_began: float
    request_done: float
    retries: int

    handshake = 0.0
    response_began = -1.0
    http = False
    listener = 1
    request: RequestHead | None = None
    response: Any = None
    request_captures: tuple[str, ...] = ()
    response_captures: tuple[str, ...] = ()
    server_queue = status = 0
    sni = cookie_state = ""

    def __init__(self, conn: Connection) -> None:
        worker, address, target, server = conn.worker, conn.address, conn.target, conn.server
        self.conn = conn
        self.wall = worker.realtime
        self.client = address if isinstance(address, tuple) else None
        self.frontend_name = conn.frontend.name
        # Without a backend of its own yet, it is the frontend that is shown, as with HAProxy.
        self._routed = conn.entered or conn.frontend.bound
        self.backend_name = conn.backend.name if self._routed else conn.frontend.name
        self.server_name = target.name if target is not None else ""
        self.accepted = self.request_began = self.request_done = conn.started
        self.assigned = conn.assigned_at
        if self.assigned < 0.0 and conn.queue_position:
            self.assigned = worker.now
        self.connected = conn.connected_at
        self.ended = worker.now
        self.bytes_read = server.received if server is not None else 0
        self.bytes_uploaded = conn.client.received
        self.cause = conn.cause
        self.retries = conn.retries
        self.redispatched = conn.redispatched
        self.backend_queue = conn.queue_position
        self.number = conn.number

    # -- asked of the kernel -----------------------------------------------------------------------------------------

    @property
    def local(self) -> tuple[str, int] | None:
        return self.conn.local()

    @property
    def server_address(self) -> tuple[str, int] | None:
        target, server = self.conn.target, self.conn.server
        if target is None:
            return None
        if target.inet and not target.any_port:
            return str(target.address[0]), int(target.address[1])
        return _name(server.sock.getpeername) if server is not None else None

    @property
    def server_source(self) -> tuple[str, int] | None:
        server = self.conn.server
        return _name(server.sock.getsockname) if server is not None else None

    # -- added up over all workers: as with HAProxy, the connection itself counts on its frontend still, and on its
    # backend and server no more ---------------------------------------------------------------------------------------

    @property
    def process_connections(self) -> int:
        worker = self.conn.worker
        return len(worker.connections) + self._elsewhere(worker.process.row)

    @property
    def frontend_connections(self) -> int:
        return self._now_on(self.conn.frontend)

    @property
    def backend_connections(self) -> int:
        if not self._routed:
            return 0
        frontend = self.conn.frontend
        # Where a backend's number follows from the frontend's, what is new there is still to be added here.
        pending = frontend.sessions - frontend.counted if frontend.bound else 0
        return self._now_on(self.conn.backend) + pending - 1

    @property
    def server_connections(self) -> int:
        target = self.conn.target
        return self._now_on(target) - 1 if target is not None else 0

    def _now_on(self, tally: Tally) -> int:
        """What its row would say if it were brought up to date, which costs as much as all of a log line."""
        row = tally.row
        return row.scur + tally.sessions - tally.counted + self._elsewhere(row)

    def _elsewhere(self, row: Row) -> int:
        """In the other workers."""
        worker = self.conn.worker
        slots = worker.slots
        if len(slots) == 1 or row.number < 0:
            return 0
        at = row.start + _SCUR
        return sum([slot[at] for slot in slots]) - slots[worker.index][at]


#: As the attributes of ConnectionRecord, which says why; those that begin with `_` are for the others.
ATTRIBUTES = {
    "_target": "conn.target",
    "_server": "conn.server",
    "_routed": "conn.entered or r._bound",
    "_backend": "conn.backend",
    "_bound": "frontend.bound",
    "frontend_name": "frontend.name",
    "client": "conn.address if isinstance(conn.address, tuple) else None",
    "local": "conn.local()",
    "server_address": "r._record.server_address",
    "server_source": "r._record.server_source",
    "backend_name": "r._backend.name if r._routed else r.frontend_name",
    "server_name": "r._target.name if r._target is not None else ''",
    "accepted": "conn.started",
    "request_began": "r.accepted",
    "request_done": "r.accepted",
    "_assigned": "conn.assigned_at",
    "assigned": "worker.now if r._assigned < 0.0 and conn.queue_position else r._assigned",
    "connected": "conn.connected_at",
    "ended": "worker.now",
    "bytes_read": "r._server.received if r._server is not None else 0",
    "bytes_uploaded": "conn.client.received",
    "backend_queue": "conn.queue_position",
    "process_connections": "len(worker.connections) + elsewhere(worker.process.row)",
    "frontend_connections": "frontend.row.scur + frontend.sessions - frontend.counted + elsewhere(frontend.row)",
    "backend_connections": (
        "r._backend.row.scur + r._backend.sessions - r._backend.counted + elsewhere(r._backend.row) - 1"
        " + (frontend.sessions - frontend.counted if r._bound else 0) if r._routed else 0"
    ),
    "server_connections": (
        "r._target.row.scur + r._target.sessions - r._target.counted + elsewhere(r._target.row) - 1"
        " if r._target is not None else 0"
    ),
}


#: Attributes of the class: never another one in TCP mode.
_CONSTANT = (
    *("handshake", "response_began", "http", "listener", "request", "response", "request_captures"),
    *("response_captures", "server_queue", "status", "sni", "cookie_state"),
)


def live_shapes(
    record: type[ConnectionRecord], attributes: dict[str, str], constant: Iterable[str], **constants: Any
) -> tuple[Shape, Shape]:
    """With other workers, and alone. `constant`: attributes of the record's class; `constants`: others."""
    constants |= {name: getattr(record, name) for name in constant}
    # A call each for nothing: a tenth of a line.
    alone = {name: _ELSEWHERE.sub("", how) for name, how in attributes.items()}
    crowded, single = (
        Shape("conn", how, constants, record="record(conn)", wall="worker.offset + ") for how in (attributes, alone)
    )
    return crowded, single


def live_source(
    worker: Worker, frontend: LiveFrontend, record: type[ConnectionRecord], shapes: tuple[Shape, Shape]
) -> Source:
    """How logs of that frontend read `conn`."""
    others = [slot for index, slot in enumerate(worker.slots) if index != worker.index]

    def elsewhere(row: Row) -> int:
        """Of now, in the other workers."""
        if row.number < 0:
            return 0
        at = row.start + _SCUR
        return sum([slot[at] for slot in others])

    names = {"worker": worker, "frontend": frontend, "record": record, "elsewhere": elsewhere}
    return Source(shapes[not others], names)


_SHAPES = live_shapes(ConnectionRecord, ATTRIBUTES, _CONSTANT)


def connection_source(worker: Worker, frontend: LiveFrontend) -> Source:
    """How logs of that frontend read a connection that is about to be closed."""
    return live_source(worker, frontend, ConnectionRecord, _SHAPES)


def _name(ask: Any) -> tuple[str, int] | None:
    """An address that the kernel tells; None where there is none, or none any more."""
    try:
        name = ask()
    except OSError:
        return None
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
