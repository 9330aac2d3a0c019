"""An HTTP connection: requests from one client, each of which finds a server of its own.

Between two exchanges it is a client alone; during one it is a pair of sockets as with TCP, whose bytes are messages:
heads are read, checked and edited, bodies are counted and passed on as they are. Behind Upgrade and CONNECT it is TCP.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Any, ClassVar

from hitlessd.http.body import FULL, NOTHING, Body
from hitlessd.http.heads import Refused, Request, Response, head_end, parse_request, parse_response
from hitlessd.parking.park import farewell
from hitlessd.proxyprotocol import build
from hitlessd.worker.connection import Connection, State
from hitlessd.worker.counters import CONNECTS, OTHER, REQUESTS, REUSES
from hitlessd.worker.exchange import Exchange
from hitlessd.worker.httpside import ClientSide, HttpSide, ServerSide
from hitlessd.worker.relay import READABLE, SCRATCH, TROUBLE, WRITABLE, Side
from hitlessd.worker.timers import GRAIN, NEVER

if TYPE_CHECKING:
    from hitlessd.worker.backend import LiveServer
    from hitlessd.worker.frontend import LiveFrontend
    from hitlessd.worker.loop import Worker

__all__ = ["HttpConnection"]

#: Seconds that a client may take to read our last words before the connection is closed.
_LINGER = 5.0
#: Bytes of a lingering client that are read and thrown away in one turn, in buffers.
_DISCARD = 16
#: Methods without effects (RFC 9110, 9.2.1): sent again on another connection if a kept one has ended meanwhile.
_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})
_WAITING, _EXCHANGING, _CLOSED = State.WAITING, State.EXCHANGING, State.CLOSED
_SOL_SOCKET, _SO_ERROR = int(socket.SOL_SOCKET), int(socket.SO_ERROR)
_send = socket.SocketType.send


class HttpConnection(Connection):
    """A client that speaks HTTP/1."""

    __slots__ = (
        "began_at",
        "buffer",
        "direct",
        "exchange",
        "exchanges",
        "given",
        "outgoing",
        "reply",
    )

    client_side: ClassVar[type[Side]] = ClientSide
    server_side: ClassVar[type[Side]] = ServerSide
    client: HttpSide
    server: HttpSide | None

    def __init__(self, worker: Worker, frontend: LiveFrontend, sock: socket.SocketType, address: Any) -> None:
        super().__init__(worker, frontend, sock, address)
        self.state = _WAITING
        self.exchange: Exchange | None = None
        self.exchanges = 0  # begun so far
        self.buffer = b""  # of the client: read, and part of no message yet
        self.reply = b""  # of the server: the beginning of a response's head
        self.outgoing = b""  # what a server is told first; kept as long as it may have to be told again
        self.direct = False  # the exchange needs no edits, and no looking at what is read
        self.given = 0  # bytes for the client, ever
        self.began_at = self.started  # the first byte of the request that is coming

    @property
    def tunnel(self) -> bool:
        """Whether it has become one."""
        return self.client.tunnel

    # -- requests ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.state = _WAITING
        self.due = self.started + self.route.http_request
        self.client.held = False

    def take(self, side: HttpSide, size: int) -> None:
        """So many bytes have come from a side; they lie in the scratch."""
        exchange = self.exchange
        if side is self.client:
            if exchange is None:
                self.request_bytes(bytes(self.worker.view[:size]))
                return
        elif exchange is not None and exchange.response is None:
            self.response_bytes(bytes(self.worker.view[:size]))
            return
        body, view = side.body, self.worker.view[:size]
        try:
            used = body.take(view)
        except Refused as refused:
            self.garbled(side, refused)
            return
        if used:
            self.relayed(side, used)
            self.write(side.peer, view[:used])  # type: ignore[arg-type]
            if self.state is not _EXCHANGING:
                return
        if body.done:
            self.message_done(side, view[used:] if used != size else None)

    def relayed(self, side: HttpSide, size: int) -> None:
        """Bytes of a body are on their way to the other side."""
        if side is self.client:
            self.outgoing = b""  # what cannot be told again entirely must not be told again at all
        else:
            self.given += size

    def write(self, side: HttpSide, data: bytes | memoryview) -> None:
        """Send; what the socket does not take now waits, and the other side with it."""
        if side.blocked:
            waits = side.out if side.out is not None else b""
            side.block(memoryview(bytes(waits) + bytes(data)))
            return
        side.last = self.worker.now
        try:
            sent = _send(side.sock, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.unwritable(side, error)
            return
        if sent != len(data):
            side.block(memoryview(data)[sent:])

    def request_bytes(self, data: bytes) -> None:
        """The client has said something; whole heads are served."""
        buffer, scanned = self.buffer, len(self.buffer)
        if scanned:
            buffer += data
        else:
            buffer = data
            self.began_at = self.worker.now
        try:
            end = head_end(buffer, scanned)
            if not end:
                self.buffer = buffer
                if not scanned and self.exchanges:
                    self.due = self.began_at + self.route.http_request
                    self.sooner(self.due)
                return
            request = parse_request(buffer if end == len(buffer) else buffer[:end])
        except Refused as refused:
            self.buffer = b""
            self.refuse(refused)
            return
        self.begin_exchange(request, buffer[end:])

    def go_on(self) -> None:
        """A turn of its own, which was asked for."""
        if self.state is State.TARRYING:
            self.on_lingering(READABLE)
        elif self.state is _WAITING:
            self.next_request()

    def next_request(self) -> None:
        """What was sent behind the last request is the next one's."""
        data, self.buffer = self.buffer, b""
        self.client.held = False
        self.request_bytes(data)
        if self.exchange is None and self.state is _WAITING:
            self.client.release()

    def refuse(self, refused: Refused) -> None:
        """It is no request that anybody would understand the same way: say so, and hear no more."""
        worker, frontend = self.worker, self.frontend
        self.client.held = True
        self.exchange = Exchange(None, self.began_at, worker.now, not self.exchanges, self.accounted_in, self.given)
        self.exchanges += 1
        frontend.row.ereq += 1
        frontend.row.change()
        self.cause = "PR"
        worker.complain(f"refused a request to {frontend.name}: {refused.reason}")
        self.answer(refused.status)

    def begin_directly(self, request: Request) -> None:
        """As begin_exchange(), for the common case, spelt out: nothing is to be changed or decided, and there is no
        body."""
        worker, frontend, client, backend = self.worker, self.frontend, self.client, self.backend
        now = worker.now
        client.held = True
        if self.slot >= 0:
            worker.parking.busy[self] = None
        exchanges = self.exchanges
        self.exchange = exchange = Exchange(request, now, now, not exchanges, self.accounted_in, self.given)
        self.exchanges = exchanges + 1
        self.assigned_at = self.connected_at = -1.0
        self.retries = self.queue_position = 0
        self.direct = True
        self.outgoing = request.forward
        self.entered = True
        backend.opened += 1
        sessions = backend.sessions = backend.sessions + 1
        if sessions > backend.peak:
            backend.peak = sessions
        if not backend.dirty:
            backend.dirty = True
            backend.ledger.dirty.append(backend)
        target = backend.only
        if target is None or (not exchanges and frontend.first_is_fresh):
            self.assign()
            return
        sides = target.pool.idle  # type: ignore[union-attr]
        if not sides:
            self.assign()
            return
        target.count(1)
        self.target = target
        target.opened += 1
        if target.sessions > target.peak:
            target.peak = target.sessions
        pool = target.pool
        server, _ = sides.popitem()
        if len(sides) < pool.unneeded:  # type: ignore[union-attr]
            pool.unneeded = len(sides)  # type: ignore[union-attr]
        worker.idle -= 1
        exchange.reused = exchange.sent = True
        self.assigned_at = self.connected_at = server.last = client.last = now
        self.server = server
        server.conn = self
        server.peer = client
        client.peer = server
        self.state = _EXCHANGING
        server.uses += 1
        server.held = False
        raw = request.forward
        try:
            sent = _send(server.sock, raw)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            exchange.sent = False
            self.unwritable(server, error)
            return
        if now + self.route.least < self.bucket * GRAIN:
            self.sooner(now + self.route.least)
        if sent != len(raw):
            server.block(memoryview(raw)[sent:])

    def end_directly(self, response: Response, data: bytes) -> None:
        """As begin_response() and end_exchange(), for the common case, spelt out: `data` is all of the response, and
        both connections stay."""
        worker, client, server, target, exchange = self.worker, self.client, self.server, self.target, self.exchange
        backend, frontend = self.backend, self.frontend
        assert exchange is not None and server is not None and target is not None
        size = len(data)
        now = server.last = client.last = worker.now
        exchange.response, exchange.answered_at = response, now
        status = exchange.status = response.status
        self.given += size
        try:
            sent = _send(client.sock, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.unwritable(client, error)
            return
        server.body = FULL
        server.held = True
        if sent != size:
            client.block(memoryview(data)[sent:])
            return
        came, went = client.received - self.accounted_in, self.given - self.accounted_out
        self.accounted_in += came
        self.accounted_out += went
        place = status // 100
        for tally in (frontend, backend, target):
            tally.bin += came
            tally.bout += went
            codes = tally.codes
            codes[0] += 1  # type: ignore[index]
            codes[place] += 1  # type: ignore[index]
        target.codes[REUSES if exchange.reused else CONNECTS] += 1  # type: ignore[index]
        if not frontend.dirty:
            frontend.dirty = True
            frontend.ledger.dirty.append(frontend)
        if not backend.dirty:
            backend.dirty = True
            backend.ledger.dirty.append(backend)
        if target.observer7 is not None or frontend.logging:
            self._observe()
            self.log_exchange()
        self.server = None
        client.peer = server.peer = server.conn = None  # type: ignore[assignment]
        self.target = None
        target.count(-1)
        if target.maxconn:
            backend.freed()
        target.pool.give(server)  # type: ignore[union-attr]
        self.entered = False
        backend.sessions -= 1
        self.exchange = None
        self.outgoing = b""
        self.state = _WAITING
        if self.slot >= 0:
            self._parked_on()
        self.began_at = now
        due = self.due = now + self.route.keep_alive
        if due < self.bucket * GRAIN:
            self.sooner(due)
        client.held = False
        if client.ready:
            client.release()

    def begin_exchange(self, request: Request, rest: bytes) -> None:
        """A request: find out what is to be done with it."""
        client = self.client
        client.held = True
        if self.slot >= 0:
            self.worker.parking.busy[self] = None
        exchange = Exchange(request, self.began_at, self.worker.now, not self.exchanges, self.accounted_in, self.given)
        self.exchange = exchange
        self.exchanges += 1
        self.assigned_at = self.connected_at = -1.0
        self.retries = self.queue_position = 0
        self.redispatched = self.direct = False
        if request.framing:
            body = client.body = Body(request.framing, request.length)
            try:
                used = body.take(rest)
            except Refused as refused:
                self.exchange = None
                self.refuse(refused)
                return
            self.buffer = rest[used:]
            rest = rest[:used]
        else:
            client.body = NOTHING
            self.buffer = rest
            rest = b""
        self.enter(self.frontend.backend)
        self.outgoing = self.forwarded(request) + rest
        self.assign()

    def forwarded(self, request: Request) -> bytes:
        """The request's head as the server gets it."""
        return request.raw

    # -- the server --------------------------------------------------------------------------------------------------

    def connect(self, target: LiveServer) -> None:
        """On a connection that is kept, if http-reuse allows it; else on a new one."""
        worker, exchange = self.worker, self.exchange
        assert exchange is not None
        reuse = self.backend.config.http_reuse
        side = None
        if target.pool and not self.retries and (not exchange.first or reuse in ("aggressive", "always")):
            side = target.pool.take(exchange.first and reuse == "aggressive")
        if side is None:
            if worker.idle and not worker.room_for_idle:
                worker.spare_idle()
            exchange.reused = False
            super().connect(target)
            return
        if self.target is not target:
            self.chosen(target)
        exchange.reused = True
        self.connected_at = worker.now
        self.server = side
        side.conn = self
        side.peer = self.client
        self.client.peer = side
        self.send_request()

    def on_connecting(self, events: int) -> None:
        server = self.server
        assert server is not None
        if events & TROUBLE:
            error = server.sock.getsockopt(_SOL_SOCKET, _SO_ERROR)
            if error:
                self.connect_failed(error)
                return
        if events & WRITABLE:
            self.connected_at = self.worker.now
            self.worker.handlers[server.fd] = server.on_event
            server.ready = events & READABLE
            if self.target is not None:
                if self.target.observer4 is not None:
                    self.target.observer4.passed()
                if self.target.send_proxy:
                    self.outgoing = build(self.target.send_proxy, self.source(), self.local()) + self.outgoing
            self.send_request()

    def send_request(self) -> None:
        """There is a connection: its server hears the request, as much of it as there is."""
        client, server, now = self.client, self.server, self.worker.now
        exchange = self.exchange
        assert server is not None and exchange is not None
        self.state = _EXCHANGING
        server.body = NOTHING
        server.uses += 1
        server.held = False
        server.last = client.last = now
        outgoing = self.outgoing
        try:
            sent = _send(server.sock, outgoing)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.unwritable(server, error)
            return
        exchange.sent = True
        self.sooner(now + min(self.route.server_idle, self.route.client_idle))
        if sent != len(outgoing):
            server.block(memoryview(outgoing)[sent:])
        elif not client.body.done:
            client.release()
            if self.server is not server:
                return
        if server.ready:
            server.release()

    def response_bytes(self, data: bytes) -> None:
        """The server answers."""
        exchange, server = self.exchange, self.server
        assert exchange is not None and exchange.request is not None and server is not None
        if self.reply:
            scanned = len(self.reply)
            data = self.reply + data
        else:
            scanned = 0
        while True:
            try:
                end = head_end(data, scanned)
                if not end:
                    self.reply = data
                    return
                response = parse_response(data if end == len(data) else data[:end])
                if response.status < 200 and response.status != 101:
                    data, scanned = data[end:], 0
                    self.reply = b""
                    if exchange.request.version > 10:
                        self.given += end
                        self.write(self.client, response.raw)
                    if self.state is not _EXCHANGING or not data:
                        return
                    continue
                self.reply = b""
                self.begin_response(response, data[end:] if end != len(data) else b"")
            except Refused as refused:
                self.garbled(server, refused)
            return

    def begin_response(self, response: Response, rest: bytes) -> None:
        """The final answer's head is here. Raises Refused."""
        exchange, client, server, target = self.exchange, self.client, self.server, self.target
        assert exchange is not None and exchange.request is not None and server is not None and target is not None
        request = exchange.request
        self.outgoing = b""
        kind, length = response.body_for(request.method)
        if response.status == 101 or (request.connect and response.status < 300):
            if response.status == 101 and not request.upgrade:
                raise Refused(502, "the server switches protocols although nobody has asked it to")
            exchange.response, exchange.status = response, response.status
            exchange.answered_at = self.worker.now
            self.open_tunnel(response.raw, rest)
            return
        body = NOTHING
        if kind:
            body = Body(kind, length)
            used = body.take(rest)
            if used != len(rest):
                exchange.surplus = True
                rest = rest[:used]
        elif rest:
            exchange.surplus = True
            rest = b""
        exchange.response, exchange.status = response, response.status
        exchange.answered_at = self.worker.now
        server.body = body
        if body.until_close:
            exchange.keep = False
        head = self.returned(response)
        self.given += len(head) + len(rest)
        self.write(client, head + rest if rest else head)
        if body.done and self.state is _EXCHANGING:
            self.message_done(server)

    def returned(self, response: Response) -> bytes:
        """The response's head as the client gets it."""
        return response.raw

    def message_done(self, side: HttpSide, rest: memoryview | None = None) -> None:
        """All of a message has come from this side, and may still wait to be written; `rest` came behind it."""
        side.held = True
        if side is self.client:
            if rest is not None:
                self.buffer = bytes(rest)
            return
        exchange = self.exchange
        assert exchange is not None
        if rest is not None:
            exchange.surplus = True
        if not self.client.blocked:
            self.end_exchange()

    def flushed(self, side: HttpSide) -> None:
        """Nothing waits to be written to this side any more."""
        peer = side.peer
        if peer is not None and peer.body.done:
            peer.stop_splicing()
        if side is self.client:
            exchange = self.exchange
            if self.server is None:
                if exchange is not None:
                    self.end_exchange()
            elif self.server.eof:
                self.cut_off()
            elif exchange is not None and exchange.response is not None and self.server.body.done:
                self.end_exchange()
            else:
                self.server.release()
        elif not self.client.body.done and not side.shut:
            self.client.last = self.worker.now
            self.client.release()

    # -- the end of an exchange --------------------------------------------------------------------------------------

    def end_exchange(self) -> None:
        """The client has its answer: what is left serves the next ones, or nobody."""
        worker, client, server, exchange, target = self.worker, self.client, self.server, self.exchange, self.target
        assert exchange is not None
        self.account()
        self._count()
        self.log_exchange()
        response, read = exchange.response, client.body.done
        if client.pipe is not None:
            client.stop_splicing()
        if server is not None:
            if server.pipe is not None:
                server.stop_splicing()
            if (
                response is not None
                and self.backend.config.http_reuse != "never"
                and response.keep_alive
                and read
                and not exchange.surplus
                and not server.blocked
                and not server.ready & TROUBLE
                and target is not None
                and target.pool is not None
                and not target.send_proxy  # it has been told whose connection it is
                and not server.body.until_close
            ):
                self.server = None
                client.peer = server.peer = server.conn = None  # type: ignore[assignment]
                server.held = True
                server.bulky = server.ready = 0
                target.pool.give(server)
            else:
                self.drop_server()
        self.give_slot_back()
        self.exit()
        self.exchange = None
        self.cause = ""
        self.outgoing = self.reply = b""
        client.body = NOTHING
        client.bulky = 0
        if not (exchange.keep and read):
            self.depart()
            return
        self.state = _WAITING
        if self.slot >= 0:
            self._parked_on()
        self.backend, self.route = self.frontend.backend, self.frontend.route
        now = client.last = self.began_at = worker.now
        self.due = now + self.route.keep_alive
        self.sooner(self.due)
        if self.buffer:
            # In the next turn: a client with a thousand requests in its pipeline is not the only one.
            worker.ready.append(client)
        else:
            client.release()

    def _count(self) -> None:
        """One exchange more."""
        exchange = self.exchange
        assert exchange is not None
        place = exchange.status // 100
        if not 1 <= place <= 5:
            place = OTHER
        for tally in (self.frontend, self.backend if self.entered else None, self.target):
            if tally is not None and tally.codes is not None:
                tally.codes[REQUESTS] += 1
                if exchange.status > 0:
                    tally.codes[place] += 1
        target = self.target
        if exchange.sent and target is not None and target.codes is not None:
            target.codes[REUSES if exchange.reused else CONNECTS] += 1
            self._observe()

    def _observe(self) -> None:
        """`observe layer7`: what the exchange says of the server's health."""
        exchange, target = self.exchange, self.target
        if exchange is not None and target is not None and target.observer7 is not None:
            # 501 and 505 are the client's doing.
            if exchange.status < 500 or exchange.status in (501, 505):
                target.observer7.passed()
            elif not self.cause.startswith(("C", "c")):
                target.observer7.failed("Wrong http response" if exchange.response else "No HTTP response")

    def _parked_on(self) -> None:
        """An exchange of a parked client is over."""
        parking = self.worker.parking
        parking.busy.pop(self, None)
        if self.client.mark:
            parking.unpark(self)
        elif not self.buffer:
            parking.boundary(self)

    def drop_server(self) -> None:
        server = self.server
        if server is not None and server.shared:
            farewell(server.sock)
        super().drop_server()

    def depart(self) -> None:
        """Close, but not before the client has read what it was told: an unread byte of its own would reset it."""
        client = self.client
        if client.eof or not client.ready:
            self.close()
            return
        try:
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        client.shut = client.held = True
        self.state = State.TARRYING
        self.due = self.worker.now + _LINGER
        self.worker.handlers[client.fd] = self.on_lingering
        self.rearm()
        self.on_lingering(READABLE)

    def on_lingering(self, events: int) -> None:
        """Read and discard until the client closes; one who sends without end is cut off by the time."""
        sock, scratch = self.client.sock, self.worker.scratch
        for _ in range(_DISCARD):
            try:
                if not sock.recv_into(scratch, SCRATCH, socket.MSG_TRUNC):
                    break
            except BlockingIOError:
                return
            except OSError:
                break
        else:
            self.worker.ready.append(self.client)
            return
        self.close()

    def answer(self, status: int) -> None:
        """Say it ourselves; nothing more is read of this client unless its request has been read to the end."""
        from hitlessd.http.answers import error_answer

        exchange, client = self.exchange, self.client
        assert exchange is not None
        self.drop_server()
        data = error_answer(status)
        exchange.status = status
        exchange.answered_at = self.worker.now
        exchange.keep = False
        self.state = _EXCHANGING
        client.held = True
        if exchange.request is None or not client.body.done:
            client.ready |= select.EPOLLIN  # there may be more of it
        self.given += len(data)
        self.write(client, data)
        if not client.blocked and self.state is _EXCHANGING:
            self.end_exchange()

    def give_up(self, status: int) -> None:
        self.answer(status)

    def garbled(self, side: HttpSide, refused: Refused) -> None:
        """What comes from this side is no message."""
        exchange = self.exchange
        assert exchange is not None
        by_client = side is self.client
        self.worker.complain(
            f"refused a {'request to' if by_client else 'response of'} {self.backend.name}: {refused.reason}"
        )
        if by_client:
            self.frontend.row.ereq += 1
            self.frontend.row.change()
        else:
            for tally in (self.backend, self.target):
                if tally is not None:
                    tally.row.eresp += 1
                    tally.row.change()
        if exchange.response is None:
            self.cause = "PR" if by_client else "PH"
            self.answer(400 if by_client else 502)
        else:
            self.cause = "PD"
            self.close()

    def cut_off(self) -> None:
        """The server's response has broken off: the client must not take it for a whole one."""
        exchange = self.exchange
        if exchange is not None and self.server is not None and self.server.body.until_close:
            self.settle(self.client)
        else:
            self.close()

    def log_exchange(self) -> None:
        pass

    # -- what the sides report ---------------------------------------------------------------------------------------

    def phase(self) -> str:
        """HAProxy's second letter of the termination state."""
        if self.exchange is None:
            return "R"
        if self.state is State.QUEUED:
            return "Q"
        if self.state is not _EXCHANGING:
            return "C"
        return "H" if self.exchange.response is None else "D"

    def at_eof(self, side: Side) -> None:
        if self.tunnel:
            super().at_eof(side)
            return
        side.eof = side.held = True
        if side is self.client:
            if self.exchange is None:
                if self.buffer:
                    self.cause = "CR"
                    self.frontend.row.ereq += 1
                    self.frontend.row.change()
                self.close()
                return
            self.cause = "C" + self.phase()
            self.count_abort(True)
            self.close()
            return
        self.server_left()

    def server_left(self) -> None:
        """The server says no more."""
        exchange, server = self.exchange, self.server
        assert exchange is not None and server is not None
        server.eof = server.held = True
        if exchange.response is not None:
            if server.body.end():
                self.message_done(server)
                return
            self.cause = "SD"
            self.count_abort(False)
            if not self.client.blocked:
                self.cut_off()
            return
        request = exchange.request
        assert request is not None
        if exchange.reused and self.outgoing and not self.reply and request.method in _SAFE:
            self.once_more()
            return
        self.cause = "SH"
        self.count_abort(False)
        for tally in (self.backend, self.target):
            if tally is not None:
                tally.row.eresp += 1
        self.answer(502)

    def once_more(self) -> None:
        """The connection that was kept has ended before it could serve this request: another one may."""
        target = self.target
        assert target is not None
        self.drop_server()
        self.retries += 1
        for tally in (self.backend, target):
            tally.row.wretr += 1
            tally.row.change()
        self.connect(target)
        if self.state is not _CLOSED:
            self.rearm()

    def broken(self, side: Side, error: OSError) -> None:
        if self.tunnel:
            super().broken(side, error)
        elif side is self.client:
            self.cause = "C" + self.phase()
            self.count_abort(True)
            self.close()
        else:
            self.server_left()

    def unwritable(self, side: Side, error: OSError) -> None:
        if self.tunnel:
            super().unwritable(side, error)
            return
        exchange = self.exchange
        if side is self.client or exchange is None:
            self.cause = "C" + self.phase()
            self.count_abort(True)
            self.close()
            return
        if exchange.reused and not exchange.sent:
            self.once_more()
            return
        # It may have answered before it closed: that is still to be read.
        exchange.keep = False
        side.shut = True
        side.drop_out()
        side.blocked = False
        self.client.stop_splicing()
        self.client.held = True
        side.resume()

    def trouble(self, side: Side, events: int) -> None:
        if self.tunnel:
            super().trouble(side, events)
            return
        if side is not self.client or self.state is State.TARRYING:
            return
        if events & (select.EPOLLERR | select.EPOLLHUP):
            error = side.sock.getsockopt(_SOL_SOCKET, _SO_ERROR)
            if error:
                self.broken(side, OSError(error, ""))
                return
        if self.backend.config.abortonclose and self.exchange is not None and self.exchange.response is None:
            self.cause = "C" + self.phase()
            self.count_abort(True)
            self.close()

    def client_left(self) -> bool:
        """While there is no server: a client that has sent its request and FIN wants its answer, unless
        `option abortonclose` says otherwise."""
        try:
            return not self.client.sock.recv(1, socket.MSG_PEEK) and self.backend.config.abortonclose
        except BlockingIOError:
            return False
        except OSError:
            return True

    def open_tunnel(self, head: bytes, rest: bytes) -> None:
        """From here on it is TCP."""
        client, server = self.client, self.server
        assert server is not None
        self.state = State.ESTABLISHED
        self.given += len(head)
        early, self.buffer = self.buffer, b""
        client.body = server.body = NOTHING
        self.write(client, head + rest)
        if self.state is State.ESTABLISHED and early:
            self.write(server, early)
        if self.state is not State.ESTABLISHED:
            return
        client.tunnel = server.tunnel = True
        client.held, server.held = server.blocked, client.blocked
        self.rearm()
        if not client.held:
            client.resume()
        if self.server is server and not server.held:
            server.resume()

    # -- accounts ----------------------------------------------------------------------------------------------------

    def account(self) -> None:
        if self.tunnel and self.server is not None:
            super().account()
            return
        came, went = self.client.received - self.accounted_in, self.given - self.accounted_out
        self.accounted_in += came
        self.accounted_out += went
        self.account_at = self.worker.now + 1.0
        spliced, self.spliced = self.spliced, 0
        for tally in (self.frontend, self.backend if self.entered else None, self.target):
            if tally is not None:
                tally.bin += came
                tally.bout += went
                tally.spliced += spliced
                tally.touch()

    def close(self) -> None:
        if self.state is _CLOSED:
            return
        self.account()
        if self.exchange is not None:
            self._count()
            self.log_exchange()
            self.exchange = None
        if self.shared:
            self.worker.parking.end(self)
        self.leave()

    # -- parking -----------------------------------------------------------------------------------------------------

    @property
    def since(self) -> float:
        return self.started if self.exchange is None else self.exchange.requested_at

    def parkable(self) -> bool:
        """Between two exchanges; and during one as long as nothing but a counted body, or a response that has not
        begun, is on its way."""
        if self.tunnel:
            return super().parkable()
        exchange, client, server = self.exchange, self.client, self.server
        if self.buffer or client.eof:
            return False
        if exchange is None:
            return self.state is _WAITING and not client.blocked
        request, response = exchange.request, exchange.response
        if (
            self.state is not _EXCHANGING
            or server is None
            or request is None
            or self.reply
            or server.eof
            or server.shut
        ):
            return False
        if response is None:
            return client.body.countable and not request.upgrade and not request.connect
        return client.body.done and server.body.countable and not server.body.done

    # -- timers ------------------------------------------------------------------------------------------------------

    def sooner(self, due: float) -> None:
        """A new deadline, which mostly is later than the one that we are called at."""
        if due != NEVER and (not self.bucket or due < self.bucket * GRAIN):
            self.rearm()

    def deadline(self) -> float:
        if self.tunnel:
            return super().deadline()
        if self.state is _EXCHANGING:
            return min(self._client_due(), self._server_due())
        return self.due

    def _client_due(self) -> float:
        client = self.client
        if client.blocked or not (client.body.done or client.held):
            return client.last + self.route.client_idle
        return NEVER

    def _server_due(self) -> float:
        client, server = self.client, self.server
        if server is None or client.blocked or not (server.blocked or client.body.done or server.shut):
            return NEVER
        return server.last + self.route.server_idle

    def _expired(self) -> None:
        if self.tunnel or self.state not in (_WAITING, _EXCHANGING):
            super()._expired()
            return
        exchange = self.exchange
        if self.state is _WAITING:
            if self.exchanges and not self.buffer:
                self.close()
                return
            self.cause = "cR"
            self.client.held = True
            self.exchange = Exchange(
                None, self.began_at, self.worker.now, not self.exchanges, self.accounted_in, self.given
            )
            self.exchanges += 1
            self.frontend.row.ereq += 1
            self.frontend.row.change()
            self.answer(408)
            return
        assert exchange is not None
        by_client = self._client_due() <= self.worker.now
        self.cause = ("c" if by_client else "s") + self.phase()
        self.count_abort(by_client)
        if exchange.response is None and exchange.status < 0:
            self.answer(408 if by_client else 504)
        else:
            self.close()
