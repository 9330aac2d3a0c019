"""The common exchange, spelt out: a request without a body that needs no edits, and a response that comes at once.

This is the hot path of HTTP: straight-line code instead of the steps of connection.py, of which it does the same.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from hitlessd.http.edit import forward_request, forward_response
from hitlessd.worker.connection import State
from hitlessd.worker.counters import CONNECTS, REQUESTS, REUSES
from hitlessd.worker.http.exchange import Exchange
from hitlessd.worker.http.side import WHOLE
from hitlessd.worker.http.trouble import Trouble
from hitlessd.worker.timers import GRAIN

if TYPE_CHECKING:
    from hitlessd.http.heads import Request, Response

__all__ = ["Direct"]

_WAITING, _EXCHANGING = State.WAITING, State.EXCHANGING
_send = socket.SocketType.send


class Direct(Trouble):
    """An HTTP connection as far as nothing needs to be thought about."""

    __slots__ = ()

    def begin_directly(self, request: Request) -> None:
        """As begin_exchange()."""
        worker, frontend, client, backend = self.worker, self.frontend, self.client, self.backend
        now = worker.now
        client.held = True
        if self.slot >= 0:
            worker.parking.busy[self] = None
        exchanges = self.exchanges
        exchange = self.exchange = Exchange(
            request, self.idle_since, now, now, not exchanges, self.accounted_in, self.given
        )
        self.exchanges = exchanges + 1
        self.assigned_at = self.connected_at = -1.0
        self.retries = self.queue_position = 0
        self.redispatched = False
        self.direct = self.entered = True
        outgoing = self.outgoing = request.kept or forward_request(request, True)
        backend.opened += 1
        sessions = backend.sessions = backend.sessions + 1
        if sessions > backend.peak:
            backend.peak = sessions
        if not backend.dirty:
            backend.dirty = True
            backend.ledger.dirty.append(backend)
        if backend.queue:
            self.assign()
            return
        target = backend.only
        if target is not None:
            target.count(1)
        else:
            target = backend.choose(self)
            if target is None:
                self.assign()
                return
        pool = target.pool
        assert pool is not None
        if not pool.idle or (not exchanges and frontend.first_is_fresh):
            self.connect(target)
            return
        self.target = target
        target.opened += 1
        if target.sessions > target.peak:
            target.peak = target.sessions
        idle = pool.idle
        server, _ = idle.popitem()
        if len(idle) < pool.unneeded:
            pool.unneeded = len(idle)
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
        try:
            sent = _send(server.sock, outgoing)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            exchange.sent = False
            self.unwritable(server, error)
            return
        if now + self.route.least < self.bucket * GRAIN:
            self.rearm()
        if sent != len(outgoing):
            server.block(memoryview(outgoing)[sent:])

    def end_directly(self, response: Response, data: bytes, body_at: int) -> None:
        """As begin_response() and end_exchange(): `data` is all of the response, and both connections stay."""
        worker, client, server, target, exchange = self.worker, self.client, self.server, self.target, self.exchange
        backend, frontend = self.backend, self.frontend
        assert exchange is not None and server is not None and target is not None
        now = server.last = client.last = worker.now
        exchange.response, exchange.answered_at = response, now
        status = exchange.status = response.status
        head = response.passed[3] or forward_response(response, 11, True)
        if head is not response.raw:
            data = head + data[body_at:]
        size = len(data)
        self.given += size
        self.outgoing = b""
        try:
            sent = _send(client.sock, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.unwritable(client, error)
            return
        server.body = WHOLE
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
            codes[REQUESTS] += 1  # type: ignore[index]
            codes[place] += 1  # type: ignore[index]
        target.codes[REUSES if exchange.reused else CONNECTS] += 1  # type: ignore[index]
        if target.observer7 is not None:
            self.observe()
        if frontend.access_log is not None:
            self.log_exchange()
        # Not before: a log line brings the counters up to date.
        if not frontend.dirty:
            frontend.dirty = True
            frontend.ledger.dirty.append(frontend)
        if not backend.dirty:
            backend.dirty = True
            backend.ledger.dirty.append(backend)
        self.server = None
        client.peer = server.peer = server.conn = None  # type: ignore[assignment]
        self.target = None
        target.count(-1)
        if target.maxconn:
            backend.freed(target)
        target.pool.give(server)  # type: ignore[union-attr]
        self.entered = False
        backend.sessions -= 1
        self.exchange = None
        self.state = _WAITING
        if self.slot >= 0:
            self.parked_on()
        self.began_at = self.idle_since = now
        due = self.due = now + self.route.keep_alive
        if due < self.bucket * GRAIN:
            self.rearm()
        client.held = False
        if client.ready:
            client.release()
