"""What an HTTP connection is at any moment, and what follows from that: accounts, timeouts, fitness for a park."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, ClassVar

from hitlessd.http.body import Body
from hitlessd.http.grammar import CHUNKED
from hitlessd.parking.park import farewell
from hitlessd.worker.connection import UNPARKED, Connection, State
from hitlessd.worker.counters import OTHER, REQUESTS, REUSES
from hitlessd.worker.http.direct import ClientSide, ServerSide
from hitlessd.worker.http.exchange import Exchange
from hitlessd.worker.http.record import exchange_source
from hitlessd.worker.http.side import HttpSide
from hitlessd.worker.relay import Side
from hitlessd.worker.timers import GRAIN, NEVER

if TYPE_CHECKING:
    from hitlessd.http.heads import Request
    from hitlessd.logcode import Source
    from hitlessd.worker.backend import LiveServer
    from hitlessd.worker.frontend import LiveFrontend
    from hitlessd.worker.loop import Worker

__all__ = ["HttpState"]

_WAITING, _EXCHANGING = State.WAITING, State.EXCHANGING
_send = socket.SocketType.send
#: Seconds between two entries of a long exchange's bytes in the counters.
_ACCOUNT = 1.0


class HttpState(Connection):
    """A client that speaks HTTP/1. Between two exchanges it is alone; during one it has a server."""

    __slots__ = ("began_at", "buffer", "direct", "exchange", "exchanges", "given", "idle_since", "outgoing", "reply")

    client_side: ClassVar[type[Side]] = ClientSide
    server_side: ClassVar[type[Side]] = ServerSide
    client: HttpSide
    server: HttpSide | None

    def __init__(self, worker: Worker, frontend: LiveFrontend, sock: socket.SocketType, address: Any) -> None:
        # What Connection.__init__() says, spelt out as in HttpSide.
        now = worker.now
        next_number, client_side = worker.next_number, frontend.client_side
        self.worker = worker
        self.frontend = frontend
        self.backend = frontend.backend
        self.route = frontend.route
        self.address = address
        self.number = next_number()
        self.started = self.due = self.idle_since = self.began_at = now
        self.state = _WAITING
        self.client = client_side(worker, self, sock, sock.fileno(), now)  # type: ignore[assignment]
        self.server = self.target = self.header = self.dead = self.waiting = None
        self.assigned_at = self.connected_at = -1.0
        self.cause = ""
        self.account_at = now  # when it is looked at; a time of its own would be one more object of an idle client
        self.retries = self.queue_position = self.accounted_in = self.accounted_out = self.spliced = self.bucket = 0
        self.entered = self.redispatched = self.counted = self.shared = False
        self.slot = UNPARKED
        self.exchange: Exchange | None = None
        self.exchanges = 0  # begun so far
        self.direct = False  # the exchange needs no edits, and nothing of it needs to be looked at
        self.buffer = b""  # of the client: read, and part of no message yet
        self.reply = b""  # of the server: the beginning of a response's head
        self.outgoing = b""  # what a server is told first; kept as long as it may have to be told again
        self.given = 0  # bytes for the client, ever; of a tunnel: less those that its server has said, ever
        # idle_since is the end of the last answer, began_at the first byte of the request that comes.

    @property
    def tunnel(self) -> bool:
        """Whether there are no messages any more, but bytes: behind Upgrade and CONNECT."""
        return self.client.tunnel

    @staticmethod
    def log_source(worker: Worker, frontend: LiveFrontend) -> Source:
        return exchange_source(worker, frontend)

    # -- what balancing asks -----------------------------------------------------------------------------------------

    @property
    def request(self) -> Request | None:
        return self.exchange.request if self.exchange is not None else None

    @property
    def pinned(self) -> LiveServer | None:
        return self.exchange.pinned if self.exchange is not None else None

    @property
    def waiting_since(self) -> float:
        return self.exchange.requested_at if self.exchange is not None else self.started

    # -- writing -----------------------------------------------------------------------------------------------------

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

    def relayed(self, side: HttpSide, size: int) -> None:
        """Bytes of a body are on their way to the other side."""
        if side is self.client:
            self.outgoing = b""  # what cannot be told again entirely must not be told again at all
        else:
            self.given += size

    def drop_server(self) -> None:
        server = self.server
        if server is not None:
            if server.mark:
                self.worker.parking.unpark(self)
            if server.shared:
                farewell(server.sock)
        super().drop_server()
        self.client.peer = None  # type: ignore[assignment]

    # -- accounts ----------------------------------------------------------------------------------------------------

    def phase(self) -> str:
        """HAProxy's second letter of the termination state."""
        if self.exchange is None:
            return "R"
        if self.state is State.QUEUED:
            return "Q"
        if self.state is not _EXCHANGING:
            return "C"
        return "H" if self.exchange.response is None else "D"

    @property
    def passed_down(self) -> int:
        """Bytes for the client, ever."""
        server = self.server
        return self.given + server.received if self.tunnel and server is not None else self.given

    def account(self) -> None:
        came, went = self.client.received - self.accounted_in, self.passed_down - self.accounted_out
        self.accounted_in += came
        self.accounted_out += went
        self.account_at = self.worker.now + _ACCOUNT
        spliced, self.spliced = self.spliced, 0
        for tally in (self.frontend, self.backend if self.entered else None, self.target):
            if tally is not None:
                tally.bin += came
                tally.bout += went
                tally.spliced += spliced
                tally.touch()
        if self.tunnel and self.slot >= 0:
            self.worker.parking.account(self)

    def count(self) -> None:
        """One exchange more."""
        exchange = self.exchange
        assert exchange is not None
        place = exchange.status // 100
        if not 1 <= place <= 5:
            place = OTHER
        target = self.target
        # As with HAProxy, a server counts its own answers only, not what we say in its stead.
        answered = target if exchange.response is not None else None
        for tally in (self.frontend, self.backend if self.entered else None, answered):
            if tally is not None and tally.codes is not None:
                tally.codes[REQUESTS] += 1
                if exchange.status > 0:
                    tally.codes[place] += 1
                tally.touch()
        if exchange.sent and target is not None and target.codes is not None:
            if exchange.reused:
                target.codes[REUSES] += 1
                target.touch()
            self.observe()

    def observe(self) -> None:
        """`observe layer7`: what the exchange says of the server's health."""
        exchange, target = self.exchange, self.target
        if exchange is None or target is None or target.observer7 is None or self.cause.startswith(("C", "c")):
            return
        # 501 and 505 are the client's doing.
        if self.cause == "PH":
            target.observer7.failed("Invalid http response (headers)")
        elif self.cause.startswith("s"):
            target.observer7.failed("Read timeout (http)")
        elif self.cause.startswith("S"):
            target.observer7.failed("Close from server (http)")
        elif exchange.status >= 500 and exchange.status not in (501, 505):
            target.observer7.failed("Wrong http response")
        else:
            target.observer7.passed()

    def log_exchange(self) -> None:
        """One line, if the frontend wants one."""
        access_log, exchange = self.frontend.access_log, self.exchange
        if access_log is None or exchange is None:
            return
        silent = exchange.request is None and self.client.received == exchange.up_at
        if not (silent and self.frontend.config.dontlognull):
            access_log(self)

    def unsound(self) -> Exchange:
        """An exchange of which there is no request that could be understood."""
        exchange = Exchange(
            None, self.idle_since, self.began_at, self.worker.now, not self.exchanges, self.accounted_in, self.given
        )
        self.exchange = exchange
        self.exchanges += 1
        self.assigned_at = self.connected_at = -1.0
        self.retries = self.queue_position = 0
        self.frontend.row.ereq += 1
        self.frontend.row.change()
        return exchange

    def close(self) -> None:
        if self.state is State.CLOSED:
            return
        self.account()
        if self.exchange is not None:
            self.count()
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
        request = exchange.request
        if self.state is not _EXCHANGING or server is None or request is None:
            return False
        if self.reply or server.eof or server.shut:
            return False
        if exchange.response is None:
            return countable(client.body) and not request.upgrade and not request.connect
        return client.body.done and countable(server.body) and not server.body.done

    def parked_on(self) -> None:
        """An exchange of a client that is parked alone is over."""
        parking = self.worker.parking
        parking.busy.pop(self, None)
        if not self.buffer:
            parking.boundary(self)

    # -- timers ------------------------------------------------------------------------------------------------------

    def sooner(self, due: float) -> None:
        """A new deadline, which mostly is later than the one that we are called at."""
        if due != NEVER and (not self.bucket or due < self.bucket * GRAIN):
            self.rearm()

    def deadline(self) -> float:
        if self.tunnel or self.waiting is not None:
            return super().deadline()
        if self.state is _EXCHANGING:
            return min(self.client_due(), self.server_due())
        return self.due

    def client_due(self) -> float:
        """When a client that is to send, or to take, something has been idle for too long."""
        client = self.client
        if client.blocked or not (client.body.done or client.held):
            return client.last + self.route.client_idle
        return NEVER

    def server_due(self) -> float:
        """When a server that is to answer, or to send or take something, has been idle for too long."""
        client, server = self.client, self.server
        if server is None or client.blocked or not (server.blocked or client.body.done or server.shut):
            return NEVER
        return server.last + self.route.server_idle


def countable(body: Body) -> bool:
    """Its state follows from the number of bytes that have passed."""
    return body.kind != CHUNKED
