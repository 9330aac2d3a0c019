"""A connection's life: finding a server, connecting, retrying, half-closes, timeouts, and an end that leaks nothing.

All that it is lies in slots, never in a closure or a generator, so that every state has a serial form (serial.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import termios
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from hitlessd.events import Event
from hitlessd.proxyprotocol import Header, build
from hitlessd.worker.logline import connection_source
from hitlessd.worker.observation import L4_ERROR
from hitlessd.worker.relay import EVENTS, READABLE, SCRATCH, TROUBLE, WRITABLE, Side, ignore
from hitlessd.worker.timers import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from hitlessd.logcode import Source
    from hitlessd.worker.backend import Asked, LiveBackend, LiveServer
    from hitlessd.worker.frontend import LiveFrontend
    from hitlessd.worker.loop import Worker
    from hitlessd.worker.preface import Preface
    from hitlessd.worker.route import Route

__all__ = ["UNDECIDED", "UNPARKED", "Connection", "State"]

#: Of a connection that has no slot in the book.
UNPARKED = -1

#: connect(2) or socket(2) lacks something of this machine's: retrying helps nobody (HAProxy's "R").
_RESOURCE = frozenset({errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
#: Of those, what may be there again in a moment; until then nobody else is accepted, to be cut off in turn.
_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close(2) sends RST (socket(7))
#: Seconds that the survivor of a broken connection may take to read what was buffered for it.
_TARRY = 5.0
#: Seconds that connecting may go on after the client has sent FIN and nothing else.
_GRACE = 1.0
#: Seconds between two entries of a long connection's bytes in the counters.
_ACCOUNT = 1.0
_Socket = socket.SocketType
_STREAM = int(socket.SOCK_STREAM) | int(socket.SOCK_NONBLOCK)
_INPROGRESS = int(errno.EINPROGRESS)
_SHUT_WR = int(socket.SHUT_WR)
_shutdown = socket.SocketType.shutdown
_send = socket.SocketType.send
_SOL_SOCKET, _SO_ERROR = int(socket.SOL_SOCKET), int(socket.SO_ERROR)


class State(StrEnum):
    """Where a connection is in its life."""

    HEADER = "header"  # waits for a PROXY header; nothing was taken from the client
    CONTENT = "content"  # waits for what rules ask about; nothing of it was taken from the client
    QUEUED = "queued"  # waits for a server's slot
    PAUSED = "paused"  # waits before the same server is tried again
    CONNECTING = "connecting"
    ESTABLISHED = "established"
    WAITING = "waiting"  # HTTP: for a request, or the rest of one's head
    EXCHANGING = "exchanging"  # HTTP: the request is on its way to the server, or the response from it
    TARRYING = "tarrying"  # one side is dead, the other still takes what was buffered for it
    CLOSED = "closed"
    POOLED = "pooled"  # of a serial form only: a connection to a server that waits for a request


#: It has no backend yet.
UNDECIDED = frozenset({State.HEADER, State.CONTENT})
# A member of an Enum is slow to look up.
_QUEUED, _CONNECTING, _ESTABLISHED, _CLOSED = State.QUEUED, State.CONNECTING, State.ESTABLISHED, State.CLOSED


class Connection:
    """A client, and its server once there is one."""

    __slots__ = (
        "account_at",
        "accounted_in",
        "accounted_out",
        "address",
        "assigned_at",
        "backend",
        "bucket",
        "cause",
        "client",
        "connected_at",
        "counted",
        "dead",
        "due",
        "entered",
        "frontend",
        "header",
        "number",
        "queue_position",
        "redispatched",
        "retries",
        "route",
        "server",
        "shared",
        "slot",
        "spliced",
        "started",
        "state",
        "target",
        "waiting",
        "worker",
    )

    #: What its sockets are made of.
    client_side: ClassVar[type[Side]] = Side
    server_side: ClassVar[type[Side]] = Side

    def __init__(self, worker: Worker, frontend: LiveFrontend, sock: socket.SocketType, address: Any) -> None:
        now = worker.now
        next_number = worker.next_number  # called as an attribute, no look-up can be specialised
        client_side = frontend.client_side
        self.worker = worker
        self.frontend: LiveFrontend = frontend
        self.backend: LiveBackend = frontend.backend
        self.route: Route = frontend.route
        self.entered: bool = False  # the backend counts us by ourselves, see LiveFrontend.bound
        self.address: Any = address  # the client's, as accept() gave it, or a PROXY header
        self.header: Header | None = None  # the PROXY header with which it began
        self.number: int = next_number()
        self.started: float = now
        self.due: float = now
        self.state = _CONNECTING
        self.client: Side = client_side(worker, self, sock, sock.fileno(), now)
        self.server: Side | None = None
        self.target: LiveServer | None = None  # the server of which we hold a slot
        self.assigned_at: float = -1.0
        self.connected_at: float = -1.0
        self.retries: int = 0  # connection attempts repeated so far
        self.redispatched: bool = False
        self.queue_position: int = 0
        self.cause: str = ""  # HAProxy's termination state once something went wrong
        self.dead: Side | None = None  # the side whose socket failed
        self.account_at = now + _ACCOUNT
        self.accounted_in = self.accounted_out = 0
        self.spliced = 0  # of the bytes not yet accounted, those that went through a pipe
        self.counted = False  # the kernel's counters of its sockets are known to agree with ours
        self.shared = False  # duplicates of its sockets may lie in a park: close(2) alone shows its peers nothing
        self.slot = UNPARKED  # in the book of parked connections, see parking.py
        self.bucket = 0
        self.waiting: Preface | None = None  # who listens to the client, until it is known where it belongs

    @staticmethod
    def log_source(worker: Worker, frontend: LiveFrontend) -> Source:
        """How logs of that frontend read one of these."""
        return connection_source(worker, frontend)

    # -- what balancing asks about; in HTTP mode there are better answers --------------------------------------------

    @property
    def request(self) -> Asked | None:
        """The request that needs a server."""
        return None

    @property
    def pinned(self) -> LiveServer | None:
        """The server that the client's cookie names."""
        return None

    @property
    def waiting_since(self) -> float:
        """When it began to need a server."""
        return self.started

    # -- to a server -------------------------------------------------------------------------------------------------

    def begin(self, first: Callable[[Connection], None]) -> None:
        """Just accepted: watch the client, count, and do what comes first."""
        worker, frontend, client = self.worker, self.frontend, self.client
        client.sock.setblocking(False)
        frontend.opened += 1
        # As count_in().
        worker.connections[self] = None
        sessions = frontend.sessions = frontend.sessions + 1
        if sessions > frontend.peak:
            frontend.peak = sessions
        if not frontend.dirty:
            frontend.dirty = True
            frontend.ledger.dirty.append(frontend)
        fd = client.fd
        worker.handlers[fd] = client.on_event
        try:
            worker.epoll.register(fd, EVENTS)
        except OSError as error:
            text = f"cannot serve a client of {frontend.name}: {_explain(error.errno or errno.EIO)}"
            worker.complain(text, event=Event.CLIENT_FAILED, frontend=frontend.name)
            self.cause = "RC"
            self.close()
            return
        # All who come in one turn go into the same bucket.
        if frontend.bucket_turn != worker.turns:
            frontend.bucket_turn = worker.turns
            frontend.bucket_key, frontend.bucket = worker.wheel.bucket(self.started + self.route.first)
        self.bucket = frontend.bucket_key
        if self.bucket:
            frontend.bucket[self] = None
        first(self)

    def start(self) -> None:
        """Its client is known, as is its backend."""
        backend = self.backend
        only = backend.only
        if only is None or backend.queue:
            self.assign()
            return
        # The common case of assign() and chosen(): without a choice nobody decides by how many are there.
        sessions = only.sessions = only.sessions + 1
        if sessions > only.peak:
            only.peak = sessions
        if not only.dirty:
            only.dirty = True
            only.ledger.dirty.append(only)
        only.opened += 1
        self.target = only
        self.assigned_at = self.worker.now
        self.connect(only)

    def count_in(self) -> None:
        """One session more now."""
        frontend = self.frontend
        self.worker.connections[self] = None
        sessions = frontend.sessions = frontend.sessions + 1
        if sessions > frontend.peak:
            frontend.peak = sessions
        if not frontend.dirty:
            frontend.dirty = True
            frontend.ledger.dirty.append(frontend)

    def enter(self, backend: LiveBackend) -> None:
        """This backend is the one; where a frontend has only one, that need not be said."""
        self.backend = backend
        self.route = self.frontend.route_to(backend)
        if not self.frontend.bound:
            self.entered = True
            backend.opened += 1
            sessions = backend.sessions = backend.sessions + 1
            backend.peak = max(backend.peak, sessions)
            backend.touch()

    def exit(self) -> None:
        """The backend has nothing more to do with us."""
        if self.entered:
            self.entered = False
            self.backend.sessions -= 1
            self.backend.touch()

    def assign(self, avoid: LiveServer | None = None) -> None:
        """Ask balancing for a server; wait if all are full, give up if there is none."""
        backend = self.backend
        target = None if backend.queue and backend.must_wait(self) else backend.choose(self, avoid)
        if target is not None:
            self.connect(target)
        elif backend.usable or backend.home(self) is not None:
            self.state = _QUEUED
            self.due = self.worker.now + self.route.queue
            self.queue_position = backend.enqueue(self)
            self.rearm()
        else:
            backend.row.econ += 1
            backend.row.change()
            self.cause = "SC"
            self.give_up(503)

    def chosen(self, target: LiveServer) -> None:
        """This is the server now."""
        self.target = target
        target.opened += 1
        if target.sessions > target.peak:
            target.peak = target.sessions
        if self.assigned_at < 0.0:
            self.assigned_at = self.worker.now

    def connect(self, target: LiveServer) -> None:
        """Start to connect to the server of which we have a slot; it is another one than before, or the same again."""
        worker = self.worker
        now = worker.now
        if self.target is not target:
            self.chosen(target)
        self.state = _CONNECTING
        self.due = now + self.route.connect
        sock = self.reach(target)
        if sock is None:
            return
        fd = sock.fileno()
        try:
            worker.epoll.register(fd, EVENTS)
        except OSError as failure:
            sock.close()
            self.connect_failed(failure.errno or errno.EIO)
            return
        worker.handlers[fd] = self.on_connecting
        server = self.server = self.server_side(worker, self, sock, fd, now)
        client = server.peer = self.client
        client.peer = server

    def reach(self, target: LiveServer) -> socket.SocketType | None:
        """A socket on its way to the server; None when this attempt has failed at once, which is dealt with."""
        try:
            sock = _Socket(target.family, _STREAM, 0)
        except OSError as failure:
            self.connect_failed(failure.errno or errno.EIO)
            return None
        address = target.address
        if target.inet:
            sock.setsockopt(6, 1, 1)  # IPPROTO_TCP, TCP_NODELAY
            sock.setsockopt(1, 10, 1)  # SOL_SOCKET, SO_OOBINLINE
            # The last ACK of the handshake may wait for the first data, which saves a packet; see on_connecting().
            sock.setsockopt(6, 12, 0)  # IPPROTO_TCP, TCP_QUICKACK
            if target.any_port:
                address = (address[0], self.local_port())
        error = sock.connect_ex(address)
        if error and error != _INPROGRESS:
            sock.close()
            self.connect_failed(error)
            return None
        return sock

    def on_connecting(self, events: int) -> None:
        """The server's socket is connected, or failed to."""
        server = self.server
        assert server is not None
        if events != WRITABLE:
            if events & TROUBLE:
                error = server.sock.getsockopt(_SOL_SOCKET, _SO_ERROR)
                if error:
                    self.connect_failed(error)
                    return
            if not events & WRITABLE:
                return
        worker, client, target = self.worker, self.client, self.target
        assert target is not None
        self.state = _ESTABLISHED
        now = self.connected_at = server.last = worker.now
        worker.handlers[server.fd] = server.on_event
        if target.observer4 is not None:
            target.observer4.passed()
        # Seldom: the first look at a connection comes soon enough, unless connecting went on beyond it.
        if now - self.started >= self.route.first:
            self.rearm()
        client.held = server.held = False
        if target.send_proxy and not self.greet():
            return
        ready = client.ready
        if ready:
            client.ready = 0
            client.on_event(ready | WRITABLE)  # thus it looks like the common event that it mostly is
        elif target.inet:
            # Nothing to send yet: the server may be the one to speak first, so it must learn now that we are connected.
            try:
                server.sock.setsockopt(6, 12, 1)  # IPPROTO_TCP, TCP_QUICKACK
            except OSError:
                pass
        if events & READABLE and self.state is _ESTABLISHED:
            server.on_event(events)

    def greet(self) -> bool:
        """Tell the server first of all who the client is; False if it does not want to hear anything."""
        client, server, target = self.client, self.server, self.target
        assert server is not None and target is not None
        data = build(target.send_proxy, self.source(), self.local())
        try:
            sent = _send(server.sock, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.unwritable(server, error)
            return False
        client.shift += len(data)
        if sent != len(data):
            server.block(memoryview(data)[sent:])
        return True

    def connect_failed(self, error: int, timeout: bool = False) -> None:
        """This attempt has failed: try again as HAProxy would, or give up."""
        worker, target, backend = self.worker, self.target, self.backend
        assert target is not None
        self.drop_server()
        if self.client_left():
            self.abandon()
            return
        row, config = target.row, backend.config
        ours = error in _RESOURCE
        if target.observer is not None and not ours:
            target.observer.failed(L4_ERROR)
        row.change()
        backend.row.change()
        if ours:
            text = f"cannot connect to server {backend.name}/{target.name}: {_explain(error)}"
            worker.complain(text, event=Event.CONNECT_FAILED, backend=backend.name, server=target.name)
        if error in _SCARCE:
            worker.rest()
        if (ours and error not in _SCARCE) or self.retries >= config.retries:
            row.econ += 1
            backend.row.econ += 1
            self.cause = "RC" if ours else "sC" if timeout else "SC"
            self.give_up(503)
            return
        self.retries += 1
        # With the last attempt; at once where neither a hash nor a cookie wants this very server.
        elsewhere = config.redispatch and (self.retries == config.retries or backend.home(self) is None)
        if elsewhere and not ours and any(s is not target for s in backend.usable):
            row.wredis += 1
            backend.row.wredis += 1
            self.redispatched = True
            self.give_slot_back()
            self.assign(target)
            return
        row.wretr += 1
        backend.row.wretr += 1
        self.state = State.PAUSED
        self.due = worker.now + self.route.pause
        self.rearm()

    def give_up(self, status: int) -> None:
        """There is no server to be had; `status` is what an HTTP client is told."""
        self.close()

    def drop_server(self) -> None:
        """Close the server's socket, if there is one, at the end of the turn."""
        server = self.server
        if server is not None:
            worker, client = self.worker, self.client
            if server.copied:
                worker.epoll.unregister(server.fd)
            worker.handlers[server.fd] = ignore
            worker.closing.append(server.sock)
            for side in (client, server):
                side.stop_splicing()
            self.server = None
            server.conn = server.peer = None  # type: ignore[assignment]

    def give_slot_back(self) -> None:
        """The server's slot is free for others."""
        target = self.target
        if target is not None:
            self.target = None
            target.count(-1)
            if target.maxconn:
                self.backend.freed(target)

    def abandon(self) -> None:
        """The client has left before there was a server."""
        self.cause = "CQ" if self.state is State.QUEUED else "CC"
        self.count_abort(True)
        self.close()

    # -- what the sides report ---------------------------------------------------------------------------------------

    def trouble(self, side: Side, events: int) -> None:
        """RDHUP, HUP or ERR on a side that is not being read."""
        if self.state is _ESTABLISHED:
            if side.eof:
                error = side.sock.getsockopt(_SOL_SOCKET, _SO_ERROR)
                if error:
                    self.broken(side, OSError(error, ""))
            return
        if self.state is State.TARRYING:
            return
        if self.backend.config.abortonclose:
            # Not even what the client has sent before may count any more (HAProxy, "option abortonclose").
            self.abandon()
            return
        if not self.client_left():
            return
        if self.state is _CONNECTING and not events & select.EPOLLERR:
            # It may have closed only its half, and want to hear the server: if that one is there, it soon shows.
            self.due = min(self.due, self.worker.now + _GRACE)
            self.rearm()
        else:
            self.abandon()

    def client_left(self) -> bool:
        """Whether the client, while there is no server, has sent FIN without data, or was reset. One that has made a
        request may want its answer still."""
        try:
            left = not self.client.sock.recv(1, socket.MSG_PEEK)
            return left and (self.request is None or self.backend.config.abortonclose)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def at_eof(self, side: Side) -> None:
        """The side has sent FIN, and all before it has been read."""
        peer = side.peer
        if self.dead is not None:
            self.bury(self.dead)
            return
        side.eof = side.held = True
        if peer.blocked:
            return  # the end is passed on behind what waits, see Side.flush()
        if peer.eof and not side.blocked:
            self.close()
            return
        try:
            _shutdown(peer.sock, _SHUT_WR)
        except OSError as error:
            # ENOTCONN: reset meanwhile.
            self.unwritable(peer, error)
            return
        peer.shut = True
        if self.route.fin_nearer:
            self.rearm()

    def finish(self, side: Side) -> None:
        """What was left for this side of an ended peer is written: pass the end on."""
        if self.dead is not None:
            self.settle(side)
        else:
            self.at_eof(side.peer)

    def broken(self, side: Side, error: OSError) -> None:
        """Reading failed: this side is dead, nothing more comes from it or can be written to it."""
        self.blame(side)
        self.bury(side)

    def unwritable(self, side: Side, error: OSError) -> None:
        """Writing failed. What the side said before may still be there to be read; after that it is dead."""
        self.blame(side)
        peer = side.peer
        self.dead = side
        side.shut = True
        side.drop_out()
        side.blocked = False
        peer.stop_splicing()
        peer.held = True
        if side.eof:
            self.bury(side)
        elif not peer.blocked:
            side.resume()

    def bury(self, side: Side) -> None:
        """The side is dead: let the other one have what is buffered for it, then end."""
        peer = side.peer
        self.dead = side
        side.eof = side.shut = side.held = peer.held = True
        side.drop_out()
        side.blocked = False
        peer.stop_splicing()
        if not peer.blocked:
            self.settle(peer)

    def settle(self, side: Side) -> None:
        """This side outlives its dead peer and nothing is left to write to it: reset it, unless the kernel still
        holds bytes for it; those it may take first."""
        unsent = _unsent(side)
        if not unsent:
            try:
                side.sock.setsockopt(_SOL_SOCKET, socket.SO_LINGER, _RESET)
            except OSError:
                pass
        if not unsent or side.eof:
            self.close()
            return
        try:
            if not side.shut:
                side.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        # Closing now, with something from it unread, would send RST at once and cut off what is on its way.
        side.shut = True
        self.state = State.TARRYING
        self.due = self.worker.now + _TARRY
        self.worker.handlers[side.fd] = self.on_tarrying
        self.rearm()
        self.on_tarrying(READABLE)

    def on_tarrying(self, events: int) -> None:
        """Read and discard; the end of it is the end of the connection. One who sends without end is cut off."""
        worker = self.worker
        dead = self.dead
        assert dead is not None
        side = dead.peer
        for _ in range(16):
            try:
                if not side.sock.recv_into(worker.scratch, SCRATCH, socket.MSG_TRUNC):
                    break
            except BlockingIOError:
                return
            except OSError:
                break
        self.close()

    # -- the end -----------------------------------------------------------------------------------------------------

    def blame(self, side: Side) -> None:
        """Note who ended it first."""
        if not self.cause:
            from_client = side is self.client
            self.cause = "CD" if from_client else "SD"
            self.count_abort(from_client)

    def count_abort(self, by_client: bool) -> None:
        rows = [self.frontend.row, self.backend.row]
        if self.target is not None:
            rows.append(self.target.row)
        for row in rows:
            if by_client:
                row.cli_abrt += 1
            else:
                row.srv_abrt += 1
            row.change()

    def account(self) -> None:
        """Enter the bytes of a connection that goes on in the counters, now and then."""
        client, server, frontend, target = self.client, self.server, self.frontend, self.target
        self.account_at = self.worker.now + _ACCOUNT
        came = client.received - self.accounted_in
        went = server.received - self.accounted_out if server is not None else 0
        self.accounted_in += came
        self.accounted_out += went
        spliced = self.spliced
        self.spliced = 0
        for tally in (frontend, target, self.backend if self.entered else None):
            if tally is not None:
                tally.bin += came
                tally.bout += went
                tally.spliced += spliced
                tally.touch()
        if self.slot >= 0:
            self.worker.parking.account(self)

    def close(self) -> None:
        """The end, whatever came before: sockets, pipes, timers, queue places and gauges are given back."""
        if self.state is _CLOSED:
            return
        if self.spliced:
            self.account()
        server, frontend, target = self.server, self.frontend, self.target
        # As account(), for the many that end before it was ever called. leave() sees to the collection.
        came = self.client.received - self.accounted_in
        went = server.received - self.accounted_out if server is not None else 0
        frontend.bin += came
        frontend.bout += went
        if target is not None:
            target.bin += came
            target.bout += went
        if self.entered:
            self.backend.bin += came
            self.backend.bout += went
        access_log = frontend.access_log
        if access_log is not None and (not frontend.config.dontlognull or self.said_something()):
            access_log(self)
        if self.shared:
            self.worker.parking.end(self)
        self.leave()

    def said_something(self) -> bool:
        """Whether the client has, besides a PROXY header."""
        return self.client.received > (self.header.length if self.header is not None else 0)

    def leave(self) -> None:
        """Everything of close() but the accounts: this worker has nothing to do with the connection any more."""
        worker, frontend, client, server, target = self.worker, self.frontend, self.client, self.server, self.target
        if self.state is _QUEUED:
            self.backend.dequeue(self)
        self.state = _CLOSED
        if self.slot != UNPARKED:
            worker.parking.left(self)
        if self.bucket:
            worker.wheel.remove(self)
        handlers, closing = worker.handlers, worker.closing
        # A registration outlives close() wherever a duplicate lives, else close() ends it. The number stays ours until
        # the turn is over, so that no event of this turn meets a new owner.
        fd = client.fd
        if client.copied:
            try:
                worker.epoll.unregister(fd)
            except FileNotFoundError:
                pass  # it was not watched yet
        handlers[fd] = ignore
        closing.append(client.sock)
        if client.pipe is not None:
            client.stop_splicing()
        # No cycles: what is closed is freed at once.
        client.conn = client.peer = None  # type: ignore[assignment]
        self.waiting = None
        if server is not None:
            fd = server.fd
            if server.copied:
                worker.epoll.unregister(fd)
            handlers[fd] = ignore
            closing.append(server.sock)
            if server.pipe is not None:
                server.stop_splicing()
            server.conn = server.peer = None  # type: ignore[assignment]
        if target is not None:
            target.count(-1)
            if target.maxconn:
                self.backend.freed(target)
        if self.entered:
            self.exit()
        frontend.sessions -= 1
        if not frontend.dirty:
            frontend.dirty = True
            worker.ledger.dirty.append(frontend)
        del worker.connections[self]
        if worker.throttled:
            worker.arm_at(frontend)

    # -- parking -----------------------------------------------------------------------------------------------------

    @property
    def since(self) -> float:
        """When what it does now began: its age is what parking goes by."""
        return self.started

    def parkable(self) -> bool:
        """Whether the kernel's counters would tell all that another process had to know of it."""
        return self.state is _ESTABLISHED and self.dead is None

    # -- timers ------------------------------------------------------------------------------------------------------

    def rearm(self) -> None:
        """The deadline may have come nearer."""
        self.worker.wheel.tighten(self)

    def due_of(self, side: Side, limit: float, limit_fin: float) -> float:
        """When a side's inactivity is too long: its clock runs while we wait for it to send or to take something."""
        if not side.blocked and (side.eof or side.peer.blocked):
            return NEVER
        return side.last + (limit_fin if side.eof or side.shut else limit)

    def deadline(self) -> float:
        """When expired() has something to do (the wheel asks)."""
        route, client, server = self.route, self.client, self.server
        if self.state is _ESTABLISHED and server is not None:
            return min(
                self.due_of(client, route.client_open, route.client_fin),
                self.due_of(server, route.server_open, route.server_fin),
            )
        if self.state is State.TARRYING:
            return self.due
        return min(self.due, client.last + route.client)

    def looked_at(self) -> float:
        """As deadline(), when the wheel passes: the time to account for those who never hurry."""
        if self.worker.now >= self.account_at:
            self.account()
        return self.deadline()

    def expired(self) -> None:
        """The deadline has come."""
        try:
            self._expired()
        except Exception:
            self.worker.crashed(self)

    def _expired(self) -> None:
        now, route, state, backend = self.worker.now, self.route, self.state, self.backend
        server = self.server
        if state is _ESTABLISHED and server is not None:
            by_client = self.due_of(self.client, route.client_open, route.client_fin) <= now
            if not self.cause:
                self.cause = "cD" if by_client else "sD"
                self.count_abort(by_client)
            self.close()
        elif state is State.TARRYING:
            self.close()
        elif self.waiting is not None:
            self.waiting.expired()
        elif self.due > now:
            self.cause = "cQ" if state is State.QUEUED else "cC"
            self.count_abort(True)
            self.close()
        elif state is State.PAUSED:
            assert self.target is not None
            self.connect(self.target)
            if self.state is not _CLOSED:
                self.rearm()
        elif state is State.QUEUED:
            backend.row.econ += 1
            backend.row.qtimeout += 1
            backend.row.change()
            self.cause = "sQ"
            self.give_up(503)
        else:
            self.connect_failed(errno.ETIMEDOUT, timeout=True)

    # -- addresses ---------------------------------------------------------------------------------------------------

    def local_port(self) -> int:
        """The port that the client connected to, 0 for a unix socket."""
        local = self.local()
        return local[1] if local is not None else 0

    def local(self) -> tuple[str, int] | None:
        """Where the client connected to, None for a unix socket."""
        header = self.header
        if header is not None and header.destination is not None:
            return header.destination if isinstance(header.destination, tuple) else None
        try:
            name = self.client.sock.getsockname()
        except OSError:
            return None
        return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None

    def source(self) -> tuple[str, int] | None:
        """Where the client connected from, None for a unix socket."""
        address = self.address
        return (str(address[0]), int(address[1])) if isinstance(address, tuple) else None

    def source_key(self) -> bytes:
        """The client's address as `balance source` hashes it; all clients of unix sockets are one."""
        address = self.address
        if not isinstance(address, tuple):
            return b""
        host = str(address[0]).partition("%")[0].removeprefix("::ffff:")
        return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)


def _unsent(side: Side) -> int:
    """Bytes that the kernel has not yet got across (SIOCOUTQ, tcp(7)); 0 if it will not tell."""
    try:
        (size,) = struct.unpack("i", fcntl.ioctl(side.fd, termios.TIOCOUTQ, b"\0\0\0\0"))
    except OSError:
        return 0
    # A FIN that was not yet acknowledged counts as one.
    return int(size) - 1 if side.shut and size else int(size)


def _explain(error: int) -> str:
    if error == errno.EADDRNOTAVAIL:
        return "no local port is left for its address (net.ipv4.ip_local_port_range)"
    if error == errno.EMFILE:
        return "too many open files (LimitNOFILE=, maxconn)"
    if error == errno.ENOSPC:
        return "too many descriptors are watched (fs.epoll.max_user_watches)"
    return os.strerror(error)
