"""Making the serial form of a connection (form.py), and going on with one."""

from __future__ import annotations

import base64
import json
import select
import socket
from typing import TYPE_CHECKING, Any

from hitlessd.errors import PeerError
from hitlessd.parking.park import reset
from hitlessd.proxyprotocol import Header
from hitlessd.worker.connection import Connection, State
from hitlessd.worker.form import STATES, SerialConnection, SerialSide, encode
from hitlessd.worker.http.connection import HttpConnection
from hitlessd.worker.http.direct import ServerSide
from hitlessd.worker.http.serial import http_form, restore_http
from hitlessd.worker.http.side import HttpSide
from hitlessd.worker.lanes import Places
from hitlessd.worker.pipes import Pipe
from hitlessd.worker.plain import for_way, is_plain
from hitlessd.worker.preface import await_header
from hitlessd.worker.relay import EVENTS, Side, ignore
from hitlessd.worker.routing import AwaitsHello
from hitlessd.worker.timers import NEVER

if TYPE_CHECKING:
    from hitlessd.worker.backend import LiveServer
    from hitlessd.worker.loop import Worker

__all__ = [
    "Frozen",
    "freeze",
    "freeze_idle",
    "names_of",
    "resume",
    "resume_idle",
    "to_serial",
]

_to_json = json.JSONEncoder(separators=(",", ":")).encode


class Frozen:
    """A connection between two processes: its form and its descriptors, owned by whoever holds this."""

    __slots__ = ("_form", "client", "server", "ticket", "to_client", "to_server")

    def __init__(
        self,
        form: SerialConnection | str,
        client: socket.SocketType,
        server: socket.SocketType | None = None,
        to_server: Pipe | None = None,
        to_client: Pipe | None = None,
        ticket: int = -1,
    ) -> None:
        """`to_server` holds serial.client.piped bytes. `ticket` is of the worker's parking, to be given back when it is
        known who has the connection."""
        self._form = form
        self.client = client
        self.server = server
        self.to_server = to_server
        self.to_client = to_client
        self.ticket = ticket

    @property
    def serial(self) -> SerialConnection:
        """Its form, as an object."""
        form = self._form
        if isinstance(form, str):
            form = self._form = SerialConnection.from_dict(json.loads(form))
        return form

    def text(self) -> str:
        """Its form, as text."""
        form = self._form
        return form if isinstance(form, str) else _to_json(form.as_dict())

    @property
    def pooled(self) -> bool:
        """Whether it is one to a server that waits for a request, which nobody misses."""
        return not isinstance(self._form, str) and self._form.state == State.POOLED

    def close(self) -> None:
        """Let go of the descriptors, and of nothing else: others may have the connection."""
        self.client.close()
        if self.server is not None:
            self.server.close()
        for pipe in (self.to_server, self.to_client):
            if pipe is not None:
                pipe.close()

    def reset(self) -> None:
        """It is lost: its peers must not take that for the end of the data."""
        for sock in (self.client, self.server):
            if sock is not None:
                reset(sock)
        self.close()


def _name(sock: socket.SocketType, peer: bool) -> str:
    try:
        name = sock.getpeername() if peer else sock.getsockname()
    except OSError:
        return ""
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    if isinstance(name, bytes):
        return "abns@" + name[1:].decode(errors="backslashreplace")
    return f"unix@{name}"


def _side(side: Side, now: float, data: bool) -> SerialSide:
    kept = bytes(side.out) if side.out is not None else b""
    return SerialSide(
        family=int(side.sock.family) if data else 0,
        received=side.received,
        shift=side.shift,
        idle=round(now - side.last, 6),
        eof=side.eof,
        shut=side.shut,
        urgent=bool(side.ready & select.EPOLLPRI),
        bulky=side.bulky,
        kept=encode(kept) if data and kept else "",
        held=0 if data else len(kept),
        piped=side.pipe.fill if side.pipe is not None else 0,
    )


def to_serial(conn: Connection, data: bool = True, names: bool = False) -> SerialConnection:
    """The form of a connection as it is now; nothing is changed. `data` False leaves out what is buffered; `names`
    tells the addresses that the sockets have, which are for people."""
    worker, client, server, now = conn.worker, conn.client, conn.server, conn.worker.now
    deadline = conn.deadline()
    address, header = conn.address, conn.header
    return SerialConnection(
        generation=worker.setup.generation,
        worker=worker.index,
        number=conn.number,
        frontend=conn.frontend.name,
        backend=conn.backend.name,
        server=conn.target.name if conn.target is not None else "",
        state=str(conn.state),
        client_address=(str(address[0]), int(address[1])) if isinstance(address, tuple) else None,
        preface=header.length if header is not None else 0,
        destination=header.destination if header is not None and isinstance(header.destination, tuple) else None,
        frontend_address=_name(client.sock, False) if names else "",
        source_address=_name(server.sock, False) if names and server is not None else "",
        server_address=_name(server.sock, True) if names and server is not None else "",
        accepted_at=round(worker.realtime(conn.started), 6),
        age=round(now - conn.started, 6),
        assigned_after=round(conn.assigned_at - conn.started, 6) if conn.assigned_at >= 0 else -1.0,
        connected_after=round(conn.connected_at - conn.started, 6) if conn.connected_at >= 0 else -1.0,
        due_in=None if conn.due == NEVER else round(conn.due - now, 6),
        expires_in=None if deadline == NEVER else round(deadline - now, 6),
        retries=conn.retries,
        redispatched=conn.redispatched,
        queue_position=conn.queue_position,
        cause=conn.cause,
        dead="" if conn.dead is None else "client" if conn.dead is client else "server",
        accounted_in=conn.accounted_in,
        accounted_out=conn.accounted_out,
        entered=conn.entered,
        shared=conn.shared,
        # A version that knows of no shift shall look itself, and find that it cannot park this one.
        counted=conn.counted and not client.shift and (server is None or not server.shift),
        http=http_form(conn, data) if isinstance(conn, HttpConnection) else None,
        client=_side(client, now, data),
        server_side=_side(server, now, data) if server is not None else None,
    )


def names_of(conn: Connection) -> str:
    """Those of its frontend, backend and server, as fields of JSON."""
    names = {"frontend": conn.frontend.name, "backend": conn.backend.name}
    if conn.target is not None:
        names["server"] = conn.target.name
    return _to_json(names)[1:-1]


def freeze(conn: Connection, names: str = "") -> Frozen:
    """Take a connection out of its worker: nothing of it is read or written any more, its descriptors are yours.
    `names`: its names_of(), if known."""
    worker, client, server = conn.worker, conn.client, conn.server
    if conn.spliced or client.received != conn.accounted_in or (server and server.received != conn.accounted_out):
        conn.account()
    if is_plain(conn):
        assert server is not None
        text = for_way(conn, names or names_of(conn))
        client.copied = server.copied = True  # soon: they must leave epoll now
        ticket = worker.parking.depart(conn, ())
        conn.leave()
        del worker.closing[-2:]  # these two
        return Frozen(text, client.sock, server.sock, ticket=ticket)
    serial = to_serial(conn)
    pipes: list[Pipe | None] = []
    for side in (client, server):
        pipe = side.pipe if side is not None else None
        if side is not None:
            side.copied = True  # soon: it must leave epoll now
        if side is not None and pipe is not None:
            side.pipe = None
            if pipe.fill:
                worker.pipes.surrender(pipe)
            else:
                worker.pipes.give(pipe)
                pipe = None
        pipes.append(pipe)
    ticket = worker.parking.depart(conn, [pipe for pipe in pipes if pipe is not None])
    socks = (client.sock, server.sock if server is not None else None)
    conn.leave()
    worker.closing[:] = [sock for sock in worker.closing if sock not in socks]
    return Frozen(serial, socks[0], socks[1], pipes[0], pipes[1], ticket)


def freeze_idle(side: HttpSide) -> Frozen:
    """Take a connection to a server out of its pool; its descriptor is yours."""
    worker, pool = side.worker, side.pool
    assert pool is not None
    server = pool.server
    pool.take_out(side)
    worker.epoll.unregister(side.fd)
    worker.handlers[side.fd] = ignore
    serial = SerialConnection(
        backend=server.backend.name,
        server=server.name,
        state=str(State.POOLED),
        http={"uses": side.uses},
        client=SerialSide(family=int(side.sock.family)),
    )
    if side.shared and serial.http is not None:
        serial.http["shared"] = True
    return Frozen(serial, side.sock)


def resume_idle(worker: Worker, frozen: Frozen) -> None:
    """A server's connection that waits for a request; superfluous where nobody knows that server."""
    serial = frozen.serial
    backend = worker.backends.get(serial.backend)
    server = next((s for s in backend.servers if s.name == serial.server), None) if backend is not None else None
    if server is None or server.pool is None or not worker.room_for_idle or not _leads_to(frozen.client, server):
        frozen.close()
        return
    side = ServerSide.idle(worker, frozen.client, int((serial.http or {}).get("uses", 1)))
    side.copied = True
    worker.handlers[side.fd] = side.on_event
    side.shared = bool((serial.http or {}).get("shared"))
    worker.epoll.register(side.fd, EVENTS)
    server.pool.give(side)  # which may not want it
    server.pool.expect()
    server.touch()


def _leads_to(sock: socket.socket | socket.SocketType, server: LiveServer) -> bool:
    """Whether the socket is connected to the address that the server has now."""
    try:
        name = sock.getpeername()
    except OSError:
        return False
    return (tuple(name[:2]) if isinstance(name, tuple) else name) == server.address


def _restore(side: Side, form: SerialSide, pipe: Pipe | None, now: float) -> None:
    side.copied = True
    side.received, side.shift = form.received, form.shift
    side.last = now - form.idle
    side.eof, side.shut, side.bulky = form.eof, form.shut, form.bulky
    side.ready = select.EPOLLPRI if form.urgent else 0
    side.out = base64.b64decode(form.kept) if form.kept else None
    if pipe is not None:
        pipe.fill = form.piped
        side.worker.pipes.adopt(pipe)
        if pipe.fill:
            side.pipe = pipe
        else:
            side.worker.pipes.give(pipe)


def resume(worker: Worker, frozen: Frozen, places: Places | None = None, elapsed: float = 0.0) -> Connection:
    """Go on with a connection of another worker; its descriptors are ours now.

    `places` knows what this configuration may have no more, and serves all that are resumed in one turn; `elapsed`:
    seconds since it was frozen, which count for its timeouts. Raises PeerError, having taken nothing, when nothing is
    known of its frontend or backend, or a pipe is missing.
    """
    serial, now = frozen.serial, worker.now - elapsed
    frontend, backend, target = (places or Places(worker.lanes)).of(serial)
    other = serial.server_side
    if (serial.client.piped and frozen.to_server is None) or (other and other.piped and frozen.to_client is None):
        raise PeerError("cannot resume a connection: its pipe is missing")
    state = STATES[serial.state]
    address: Any = serial.client_address if serial.client_address is not None else ""
    if frozen.client.timeout != 0.0:
        frozen.client.setblocking(False)
    conn = frontend.connection(worker, frontend, frozen.client, address)
    if backend is not frontend.backend:
        conn.backend, conn.route = backend, frontend.route_to(backend)
    if serial.preface:
        conn.header = Header(serial.preface, 0, serial.client_address, serial.destination)
    conn.number = serial.number or conn.number
    conn.started = now - serial.age
    conn.assigned_at = conn.started + serial.assigned_after if serial.assigned_after >= 0 else -1.0
    conn.connected_at = conn.started + serial.connected_after if serial.connected_after >= 0 else -1.0
    conn.due = NEVER if serial.due_in is None else now + serial.due_in
    conn.retries, conn.redispatched = serial.retries, serial.redispatched
    conn.queue_position, conn.cause = serial.queue_position, serial.cause
    conn.accounted_in, conn.accounted_out = serial.accounted_in, serial.accounted_out
    conn.shared, conn.counted = serial.shared, serial.counted
    client = conn.client
    _restore(client, serial.client, frozen.to_server, now)
    if target is not None:
        conn.target = target
        target.count(1)
    conn.state = state
    conn.count_in()
    if serial.entered and not frontend.bound:
        conn.entered = True
        backend.sessions += 1
        backend.touch()
    worker.handlers[client.fd] = client.on_event
    if frozen.server is not None and serial.server_side is not None:
        if frozen.server.timeout != 0.0:
            frozen.server.setblocking(False)
        server = conn.server = conn.server_side(worker, conn, frozen.server, frozen.server.fileno(), now)
        client.peer, server.peer = server, client
        _restore(server, serial.server_side, frozen.to_client, now)
        worker.handlers[server.fd] = conn.on_connecting if state is State.CONNECTING else server.on_event
        client.blocked = client.out is not None or server.pipe is not None
        server.blocked = server.out is not None or client.pipe is not None
        conn.dead = client if serial.dead == "client" else server if serial.dead == "server" else None
        if state is State.ESTABLISHED:
            dead = conn.dead is not None
            client.held = client.eof or server.blocked or (dead and conn.dead is not client)
            server.held = server.eof or client.blocked or (dead and conn.dead is not server)
        elif state is State.TARRYING and conn.dead is not None:
            worker.handlers[conn.dead.fd] = ignore
            worker.handlers[conn.dead.peer.fd] = conn.on_tarrying
        worker.epoll.register(server.fd, EVENTS)
    if state is State.HEADER:
        await_header(conn)
    elif state is State.CONTENT:
        AwaitsHello(conn).listen()
    if isinstance(conn, HttpConnection) and serial.http is not None:
        restore_http(conn, serial.http, now)
        if conn.exchange is not None and conn.server is not None and conn.target is not None:
            # A server's address may have changed: whoever is connected to the old one is of no use to others.
            conn.exchange.surplus = conn.exchange.surplus or not _leads_to(conn.server.sock, conn.target)
    # What has come or become possible meanwhile is an event of the registration itself.
    worker.epoll.register(client.fd, EVENTS)
    if state is State.QUEUED:
        backend.enqueue(conn)
    elif state in (State.CONNECTING, State.PAUSED) and conn.target is None:
        conn.drop_server()
        conn.assign()
    if conn.state is not State.CLOSED:
        conn.rearm()
    return conn
