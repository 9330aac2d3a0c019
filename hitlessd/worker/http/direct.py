"""The common exchange, spelt out: a whole request without a body that nothing is to be done with, and a response that
comes at once.

This is the hot path of HTTP: straight-line code instead of the steps of connection.py, of which it does the same. What
does not fit goes the long way, from wherever it turns out.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING

from hitlessd.http.edit import forward_request, forward_response
from hitlessd.http.grammar import MAX_HEAD, Refused
from hitlessd.http.heads import parse_request, parse_response
from hitlessd.worker.connection import UNPARKED, State
from hitlessd.worker.http.dial import dial
from hitlessd.worker.http.exchange import Exchange
from hitlessd.worker.http.side import WHOLE, HttpSide, own
from hitlessd.worker.relay import SCRATCH, ignore
from hitlessd.worker.timers import GRAIN

if TYPE_CHECKING:
    from hitlessd.http.heads import Request, Response

__all__ = ["ClientSide", "ServerSide"]

#: The mask of most events: there are bytes, and room for more.
_PLAIN = select.EPOLLIN | select.EPOLLOUT
#: Exchanges of a frontend that are kept to be used again.
_SPARES = 256
_WAITING, _EXCHANGING, _CLOSED = State.WAITING, State.EXCHANGING, State.CLOSED
_recv, _send = socket.SocketType.recv, socket.SocketType.send


class ClientSide(HttpSide):
    """The client's socket."""

    __slots__ = ()

    def on_event(self, events: int) -> None:
        conn = self.conn
        frontend = conn.frontend
        if events != _PLAIN or conn.state is not _WAITING or self.held or conn.buffer or not frontend.direct:
            HttpSide.on_event(self, events)
            return
        try:
            data = _recv(self.sock, MAX_HEAD)
        except BlockingIOError:
            return
        except OSError as error:
            conn.broken(self, error)
            return
        size = len(data)
        if not size:
            conn.at_eof(self)
            return
        self.received += size
        if data[-4:] == b"\r\n\r\n" and size < MAX_HEAD:
            try:
                request = parse_request(data)
            except Refused:
                pass  # it may be several, or none: the long way finds out
            else:
                if request.direct:
                    self._begin(request)
                    return
        if size == MAX_HEAD:
            self.ready |= select.EPOLLIN
        conn.request_bytes(data)
        if not self.held and self.ready and self.conn is conn:
            self.release()

    def _begin(self, request: Request) -> None:
        """As HttpConnection.begin_exchange()."""
        conn, worker = self.conn, self.worker
        frontend, backend = conn.frontend, conn.backend
        now = worker.now
        self.held = True
        if conn.slot >= 0:
            worker.parking.busy[conn] = None
        exchanges = conn.exchanges
        spare = frontend.spare
        if spare:
            # Made anew, it would take 0.36 us instead of 0.16. What is not named here is as it was made, see _end().
            exchange = spare.pop()
            exchange.request = request
            exchange.since = conn.idle_since
            exchange.began_at = exchange.requested_at = now
            exchange.answered_at = -1.0
            exchange.status = -1
            exchange.first = not exchanges
            exchange.keep = request.keep_alive
            exchange.sent = exchange.reused = False
            exchange.up_at, exchange.down_at = conn.accounted_in, conn.given
        else:
            exchange = Exchange(request, conn.idle_since, now, now, not exchanges, conn.accounted_in, conn.given)
        conn.exchange = exchange
        conn.exchanges = exchanges + 1
        conn.retries = conn.queue_position = 0
        conn.redispatched = False
        conn.direct = conn.entered = True
        outgoing = conn.outgoing = request.kept or forward_request(request, True)
        sessions = backend.sessions = backend.sessions + 1
        if sessions > backend.peak:
            backend.peak = sessions
        target = None
        if not backend.queue:
            target = backend.only
            if target is None:
                target = backend.choose(conn)
                if target is not None and target.sessions > target.peak:
                    target.peak = target.sessions
            else:
                sessions = target.sessions = target.sessions + 1
                if sessions > target.peak:
                    target.peak = sessions
        if target is None:
            backend.opened += 1
            backend.touch()
            conn.assigned_at = conn.connected_at = -1.0
            conn.assign()
            return
        account = target.account
        if account is None or account.frontend is not frontend:
            account = frontend.account_with(target)
        if not account.dirty:
            account.dirty = True
            account.ledger.accounts.append(account)
        idle = target.pool.idle
        if not idle or (frontend.first_is_fresh and not exchanges):
            conn.assigned_at = conn.connected_at = -1.0
            if idle and backend.config.http_reuse == "aggressive":
                backend.opened += 1
                conn.connect(target)
            else:
                account.opened += 1
                dial(conn, target)
            return
        account.opened += 1
        server, _ = idle.popitem()
        pool = target.pool
        if len(idle) < pool.unneeded:
            pool.unneeded = len(idle)
        worker.idle -= 1
        exchange.reused = exchange.sent = True
        conn.assigned_at = conn.connected_at = server.last = self.last = now
        conn.target = target
        conn.server = self.peer = server
        server.conn = conn
        server.asked = worker.turns
        server.peer = self
        if server.uses == 1:
            pool.fresh -= 1
        server.uses += 1
        server.held = False
        conn.state = _EXCHANGING
        try:
            sent = _send(server.sock, outgoing)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            exchange.sent = False
            conn.unwritable(server, error)
            return
        route = conn.route
        # Who may be idle for ever is in no bucket.
        if route.idles and (now + route.least < conn.bucket * GRAIN or not conn.bucket):
            conn.rearm()
        if sent != len(outgoing):
            server.block(memoryview(outgoing)[sent:])


class ServerSide(HttpSide):
    """A server's socket."""

    __slots__ = ()

    __init__ = own(HttpSide.__init__)

    def on_event(self, events: int) -> None:
        conn = self.conn
        if (
            events != _PLAIN
            or conn is None
            or not conn.direct  # with it, all of the request is on its way, and nothing of the response is here
            or self.held
            or self.blocked
            or self.asked == self.worker.turns
        ):
            HttpSide.on_event(self, events)
            return
        try:
            data = _recv(self.sock, SCRATCH)
        except BlockingIOError:
            return
        except OSError as error:
            conn.broken(self, error)
            return
        size = len(data)
        if not size:
            conn.at_eof(self)
            return
        self.received += size
        if size < SCRATCH:
            # Mostly the head is the same as the one before; to see that takes half as long as to look it up.
            target = conn.target
            response: Response | None = target.latest
            if response is not None and data.startswith(response.raw):
                at = len(response.raw)
            else:
                response = None
                at = data.find(b"\r\n\r\n") + 4
                if 4 <= at <= MAX_HEAD:
                    try:
                        response = parse_response(data[:at])
                    except Refused:
                        pass
                    else:
                        target.latest = response if response.direct else None
            if response is not None and response.direct and at + response.length == size:
                self._end(response, data, at)
                return
        conn.direct = False
        self.last = conn.worker.now
        if size == SCRATCH:
            self.ready |= select.EPOLLIN
        conn.response_bytes(data)
        if not self.held and self.ready and self.conn is conn:
            self.resume()

    def _end(self, response: Response, data: bytes, at: int) -> None:
        """As HttpConnection.begin_response() and end_exchange(): `data` is all of the response, its body begins at
        `at`, and this connection stays."""
        conn, worker = self.conn, self.worker
        frontend, backend, client = conn.frontend, conn.backend, conn.client
        target, exchange = conn.target, conn.exchange
        keep = exchange.keep
        now = self.last = client.last = worker.now
        exchange.response, exchange.answered_at = response, now
        status = exchange.status = response.status
        head = response.passed[2 + keep] or forward_response(response, 11, keep)
        if head is not response.raw:
            data = head + data[at:]
        size = len(data)
        given = conn.given = conn.given + size
        conn.outgoing = b""
        try:
            sent = _send(client.sock, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            conn.unwritable(client, error)
            return
        self.held = True
        if sent != size:
            self.body = WHOLE
            client.block(memoryview(data)[sent:])
            return
        account = target.account  # it may have been redispatched
        if account is None or account.frontend is not frontend:
            account = frontend.account_with(target)
        received = client.received
        account.bin += received - conn.accounted_in
        account.bout += given - conn.accounted_out
        conn.accounted_in, conn.accounted_out = received, given  # the same objects, for thousands may be idle
        account.classes[status // 100] += 1
        if exchange.reused:
            account.reused += 1
        if target.observer7 is not None:
            conn.observe()
        if frontend.access_log is not None:
            frontend.access_log(conn)
        if not account.dirty:
            account.dirty = True
            account.ledger.accounts.append(account)
        if client.mark:
            worker.parking.unpark(conn)
        conn.server = conn.target = conn.exchange = None
        exchange.request = exchange.response = None  # heads may be long
        if len(frontend.spare) < _SPARES:
            frontend.spare.append(exchange)
        client.peer = self.peer = self.conn = None  # type: ignore[assignment]
        if backend.watched:
            target.count(-1)
            if target.maxconn:
                backend.freed(target)
        else:
            target.sessions -= 1
        pool = target.pool
        idle = pool.idle
        kept = len(idle)
        if kept + target.sessions < pool.need and pool.bucket and kept < pool.most:
            self.pool = pool
            idle[self] = None
            if self.uses == 1:
                pool.fresh += 1
            worker.idle += 1
        elif kept and kept + target.sessions >= target.peak and not self.copied:
            # As give_back(): there are enough, and nobody else has it.
            worker.handlers[self.fd] = ignore
            worker.closing.append(self.sock)
        else:
            pool.give_back(self)
        conn.entered = False
        backend.sessions -= 1
        if not keep:
            if client.ready or conn.shared or client.copied:
                conn.depart()
                return
            # As leave(): all is accounted for, and nothing was lent to it but its place among others.
            conn.state = _CLOSED
            if conn.slot != UNPARKED:
                worker.parking.left(conn)
            if conn.bucket:
                worker.wheel.remove(conn)
            worker.handlers[client.fd] = ignore
            worker.closing.append(client.sock)
            client.conn = None
            frontend.sessions -= 1  # it is collected with the account
            del worker.connections[conn]
            if worker.throttled:
                worker.arm_at(frontend)
            return
        conn.state = _WAITING
        if conn.slot >= 0:
            conn.parked_on()
        conn.began_at = conn.idle_since = now
        conn.assigned_at = conn.connected_at = -1.0  # which costs an idle client nothing
        route = conn.route
        due = conn.due = now + route.keep_alive
        if route.waits and (due < conn.bucket * GRAIN or not conn.bucket):
            conn.rearm()
        client.held = False
        if client.ready:
            client.release()
