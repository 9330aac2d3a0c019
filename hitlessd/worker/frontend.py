"""Frontends and their listeners as a worker sees them: accepting, and when not to."""

from __future__ import annotations

import errno
import select
import socket
import sys
from typing import TYPE_CHECKING, Any

from hitlessd.accesslog import PlainLog, access_log
from hitlessd.events import Event
from hitlessd.model import Frontend
from hitlessd.table import RowKey
from hitlessd.worker.connection import Connection
from hitlessd.worker.counters import Account, Tally
from hitlessd.worker.gate import Rate, Rules
from hitlessd.worker.http.connection import HostConnection, HttpConnection
from hitlessd.worker.http.policy import Policy
from hitlessd.worker.preface import await_header
from hitlessd.worker.relay import Side, ignore
from hitlessd.worker.route import Route
from hitlessd.worker.routing import Router, route
from hitlessd.worker.timers import NEVER, Timed

if TYPE_CHECKING:
    from collections.abc import Callable

    from hitlessd.logrecord import LogRecord
    from hitlessd.worker.backend import LiveBackend, LiveServer
    from hitlessd.worker.loop import Worker
    from hitlessd.worker.setup import WorkerSetup

__all__ = ["LiveFrontend", "LiveListener"]

_Socket, _STREAM = socket.SocketType, int(socket.SOCK_STREAM)
_LISTENER_EVENTS = select.EPOLLIN | select.EPOLLEXCLUSIVE
#: Connections accepted from one listener in one turn, at most.
_BURST = 16
_ENOUGH = 4
#: accept(2) cannot get what it needs; trying on would spin.
_CAPACITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: accept(2) cannot be done on this listener, as when a foreign process that holds it too has shut it down.
_UNUSABLE = frozenset({errno.EINVAL, errno.EBADF, errno.ENOTSOCK})
#: Seconds until such a listener is tried again.
_RETRY = 1.0
#: More connections than ever wait at a listener (listen(2), net.core.somaxconn).
_MOST_WAITING = 65536
_UNACKED = 24  # where struct tcp_info has tcpi_unacked: for a listening socket, how many wait to be accepted


class LiveListener:
    """Our copy of a listening socket that others hold too: never shut down, and out of epoll before it closes."""

    def __init__(
        self, worker: Worker, frontend: LiveFrontend, sock: socket.socket, number: int, accept_proxy: bool = False
    ) -> None:
        """`number`: its place in WorkerSetup.listeners, by which main names it."""
        self.number = number
        self.worker = worker
        self.frontend = frontend
        #: What a connection does first.
        self.first = await_header if accept_proxy else frontend.first
        self.family = int(sock.family)
        self.sock = socket.SocketType(self.family, _STREAM, 0, sock.detach())
        self.sock.setblocking(False)
        self.fd = self.sock.fileno()
        self.armed = False
        self.bucket = 0
        self._burst = 1
        self._enough = 0  # bursts in a row that did not suffice
        self._unusable_until = NEVER
        self._tried_again = -_RETRY  # when, on the loop's clock

    def arm(self, wanted: bool) -> None:
        """Have epoll watch it, or not."""
        wanted = wanted and self._unusable_until == NEVER
        if wanted == self.armed:
            return
        self.armed = wanted
        if wanted:
            self.worker.handlers[self.fd] = self.on_event
            self.worker.epoll.register(self.fd, _LISTENER_EVENTS)
        else:
            self.worker.epoll.unregister(self.fd)
            self.worker.handlers[self.fd] = ignore

    def on_event(self, events: int) -> None:
        """Somebody connects."""
        burst = self._burst
        accepted = self.accept(burst)
        # To try in vain costs as much as a quarter of a connection: ask for as many as there lately were.
        if accepted < burst:
            self._burst = max(accepted, 1)
            self._enough = 0
        else:
            self._enough += 1
            if self._enough == _ENOUGH:
                self._burst = min(burst * 2, _BURST)
                self._enough = 0

    def waiting(self) -> int:
        """How many wait to be accepted now, at most."""
        if self.family == socket.AF_UNIX:
            return _MOST_WAITING
        try:
            info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
        except OSError:
            return _MOST_WAITING
        return int.from_bytes(info[_UNACKED:], sys.byteorder)

    def accept(self, most: int = 0) -> int:
        """Accept until nobody waits, at most `most` connections (0: all who wait now); returns how many.

        Limits end it only when `most` is given: who drains a listener must not leave anybody behind. Those who come
        meanwhile may be too many for us ever to end, and are not ours: they wake whoever still watches the listener.
        """
        worker, frontend, first, family = self.worker, self.frontend, self.first, self.family
        # What socket.accept() is made of: its object of a derived class costs 0.7 us a connection more.
        take = self.sock._accept  # type: ignore[attr-defined]
        connections = worker.connections
        accepted = 0
        end = most or self.waiting()
        rules, rate = frontend.rules, frontend.rate
        while accepted < end:
            if rate is not None and most and rate.full():
                worker.arm_at(frontend)
                worker.limited(frontend, rate.limit)
                break
            try:
                fd, address = take()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _CAPACITY:
                    worker.exhausted(f"cannot accept on {frontend.name}: {error.strerror}", frontend=frontend.name)
                    break
                if error.errno in _UNUSABLE:
                    self._give_up(error)
                    break
                accepted += 1  # it has left again, or the network had an error for it (accept(2))
                continue
            accepted += 1
            sock = _Socket(family, _STREAM, 0, fd)
            if rules is not None and not rules.admit(sock, address):
                sock.close()
                continue
            conn = frontend.connection(worker, frontend, sock, address)
            try:
                conn.begin(first)
            except Exception:
                worker.crashed(conn)
            if rate is not None:
                rate.count()
            if len(connections) >= worker.limit or frontend.sessions >= frontend.limit:
                worker.arm_at(frontend)
                worker.limited(frontend)
                if most:
                    break
        return accepted

    def _give_up(self, error: OSError) -> None:
        """Level-triggered, it would wake us for ever: let it be for a while."""
        worker = self.worker
        if worker.now - self._tried_again < _RETRY:
            # Not at once: a predecessor may let it rest for an operator, which we are told a little later.
            worker.complain(
                f"cannot accept on {self.frontend.name}: {error.strerror}; somebody may have shut its socket down",
                event=Event.ACCEPT_FAILED,
                frontend=self.frontend.name,
            )
        if not self.bucket:
            self._unusable_until = worker.now + _RETRY
            worker.wheel.add(self, self._unusable_until)
        self.arm(False)

    def deadline(self) -> float:
        return self._unusable_until

    looked_at = deadline

    def expired(self) -> None:
        self._unusable_until = NEVER
        self._tried_again = self.worker.now
        self.worker.arm_at(self.frontend)

    def begin_again(self) -> None:
        """It listens again: whatever was wrong with it is over."""
        self.worker.wheel.remove(self)
        self._unusable_until = NEVER

    def close(self) -> None:
        self.worker.wheel.remove(self)
        self.arm(False)
        self.sock.close()


class LiveFrontend(Tally):
    """A frontend: its counters, limits and listeners."""

    def __init__(self, worker: Worker, config: Frontend, backend: LiveBackend) -> None:
        row = worker.ledger.row(RowKey("frontend", config.name))
        # With one backend for all, its row follows from ours; else every connection enters the one that it gets.
        self.bound = config.mode == "tcp" and not config.use_backend
        super().__init__(worker.ledger, row, [worker.process, backend] if self.bound else [worker.process])
        self.name: str = config.name
        self.codes = [0] * 10 if config.mode == "http" else None
        self.config = config
        self.policy = Policy(config)
        self.first_is_fresh = backend.config.http_reuse != "always"  # connect() knows what `aggressive` means
        #: How the targets of requests begin that main answers.
        self.pages = tuple(policy.page.prefix for policy in (self.policy, backend.policy) if policy.page is not None)
        http = HostConnection if self.pages else HttpConnection
        self.connection = http if config.mode == "http" else Connection
        self.client_side: type[Side] = self.connection.client_side
        #: What a connection does as soon as its client is known.
        self.first: Callable[[Any], None] = self.connection.start
        self.router: Router | None = None
        if config.use_backend:
            self.router = Router(config.use_backend, worker.backends, backend, config.inspect_delay)
            if config.mode == "tcp":
                self.first = route
        #: Who is let in, and how many a second.
        self.rules = Rules(config.tcp_rules, config.name, row) if config.tcp_rules else None
        self.rate = Rate(worker, row, config.rate_limit, self) if config.rate_limit else None
        setup = worker.setup
        #: Logs a connection, or its exchange, that ends; None: this frontend logs nothing.
        self.access_log = access_log(
            config, setup.access or PlainLog(setup.log), self.connection.log_source(worker, self)
        )
        # The wheel's bucket for those who come in this turn; see Connection.begin().
        self.bucket_turn = -1
        self.bucket_key = 0
        self.bucket: dict[Timed, None] = {}
        self.backend: LiveBackend = backend
        self.retired = False  # the configuration has it no more: its connections end as soon as they can
        self.direct = False
        self.find_way()
        self.route: Route = Route.of(config, backend.config)
        self._routes = {backend: self.route}
        #: Of HTTP: by server, what direct exchanges add up to.
        self.accounts: dict[LiveServer, Account] = {}
        self._workers = worker.table.workers
        self.limit = self.share()
        self.listeners: list[LiveListener] = []

    def record_log(self, setup: WorkerSetup) -> Callable[[LogRecord], None]:
        """As access_log, of records: for what seldom comes."""
        log = access_log(self.config, setup.access or PlainLog(setup.log))
        assert log is not None
        return log

    @property
    def open(self) -> bool:
        """Whether it accepts anybody."""
        return not self.config.disabled

    def share(self) -> int:
        """This worker's part of its maxconn."""
        # The configured limit is for all workers together.
        return -(-self.config.maxconn // self._workers) if self.config.maxconn else 1 << 60

    def find_way(self) -> None:
        """Of HTTP: whether requests need no more than to be passed on to the one backend."""
        config, backend = self.config, self.backend
        self.direct = (
            config.mode == "http"
            and not self.retired
            and self.policy.idle
            and backend.policy.idle
            and not (config.use_backend or backend.config.cookie or backend.config.http_reuse == "never")
            and not any(server.send_proxy for server in backend.servers)
        )

    def account_with(self, server: LiveServer) -> Account:
        """Where the exchanges with that server are counted."""
        account = self.accounts.get(server)
        if account is None:
            account = self.accounts[server] = Account(self, server.backend, server)
        return account

    def route_to(self, backend: LiveBackend) -> Route:
        """What we and that backend say together."""
        route = self._routes.get(backend)
        if route is None:
            route = self._routes[backend] = Route.of(self.config, backend.config)
        return route
