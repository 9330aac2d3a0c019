"""The data plane of HTTP: one socket whose bytes are messages. What they mean is the connection's affair
(connection.py); bulky bodies go through a pipe as with TCP.

This is the hot path, as relay.py is.
"""

from __future__ import annotations

import os
import select
import socket
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from hitlessd.http.body import Body
from hitlessd.http.grammar import LENGTH, NONE
from hitlessd.worker.connection import State
from hitlessd.worker.http.pool import Pool
from hitlessd.worker.relay import READABLE, SCRATCH, TROUBLE, TURN, WRITABLE, Side

if TYPE_CHECKING:
    from hitlessd.worker.http.connection import HttpConnection
    from hitlessd.worker.loop import Worker

__all__ = ["NOTHING", "WHOLE", "HttpSide", "own"]

#: A short recv means "drained", except when one of these was seen.
_MORE = select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLHUP | select.EPOLLERR
_recv_into = socket.SocketType.recv_into
_BULKY = 16 << 10
_BULKY_IN_A_ROW = 3
#: What is left of a body must be worth a pipe.
_WORTH = 256 << 10
#: Of messages without a body; there is nothing in it that could change. And of one whose body came with its head.
NOTHING, WHOLE = Body(NONE), Body(LENGTH)
_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


def own(method: Any) -> Any:
    """A copy of a method, with code of its own, for a class that is not the only one to inherit it.

    CPython 3.11 and later specialise code for the class that it meets; where clients' and servers' sides took turns in
    one constructor, half of its stores were slow, and each side took 0.45 us to make instead of 0.25.
    """
    return FunctionType(method.__code__.replace(), method.__globals__, method.__name__, method.__defaults__)


class HttpSide(Side):
    """One socket of an HTTP connection. `peer` is None while there is no exchange."""

    __slots__ = ("asked", "body", "pool", "shared", "tunnel", "uses")

    conn: Any  # an HttpConnection; None while it rests in the pool

    def __init__(self, worker: Worker, conn: HttpConnection, sock: socket.SocketType, fd: int, now: float) -> None:
        # What Side.__init__() says, spelt out: to call it takes a tenth of what a connection's objects cost.
        self.worker = worker
        self.conn = conn
        self.sock = sock
        self.fd = fd
        self.last = now
        self.peer = self.pipe = self.out = None  # type: ignore[assignment]
        self.held = True
        self.ready = self.received = self.shift = self.bulky = self.mark = 0
        self.eof = self.blocked = self.shut = self.copied = False
        self.kept = -1
        self.body: Body = NOTHING  # of the message that comes from here; NOTHING: none, or its head comes first
        self.pool: Pool | None = None  # of a server: where it rests
        self.uses = 0  # exchanges on it, ever
        self.asked = 0  # the turn in which it was taken from the pool
        self.shared = False  # of a server: a duplicate of its socket may lie in a park
        self.tunnel = False  # no messages any more: bytes

    @classmethod
    def idle(cls, worker: Worker, sock: socket.SocketType, uses: int) -> HttpSide:
        """A server's that has no connection of ours to serve."""
        sock.setblocking(False)
        side = cls(worker, None, sock, sock.fileno(), worker.now)  # type: ignore[arg-type]
        side.uses = uses
        return side

    @property
    def partner(self) -> HttpSide:
        """The other side, during an exchange."""
        return cast(HttpSide, self.peer)

    def on_event(self, events: int) -> None:
        if self.conn is None:
            # In the pool: whatever comes, there is no request that it could belong to.
            if events & READABLE and self.pool is not None:
                self.pool.drop(self)
            return
        if self.tunnel:
            Side.on_event(self, events)
            return
        if self.asked == self.worker.turns and events & READABLE:
            self.conn.unasked(self)
            return
        if self.blocked and events & WRITABLE:
            self.flush()
            if self.conn is None:
                return
        if self.held:
            self.ready |= events & READABLE
            if events & TROUBLE:
                self.conn.trouble(self, events)
        elif events & READABLE:
            self.read(events)

    def read(self, events: int) -> None:
        """Take what has come, until the socket is drained, the message is over, or the turn."""
        if self.tunnel:
            Side.read(self, events)
            return
        worker, conn = self.worker, self.conn
        moved = 0
        while True:
            if self.pipe is not None or (self.bulky >= _BULKY_IN_A_ROW and self.body.raw > _WORTH):
                self.splice(events)
                return
            if self.mark:
                self.label()
            try:
                size = _recv_into(self.sock, worker.scratch)
            except BlockingIOError:
                return
            except OSError as error:
                conn.broken(self, error)
                return
            if not size:
                conn.at_eof(self)
                return
            self.received += size
            self.last = worker.now
            self.bulky = self.bulky + 1 if size >= _BULKY else 0
            more = size == SCRATCH or events & _MORE
            if more:
                # Should the message end here, the next one, or the end, waits in the socket.
                self.ready |= events & _MORE | select.EPOLLIN
            conn.take(self, size)
            if not more or self.held or self.conn is not conn:
                return
            if conn.tunnel:
                self.resume()
                return
            self.ready = 0
            moved += size
            if worker.now >= conn.account_at:
                conn.account()
            if moved >= TURN:
                self.again(events)
                return

    def spliceable(self) -> int:
        return TURN if self.tunnel else min(self.body.raw, TURN)

    def passed(self, size: int) -> None:
        if not self.tunnel:
            self.body.skip(size)
            self.conn.relayed(self, size)

    def spliced_out(self, events: int) -> None:
        if self.tunnel or not self.body.done:
            super().spliced_out(events)
        else:
            self.ready |= events & _MORE | select.EPOLLIN
            self.conn.message_done(self)

    def release(self) -> None:
        """Read on, if there is something to read: unlike resume(), not in vain."""
        self.held = False
        events = self.ready
        if events:
            self.ready = 0
            self.on_event(events)

    def resume(self) -> None:
        conn = self.conn
        if conn is None or self.eof or (self.peer is not None and self.peer.blocked):
            return
        if conn.state is not State.EXCHANGING and not self.tunnel:
            conn.go_on()
            return
        self.held = False
        events = self.ready | select.EPOLLIN
        self.ready = 0
        self.on_event(events)

    def block(self, rest: memoryview | None) -> None:
        if rest is not None:
            mark = self.peer.mark if self.peer is not None else 0
            self.out = self.worker.parking.keep(self, rest) if mark else bytes(rest)
        self.blocked = True
        if self.peer is not None:
            self.peer.held = True
            if rest is None:
                # What a splice leaves in the socket makes no new event.
                self.peer.ready |= select.EPOLLIN
        self.conn.rearm()

    def flush(self) -> None:
        """Write what waits; the connection decides what comes then."""
        if self.tunnel:
            Side.flush(self)
            return
        conn, peer = self.conn, self.peer
        try:
            out = self.out
            if out is not None:
                sent = self.sock.send(out)
                self.last = self.worker.now
                if sent < len(out):
                    self.out = memoryview(out)[sent:]
                    return
                self.drop_out()
            pipe = peer.pipe if peer is not None else None
            while pipe is not None and pipe.fill:
                pipe.fill -= os.splice(pipe.reader, self.fd, pipe.fill, flags=_SPLICE_FLAGS)
                self.last = self.worker.now
        except BlockingIOError:
            return
        except OSError as error:
            conn.unwritable(self, error)
            return
        self.blocked = False
        conn.flushed(self)
