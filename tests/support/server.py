"""The engine of the load generator's backend: an epoll loop that checks and answers requests, and can misbehave."""

import contextlib
import heapq
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Final

from tests.support import exchange as wire
from tests.support.processes import format_address, parse_address

FAULTS: Final = ("corrupt", "short", "excess", "reset", "stall", "wrong")
"""corrupt: a byte of the answer is altered. short: the answer ends one byte early. excess: it has one byte too many.
reset: the connection is reset in the middle of the answer. stall: there is no answer. wrong: to another request."""

MODES: Final = ("exchange", "echo", "sink", "silent")
"""exchange: what the load generator speaks. echo: bytes come back as they are. sink: bytes are dropped.
silent: nothing is ever read or written."""

_BUFFER: Final = 1 << 18
_GONE: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_EDGE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_STALLED: Final = -1
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Counters:
    """What a server has seen since it started.

    `clean` connections ended in order in both directions, `empty` ones too but without a request; `short` ones ended
    in the middle of a request, `reset` ones by a reset, and in `corrupt` ones something came that was not sent.
    """

    __slots__ = ("bytes_in", "bytes_out", "clean", "connections", "corrupt", "empty", "requests", "reset", "short")

    def __init__(self) -> None:
        self.connections = self.requests = 0
        self.clean = self.empty = self.corrupt = self.reset = self.short = 0
        self.bytes_in = self.bytes_out = 0

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


class _Connection:
    """One accepted connection, by descriptor: socket objects would cost more than the exchange itself."""

    __slots__ = (
        "answered",
        "close",
        "closing",
        "end_seen",
        "family",
        "fault",
        "fd",
        "held",
        "ident",
        "kind",
        "left",
        "length",
        "out",
        "place",
        "rest",
        "send_left",
        "send_place",
        "tag",
        "watching",
    )

    def __init__(self, fd: int, family: int, tag: bytes) -> None:
        self.fd = fd
        self.family = family
        self.tag = tag
        self.watching = False  # for room to write
        self.rest = b""  # received, not yet served
        self.out: memoryview | None = None  # to be written
        self.send_left = self.send_place = 0  # what sendfile() has still to send, and from where in the cycle
        self.kind = 0  # of the request that is being served; 0 between requests
        self.close = self.ident = self.length = 0  # from its header
        self.left = self.place = 0  # bytes of the request that are still to come, and where in the cycle they are
        self.fault = False  # this request is to be served badly
        self.held = False  # the answer waits for its time
        self.end_seen = False  # the client has closed its side
        self.closing = False  # our side is closed
        self.answered = False  # there was a request on this connection


class Server:
    """Listeners and their connections. run() serves until stop(), which any thread or signal handler may call."""

    def __init__(
        self,
        listen: Sequence[str] = ("127.0.0.1:0",),
        *,
        mode: str = "exchange",
        tags: Sequence[int] = (),
        fault: str | None = None,
        fault_every: int = 1,
        backlog: int = 4096,
    ) -> None:
        """Open the listeners; OSError. Every `fault_every`-th request gets the fault.

        `tags`: a number for each listener that its answers carry, by default its place in the list.
        """
        if mode not in MODES or (fault is not None and fault not in FAULTS):
            raise ValueError(f"cannot serve: unknown mode {mode!r} or fault {fault!r}")
        self.counters = Counters()
        self.addresses: list[str] = []
        self._mode = mode
        self._fault = fault
        self._fault_every = fault_every
        self._listeners: dict[int, tuple[socket.socket, int, bytes]] = {}
        self._connections: dict[int, _Connection] = {}
        self._timers: list[tuple[float, int, _Connection]] = []
        self._stopping = False
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._cycle = os.memfd_create("cycle", os.MFD_CLOEXEC)
        os.write(self._cycle, wire.ANSWERED)
        for index, text in enumerate(listen):
            self._listen(text, tags[index] if index < len(tags) else index, backlog)

    def _listen(self, text: str, tag: int, backlog: int) -> None:
        family, address = parse_address(text)
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if family != socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif isinstance(address, str):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)
        listener.bind(address)
        listener.listen(backlog)
        self._listeners[listener.fileno()] = (listener, family, wire.pack_tag(tag))
        self._epoll.register(listener, select.EPOLLIN)
        self.addresses.append(format_address(family, listener.getsockname()))

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def stop(self) -> None:
        """Make run() return soon; nothing after close(), as a signal may come at any time."""
        self._stopping = True
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Close everything. Not while run() runs."""
        for fd in self._connections:
            os.close(fd)
        self._connections.clear()
        for listener, family, _ in self._listeners.values():
            name = listener.getsockname()
            listener.close()
            if family == socket.AF_UNIX and isinstance(name, str) and name:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        self._listeners.clear()
        self._epoll.close()
        wake, self._wake = self._wake, -1
        os.close(wake)
        os.close(self._cycle)

    def run(self) -> None:
        """Serve until stop()."""
        connections, listeners, timers, poll = self._connections, self._listeners, self._timers, self._epoll.poll
        while not self._stopping:
            for fd, mask in poll(max(0.0, timers[0][0] - time.monotonic()) if timers else -1, 512):
                connection = connections.get(fd)
                if connection is not None:
                    try:
                        self._serve(connection, mask)
                    except (ConnectionError, TimeoutError):
                        self.counters.reset += 1
                        self._drop(connection)
                elif fd in listeners:
                    self._accept(*listeners[fd])
            while timers and timers[0][0] <= time.monotonic():
                self._release(heapq.heappop(timers)[2])

    # One connection

    def _accept(self, listener: socket.socket, family: int, tag: bytes) -> None:
        for _ in range(64):
            try:
                # The private _accept() is accept4() without building a socket object around the descriptor.
                fd, _ = listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            os.set_blocking(fd, False)
            self.counters.connections += 1
            self._connections[fd] = _Connection(fd, family, tag)
            self._epoll.register(fd, _EDGE)

    def _drop(self, connection: _Connection) -> None:
        if self._connections.get(connection.fd) is connection:
            del self._connections[connection.fd]
            os.close(connection.fd)

    def _serve(self, connection: _Connection, mask: int) -> None:
        """Something happened to the socket: write what waits, then read what there is."""
        if self._mode == "silent":
            if mask & select.EPOLLHUP:
                self._drop(connection)
            return
        if connection.out is not None or connection.send_left:
            self._flush(connection)
        fd, connections, counters = connection.fd, self._connections, self.counters
        # While an answer does not go out nothing more is read, so that the peer feels it.
        while connection.out is None and not connection.end_seen and connections.get(fd) is connection:
            try:
                data = os.read(fd, _BUFFER)
            except BlockingIOError:
                return
            if not data:
                connection.end_seen = True
                self._ended(connection)
                return
            counters.bytes_in += len(data)
            self._received(connection, data)
            if len(data) < _BUFFER and not mask & _GONE:
                return

    def _received(self, connection: _Connection, data: bytes) -> None:
        kind = connection.kind
        if self._mode != "exchange":
            if self._mode == "echo":
                self._write(connection, data)
        elif kind == _STALLED:
            return
        elif connection.closing:
            self._reject(connection)
        elif kind == 0 or kind == wire.EXCHANGE:
            connection.rest = connection.rest + data if connection.rest else data
            self._requests(connection)
        elif kind == wire.STREAM:
            self._streamed(connection, data)
        else:
            self._uploaded(connection, data)

    def _ended(self, connection: _Connection) -> None:
        """The client has closed its side; an answer that is still on its way is finished first."""
        if connection.kind == wire.EXCHANGE and not connection.held:
            self._requests(connection)  # it may have waited for this
        if connection.held or connection.out is not None or connection.send_left or connection.kind == _STALLED:
            return
        if connection.rest or connection.kind not in (0, wire.STREAM):
            self.counters.short += 1
        elif self._mode == "exchange" and not connection.answered:
            self.counters.empty += 1
        elif self._connections.get(connection.fd) is connection:
            self.counters.clean += 1
        self._drop(connection)

    def _reject(self, connection: _Connection) -> None:
        """What came is not what was sent: say so if possible, and give up."""
        self.counters.corrupt += 1
        with contextlib.suppress(OSError):
            os.write(connection.fd, wire.pack_answer_head(wire.BAD_REQUEST, 0, 0, connection.ident) + connection.tag)
        self._drop(connection)

    # Requests and answers

    def _requests(self, connection: _Connection) -> None:
        """Serve what lies in `rest`, one request after the other."""
        while len(connection.rest) >= wire.REQUEST_SIZE and connection.out is None and not connection.held:
            if not connection.kind and not self._begin(connection):
                return
            end = wire.REQUEST_SIZE + connection.length
            if len(connection.rest) < end or (connection.close == wire.CLOSE_HALF and not connection.end_seen):
                return
            body, connection.rest = connection.rest[wire.REQUEST_SIZE : end], connection.rest[end:]
            if not wire.ASKED.startswith(body, connection.place):
                self._reject(connection)
                return
            head = wire.pack_answer_head(wire.OK, wire.EXCHANGE, connection.length, connection.ident)
            self._answer(connection, head + connection.tag + body.translate(wire.SUBSTITUTION))

    def _begin(self, connection: _Connection) -> bool:
        """Read a request's header. Whether its body is to be looked at now."""
        head = wire.unpack_request(connection.rest)
        if head is None:
            self._reject(connection)
            return False
        connection.kind, connection.close, delay, connection.length, connection.ident = head
        connection.place = wire.position(connection.ident)
        connection.answered = True
        self.counters.requests += 1
        if self._fault is not None:
            connection.fault = self.counters.requests % self._fault_every == 0
        if connection.kind != wire.EXCHANGE:
            self._begin_flow(connection)
            return False
        if delay:
            connection.held = True
            heapq.heappush(self._timers, (time.monotonic() + delay / 1000, connection.ident, connection))
            return False
        return True

    def _release(self, connection: _Connection) -> None:
        """The time of a delayed answer has come."""
        if self._connections.get(connection.fd) is not connection:
            return
        connection.held = False
        try:
            self._requests(connection)
            if connection.end_seen:
                self._ended(connection)
        except (ConnectionError, TimeoutError):
            self.counters.reset += 1
            self._drop(connection)

    def _answer(self, connection: _Connection, data: bytes) -> None:
        if connection.fault:
            self._spoil(connection, data)
            return
        if self._write(connection, data):
            self._answered(connection)

    def _answered(self, connection: _Connection) -> None:
        """An answer has gone out in full: close, or be ready for the next request."""
        connection.kind = 0
        if connection.close == wire.CLOSE_PLAIN:
            self.counters.clean += 1
            self._drop(connection)
        elif connection.close == wire.CLOSE_SERVER and not connection.end_seen:
            connection.closing = True
            sock = self._socket(connection)
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                # ENOTCONN: reset since we wrote.
                raise ConnectionResetError(*error.args) from None
            finally:
                sock.detach()

    # Long flows

    def _begin_flow(self, connection: _Connection) -> None:
        data, connection.rest = connection.rest[wire.REQUEST_SIZE :], b""
        if connection.kind in (wire.UP, wire.BOTH):
            connection.left = connection.length
        if connection.kind != wire.UP:
            head = wire.pack_answer_head(wire.OK, connection.kind, connection.length, connection.ident) + connection.tag
            if connection.fault and connection.kind == wire.DOWN:
                self._spoil(connection, head)
                return
            self._write(connection, head)
        if connection.kind in (wire.DOWN, wire.BOTH):
            connection.send_left, connection.send_place = connection.length, connection.place
            self._flush(connection)
        if data and self._connections.get(connection.fd) is connection:
            self._received(connection, data)

    def _matches(self, connection: _Connection, data: bytes) -> bool:
        """Whether `data` is what comes next in the cycle; moves on."""
        place = connection.place
        connection.place = (place + len(data)) & (wire.CYCLE - 1)
        return wire.ASKED.startswith(data, place)

    def _streamed(self, connection: _Connection, data: bytes) -> None:
        if not self._matches(connection, data):
            self._reject(connection)
        elif connection.fault:
            self._spoil(connection, data.translate(wire.SUBSTITUTION))
        else:
            self._write(connection, data.translate(wire.SUBSTITUTION))

    def _uploaded(self, connection: _Connection, data: bytes) -> None:
        if len(data) > connection.left or not self._matches(connection, data):
            self._reject(connection)
            return
        connection.left -= len(data)
        self._flow_done(connection)

    def _flow_done(self, connection: _Connection) -> None:
        """Confirm and close a transfer if both directions are through."""
        if connection.left or connection.send_left or connection.out is not None:
            return
        kind, connection.kind = connection.kind, 0
        if kind == wire.DOWN:
            self._answered(connection)
        else:
            self._answer(connection, wire.pack_answer_head(wire.OK, kind, 0, connection.ident) + connection.tag)

    # Writing

    def _socket(self, connection: _Connection) -> socket.socket:
        return socket.socket(connection.family, socket.SOCK_STREAM, 0, connection.fd)

    def _write(self, connection: _Connection, data: bytes | memoryview) -> bool:
        """Write; what does not go out now waits in `out`. Whether everything went out."""
        try:
            sent = os.write(connection.fd, data)
        except BlockingIOError:
            sent = 0
        self.counters.bytes_out += sent
        if sent == len(data):
            connection.out = None
            return True
        connection.out = memoryview(data)[sent:]
        self._watch(connection)
        return False

    def _watch(self, connection: _Connection) -> None:
        if not connection.watching:
            connection.watching = True
            self._epoll.modify(connection.fd, _EDGE | select.EPOLLOUT)

    def _flush(self, connection: _Connection) -> None:
        """Write what waits; when all is written, go on with what was held up by it."""
        if connection.out is not None and not self._write(connection, connection.out):
            return
        while connection.send_left:
            try:
                sent = os.sendfile(
                    connection.fd, self._cycle, connection.send_place, min(connection.send_left, wire.CYCLE)
                )
            except BlockingIOError:
                self._watch(connection)
                return
            self.counters.bytes_out += sent
            connection.send_left -= sent
            connection.send_place = (connection.send_place + sent) & (wire.CYCLE - 1)
        if self._mode == "exchange":
            if connection.kind in (0, wire.EXCHANGE):
                self._answered(connection)
                self._requests(connection)
            elif connection.kind != wire.STREAM:
                self._flow_done(connection)
        if connection.end_seen:
            self._ended(connection)

    def _spoil(self, connection: _Connection, answer: bytes) -> None:
        """Do to the answer what the fault says."""
        connection.fault = False
        if self._fault == "stall":
            connection.kind, connection.rest = _STALLED, b""
            return
        if self._fault == "reset":
            answer = answer[: len(answer) // 2]
            with self._socket(connection) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                sock.detach()
        elif self._fault == "short":
            answer = answer[:-1]
        elif self._fault == "excess":
            answer += b"!"
        elif self._fault == "corrupt":
            answer = answer[:-1] + bytes([answer[-1] ^ 1])
        else:
            other = wire.pack_answer_head(wire.OK, connection.kind, connection.length, connection.ident ^ 1)
            answer = other + answer[wire.ANSWER_HEAD :]
        os.write(connection.fd, answer)
        self._drop(connection)
