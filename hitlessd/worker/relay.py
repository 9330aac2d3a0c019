"""The data plane: one socket of a connection, and how what it sends reaches its peer.

Small flows: recv, send at once, keep only what did not go out and stop reading until it has. Bulky flows: os.splice
through a pooled pipe. Sockets are registered once, edge-triggered, so every reader here goes on until the socket is
known to be drained, or asks for another turn. Decisions follow from what recv, send and SO_ERROR say, never from
EPOLLHUP or EPOLLERR alone.

This is the hot path: attributes are slots, straight-line code comes before helpers.
"""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING

from hitlessd.parking.book import BLOCK, LABEL_AT, LABEL_MARK
from hitlessd.worker.pipes import Pipe

if TYPE_CHECKING:
    from hitlessd.worker.connection import Connection
    from hitlessd.worker.loop import Worker

__all__ = ["EVENTS", "READABLE", "SCRATCH", "TROUBLE", "TURN", "WRITABLE", "Side", "ignore"]

READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLHUP | select.EPOLLERR
WRITABLE = select.EPOLLOUT
TROUBLE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
#: The one registration of a connection's socket.
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
#: A short recv means "drained", except when one of these was seen: data may end at an urgent mark or before a FIN.
_MORE = select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLHUP | select.EPOLLERR
_URGENT = select.EPOLLPRI

#: The mask of most events: there are bytes, and room for more.
_PLAIN = select.EPOLLIN | select.EPOLLOUT
#: Those of the end of most flows: a FIN, and what may come before it.
_LAST = frozenset(
    select.EPOLLIN | select.EPOLLRDHUP | more
    for more in (0, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLOUT | select.EPOLLHUP)
)
#: Looked up once, for accepted sockets are of a derived class, and a look-up that meets two classes is a slow one.
_recv_into = socket.SocketType.recv_into
_send = socket.SocketType.send
_UNIX, _MSG_MORE = int(socket.AF_UNIX), int(socket.MSG_MORE)

#: Bytes of one recv, and thus the most that is ever kept for a slow reader.
SCRATCH = BLOCK
#: Bytes one direction may move in one turn; others wait meanwhile.
TURN = 512 << 10
#: A recv of at least this much counts as bulky; so many in a row turn to splice.
_BULKY = 16 << 10
_BULKY_IN_A_ROW = 3
#: Where `bulky` begins again after there was no pipe: ask for one every few MiB.
_NO_PIPE = -64
_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


def ignore(events: int) -> None:
    """The handler of a descriptor that is no longer watched; an event of this turn may still name it."""


class Side:
    """One socket of a connection. `peer` is the other one; a direction's state is kept by the side it comes from,
    what waits to be written by the side it goes to."""

    __slots__ = (
        "blocked",
        "bulky",
        "conn",
        "copied",
        "eof",
        "fd",
        "held",
        "kept",
        "last",
        "mark",
        "out",
        "peer",
        "pipe",
        "ready",
        "received",
        "shift",
        "shut",
        "sock",
        "worker",
    )

    def __init__(self, worker: Worker, conn: Connection, sock: socket.SocketType, fd: int, now: float) -> None:
        self.worker = worker
        self.conn = conn
        self.sock = sock
        self.fd = fd
        self.last = now  # when it last sent or took a byte
        self.peer: Side  # set as soon as there is one
        self.held = True  # not to be read now: no peer yet, its peer is blocked, or it has sent everything
        self.ready = 0  # events seen while held
        self.received = 0  # bytes read from it, ever
        # Bytes written to the peer, less bytes read from here, once everything is passed on: what was added on the way,
        # less what was taken out. 0 for a plain relay. Who changes it after the connection was parked tells the book,
        # see Parking.shifted().
        self.shift = 0
        self.bulky = 0  # bulky reads in a row; _BULKY_IN_A_ROW and more: splice
        self.pipe: Pipe | None = None  # from here to the peer
        self.eof = False  # it has sent FIN (or is dead)
        self.out: bytes | memoryview | None = None  # read from the peer, not yet written here
        self.kept = -1  # the book's block that `out` lies in, if any
        self.mark = 0  # what names the direction from here in the book, once the connection is parked
        self.blocked = False  # something waits to be written here: `out` or the peer's pipe
        self.shut = False  # FIN was sent (or it is dead)
        # Duplicates of the socket may be somewhere: then closing it leaves it in epoll.
        self.copied = False

    @property
    def live(self) -> bool:
        """False once its connection is closed."""
        return self.conn is not None

    def on_event(self, events: int) -> None:
        """epoll has something to say."""
        if self.blocked and events & WRITABLE:
            self.flush()
            if not self.live:
                return
        if self.held:
            self.ready |= events & READABLE
            if events & TROUBLE:
                self.conn.trouble(self, events)
            return
        if events != _PLAIN or self.bulky >= _BULKY_IN_A_ROW:
            if events in _LAST and self.bulky < _BULKY_IN_A_ROW:
                self.read_last(events)
            else:
                self.read(events)
            return
        # The common case, spelt out: some bytes that fit into one recv, and nothing else to know about the socket.
        worker = self.worker
        view, received, mark = worker.view, self.received, self.mark
        if mark:
            # Should we die before they are sent, whoever goes on finds them in the scratch.
            words = worker.words
            words[LABEL_MARK] = mark
            words[LABEL_AT] = received
        try:
            size = _recv_into(self.sock, view)
        except BlockingIOError:
            return
        except OSError as error:
            self.conn.broken(self, error)
            return
        if size >= _BULKY:
            self.read_on(events, size)
            return
        if not size:
            self.conn.at_eof(self)
            return
        self.bulky = 0
        self.received = received + size
        peer = self.peer
        self.last = peer.last = worker.now
        try:
            sent = _send(peer.sock, view[:size])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.conn.unwritable(peer, error)
            return
        if sent != size:
            peer.block(view[sent:size])

    def label(self) -> None:
        """Say in the book whose bytes come to the scratch next."""
        words = self.worker.words
        words[LABEL_MARK] = self.mark
        words[LABEL_AT] = self.received

    def read_last(self, events: int) -> None:
        """The other end has said all: what is left mostly fits into one recv, and behind it nothing comes."""
        worker = self.worker
        if self.mark:
            self.label()
        try:
            size = _recv_into(self.sock, worker.scratch)
        except BlockingIOError:
            return
        except OSError as error:
            self.conn.broken(self, error)
            return
        if not size:
            self.conn.at_eof(self)
            return
        if size >= _BULKY or self.sock.family == _UNIX:
            self.read_on(events, size)
            return
        self.received += size
        peer = self.peer
        self.last = peer.last = worker.now
        try:
            # The FIN's segment may as well carry the data.
            sent = _send(peer.sock, worker.view[:size], _MSG_MORE)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.conn.unwritable(peer, error)
            return
        if sent != size:
            self.ready |= events & _MORE
            peer.block(worker.view[sent:size])
            return
        # TCP's recv is short only at the end or at an urgent mark. With the FIN here no such mark comes any more, and
        # one that had been there would have shown as EPOLLPRI. (A unix socket's is short at descriptors, too.) To
        # know it without another recv saves 2 % of a short connection.
        self.conn.at_eof(self)

    def read(self, events: int) -> None:
        """Something may have come, in whatever way."""
        if not events & READABLE:
            return
        if self.bulky >= _BULKY_IN_A_ROW:
            self.splice(events)
            return
        if self.mark:
            self.label()
        try:
            size = _recv_into(self.sock, self.worker.scratch)
        except BlockingIOError:
            return
        except OSError as error:
            self.conn.broken(self, error)
            return
        if size:
            self.read_on(events, size)
        else:
            self.conn.at_eof(self)

    def read_on(self, events: int, size: int) -> None:
        """A recv of `size` bytes may not have drained the socket: go on until it has, or the turn ends."""
        worker, conn, peer, sock = self.worker, self.conn, self.peer, self.sock
        more = events & _MORE
        # A FIN is there already: its segment may as well carry the data.
        flags = socket.MSG_MORE if events & select.EPOLLRDHUP else 0
        self.last = peer.last = worker.now
        if worker.now >= conn.account_at:
            conn.account()
        moved = 0
        while True:
            self.received += size
            moved += size
            self.bulky = self.bulky + 1 if size >= _BULKY else 0
            try:
                sent = _send(peer.sock, worker.view[:size], flags)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                conn.unwritable(peer, error)
                return
            if sent != size:
                self.ready |= more
                peer.block(worker.view[sent:size])
                return
            if size < SCRATCH and not more:
                return
            if self.bulky >= _BULKY_IN_A_ROW and not events & _URGENT:
                self.splice(events)
                return
            if moved >= TURN:
                self.again(events)
                return
            if self.mark:
                self.label()
            try:
                size = _recv_into(sock, worker.scratch)
            except BlockingIOError:
                return
            except OSError as error:
                conn.broken(self, error)
                return
            if not size:
                conn.at_eof(self)
                return

    def splice(self, events: int) -> None:
        """Move what the socket has through a pipe, without its entering this process."""
        worker, conn, peer, pipe = self.worker, self.conn, self.peer, self.pipe
        urgent = events & _URGENT  # a mark lies ahead, where splice stops
        if pipe is None:
            pipe = self.pipe = worker.pipes.take()
            if pipe is None:
                # No pipe to be had: as a small flow, and ask again later.
                self.bulky = _NO_PIPE
                self.again(events)
                return
            if pipe.place >= 0:
                worker.words[worker.parking.owners_at + pipe.place] = pipe.stamp | self.mark
        now = self.last = worker.now
        if now >= conn.account_at:
            conn.account()
        fd, peer_fd, moved = self.fd, peer.fd, 0
        while True:
            held_before = pipe.fill
            most = self.spliceable()
            try:
                # Behind a message's end nothing may be read, but what the pipe holds has to go on.
                size = os.splice(fd, pipe.writer, most, flags=_SPLICE_FLAGS) if most else -1
            except BlockingIOError:
                # With bytes in the pipe this says nothing about the socket: all slots of the pipe may be in use.
                if not held_before:
                    break
                size = -1
            except OSError as error:
                self.stop_splicing()
                conn.broken(self, error)
                return
            if size > 0:
                pipe.fill += size
                self.received += size
                conn.spliced += size
                moved += size
                self.passed(size)
            elif not held_before:
                self.stop_splicing()
                self.bulky = 0
                self.spliced_out(events)
                return
            try:
                pipe.fill -= os.splice(pipe.reader, peer_fd, pipe.fill, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                self.ready |= urgent
                peer.block(None)
                return
            except OSError as error:
                self.stop_splicing()
                conn.unwritable(peer, error)
                return
            peer.last = now
            if moved >= TURN:
                self.again(events)
                return
        # Drained, or at an urgent mark. Others may have the pipe until more comes.
        self.stop_splicing()
        if 0 < moved < _BULKY:
            # The end of a burst, or of the flow's being bulky: the next recv tells.
            self.bulky = _BULKY_IN_A_ROW - 1
        if urgent:
            self.bulky = 0
            self.on_event(events | _URGENT)

    def spliceable(self) -> int:
        """How many bytes may pass unseen now."""
        return TURN

    def passed(self, size: int) -> None:
        """So many have."""

    def spliced_out(self, events: int) -> None:
        """There is no more to splice: the end, or an urgent mark with a FIN somewhere behind it. Only recv knows."""
        self.on_event(events | _URGENT)

    def stop_splicing(self) -> None:
        """Give the pipe back; what may lie in it is lost."""
        pipe = self.pipe
        if pipe is not None:
            self.pipe = None
            self.worker.pipes.give(pipe)

    def again(self, events: int) -> None:
        """This turn's share is used up: go on in the next one."""
        self.ready |= events & READABLE | select.EPOLLIN
        self.held = True
        self.worker.ready.append(self)

    def resume(self) -> None:
        """Read again what was left while held; anything may have come meanwhile."""
        if not self.live or self.eof or self.peer.blocked:
            return
        self.held = False
        events = self.ready | select.EPOLLIN
        self.ready = 0
        self.on_event(events)

    def block(self, rest: memoryview | None) -> None:
        """This socket takes no more now: keep the rest of what was read (None: it lies in the peer's pipe) and stop
        reading the peer."""
        if rest is not None:
            self.out = bytes(rest) if not self.peer.mark else self.worker.parking.keep(self, rest)
        self.blocked = True
        self.peer.held = True
        self.conn.rearm()

    def drop_out(self) -> None:
        """Nothing waits to be written here any more, but what may lie in the peer's pipe."""
        self.out = None
        if self.kept >= 0:
            self.worker.parking.release(self)

    def flush(self) -> None:
        """Write what waits; when all is out, read the peer again or send the FIN that was due."""
        worker, conn, peer = self.worker, self.conn, self.peer
        now = worker.now
        try:
            out = self.out
            if out is not None:
                sent = self.sock.send(out)
                self.last = now
                if sent < len(out):
                    self.out = memoryview(out)[sent:]
                    return
                self.drop_out()
            pipe = peer.pipe
            while pipe is not None and pipe.fill:
                pipe.fill -= os.splice(pipe.reader, self.fd, pipe.fill, flags=_SPLICE_FLAGS)
                self.last = now
        except BlockingIOError:
            return
        except OSError as error:
            conn.unwritable(self, error)
            return
        self.blocked = False
        if peer.eof:
            conn.finish(self)
        else:
            # Its clock stood still while we did not read it.
            peer.last = now
            conn.rearm()
            peer.resume()
