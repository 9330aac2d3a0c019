"""The worker's event loop: epoll and turns.

A turn takes what epoll reports, does a bounded amount of work for each, then settles: closes what was closed, serves
queues, writes the counters. It sleeps until something is due, and for ever when nothing is.

A busy worker writes its counters less often, but before it sleeps. With one server, what a turn brings is added up
anyway. With a hundred, each event is about another one, and to write each after each event was a quarter of the cost of
an HTTP request.
"""

from __future__ import annotations

import gc
import itertools
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import NoReturn

from hitlessd.bugs import account
from hitlessd.events import Event
from hitlessd.model import Backend, Frontend
from hitlessd.quota import Quota
from hitlessd.table import PROCESS
from hitlessd.worker.backend import LiveBackend, LiveServer
from hitlessd.worker.connection import UNDECIDED, Connection, State
from hitlessd.worker.counters import Ledger, Tally
from hitlessd.worker.frontend import LiveFrontend, LiveListener
from hitlessd.worker.http.side import HttpSide
from hitlessd.worker.immigration import Immigration
from hitlessd.worker.lanes import Lanes
from hitlessd.worker.orders import Orders
from hitlessd.worker.parking import Parking
from hitlessd.worker.pipes import BUDGET, PipePool
from hitlessd.worker.relay import SCRATCH, Side
from hitlessd.worker.resumption import Resumption
from hitlessd.worker.setup import WorkerSetup
from hitlessd.worker.timers import NEVER, Wheel

__all__ = ["Worker", "run"]

#: Events taken from epoll at once: with TURN bytes each this bounds how long a ping waits.
_EVENTS = 128
#: No request has come yet.
_IDLE = UNDECIDED | {State.WAITING}
#: Seconds without accepting after accept(2) failed for want of something.
_REST = 0.1
#: Seconds between two log lines of the same kind.
_PERIOD = 30.0
#: Seconds for which a busy worker may keep counters to itself.
_UNSEEN = 0.01
_MANY = 1 << 60


#: socket.socket.close() adds bookkeeping for makefile(), which nobody calls here.
close_socket = socket.SocketType.close


class _Rest:
    """A pause in accepting, as a member of the wheel."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.bucket = 0
        self.until = NEVER

    def deadline(self) -> float:
        return self.until

    looked_at = deadline

    def expired(self) -> None:
        self.until = NEVER
        self.worker.resting = False
        self.worker.arm()


class _Settlement:
    """What holds messages back, as a member of the wheel."""

    def __init__(self, worker: Worker) -> None:
        self.quota = Quota(worker.log, lambda: worker.now, self._wake, 1, _PERIOD)
        self.bucket = 0
        self._worker = worker
        self._at = NEVER

    def _wake(self, when: float) -> None:
        self._at = when
        self._worker.wheel.remove(self)
        self._worker.wheel.add(self, when)

    def deadline(self) -> float:
        return self._at

    looked_at = deadline

    def expired(self) -> None:
        self._at = NEVER
        self.quota.settle()


class Worker:
    """One worker. `run()` is its process; tests call turn() and pass a clock."""

    # More attributes than a class without slots keeps fast ones of.
    __slots__ = (
        "_decisions",
        "_epoch",
        "_full",
        "_may_accept",
        "_rest",
        "_settlement",
        "_spared",
        "_unwritten",
        "_wake_fd",
        "_write_at",
        "accepting",
        "arrivals",
        "backends",
        "behind",
        "clock",
        "closing",
        "connections",
        "dispatch",
        "draining",
        "emigrating",
        "epoll",
        "frontends",
        "handlers",
        "idle",
        "index",
        "lanes",
        "lazy",
        "ledger",
        "limit",
        "log",
        "next_number",
        "now",
        "offset",
        "orders",
        "parking",
        "pipes",
        "process",
        "queueing",
        "ready",
        "resting",
        "resumptions",
        "scratch",
        "setup",
        "slots",
        "table",
        "throttled",
        "turns",
        "view",
        "wheel",
        "words",
    )

    def __init__(self, setup: WorkerSetup, clock: Callable[[], float] = time.monotonic) -> None:
        self.setup = setup
        self.index = setup.index
        self.table = setup.table
        self.log = setup.log
        self.clock = clock
        self.now = clock()
        #: CLOCK_REALTIME less our clock.
        self.offset = time.time() - self.now
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[int], object]] = {}
        self.closing: list[socket.SocketType] = []
        self.behind = False  # for those who are `ready`: more has happened than a turn takes
        self.ready: deque[Side | Resumption] = deque()
        self.dispatch: set[LiveBackend] = set()
        # In the book of parked connections, what was read and not yet sent outlives us.
        park = setup.park
        self.words = park.book.words if park else memoryview(bytearray(8)).cast("Q")
        self.scratch = park.book.scratch if park else memoryview(bytearray(SCRATCH))
        self.view = self.scratch
        self.wheel = Wheel()
        self.next_number = itertools.count(setup.first_number).__next__
        self.connections: dict[Connection, None] = {}
        self.limit = setup.maxconn or _MANY
        self.idle = 0  # connections to servers that wait for a request
        self.turns = 0
        #: Whether counters may wait while it is busy. Who calls turn() wants to see them behind it.
        self.lazy = False
        self._unwritten = False  # some do
        self._write_at = -NEVER  # until when
        self.accepting = False
        self.throttled = False  # a listener is not armed because of a limit
        self.resting = False
        self.draining = False
        self._may_accept = False  # as arm() last found
        self._full: set[LiveFrontend] = set()  # that have as many sessions as they may
        self._spared: LiveServer | None = None
        self._rest = _Rest(self)
        self._settlement = _Settlement(self)
        self.slots = [self.table.slot(index) for index in range(self.table.workers)]
        general = setup.config.global_
        self.parking = Parking(self, park, setup.exact and general.crash_proof, general.park_after, setup.park_limit)
        self.pipes = PipePool(BUDGET // self.table.workers, self.parking)
        self.resumptions: set[Resumption] = set()
        self.ledger = Ledger(self.table, self.index)
        self.process = Tally(self.ledger, self.ledger.row(PROCESS), [])
        # First of all: what changes while the backends are made is seen afterwards.
        self._epoch = self.table.epoch
        self._decisions = self.table.decisions()
        self.queueing: set[LiveBackend] = set()  # those in which somebody waits
        self.backends = {backend.name: LiveBackend(self, backend) for backend in setup.config.backends}
        self.frontends = {
            frontend.name: LiveFrontend(self, frontend, self._default(frontend)) for frontend in setup.config.frontends
        }
        for number, (name, bind, sock) in enumerate(setup.listeners):
            if sock.fileno() < 0:
                continue  # closed for good by `shutdown frontend`
            frontend = self.frontends[name]
            frontend.listeners.append(LiveListener(self, frontend, sock, number, bind.accept_proxy))
        self.orders = Orders(self, setup.channel)
        self._wake_fd = setup.wake[setup.index]
        self.handlers[self._wake_fd] = self._on_wake
        self.epoll.register(self._wake_fd, select.EPOLLIN)
        self.lanes = Lanes(self)
        self.arrivals: set[Immigration] = set()
        self.emigrating = False
        self.write_counters()

    def _default(self, frontend: Frontend) -> LiveBackend:
        """Its default backend; without one, a backend without servers that is shown under its own name."""
        if frontend.default_backend:
            return self.backends[frontend.default_backend]
        nobody = LiveBackend(self, Backend("", 0, mode=frontend.mode))
        nobody.name = frontend.name
        return nobody

    # -- turns -------------------------------------------------------------------------------------------------------

    def turn(self, patience: float | None = None) -> int:
        """Wait for something to do, `patience` seconds at most (None: as long as it takes), and do it.

        Returns how many events there were."""
        handlers, wheel, clock = self.handlers, self.wheel, self.clock
        self.turns += 1
        due = wheel.next()
        if self.ready or self.dispatch:
            timeout = 0.0
        elif due == NEVER:
            timeout = -1.0 if patience is None else patience
        else:
            timeout = due - clock()
            if timeout < 0.0:
                timeout = 0.0
            if patience is not None and patience < timeout:
                timeout = patience
        # epoll rounds up to milliseconds, so it never wakes too early for a bucket.
        if not self._unwritten:
            found = self.epoll.poll(timeout, _EVENTS)
        else:
            found = self.epoll.poll(0.0, _EVENTS)
            if not found:
                self.write_counters()
                if timeout:
                    found = self.epoll.poll(timeout, _EVENTS)
        now = self.now = clock()
        if self.table.epoch != self._epoch:
            self._refresh()
        for fd, events in found:
            # By its end it may have made another one the handler, or none.
            handler = handlers[fd]
            try:
                handler(events)
            except Exception:
                self.crashed(getattr(handler, "__self__", None))
        if self.ready:
            self.behind = len(found) == _EVENTS
            for _ in range(len(self.ready)):
                side = self.ready.popleft()
                try:
                    side.resume()
                except Exception:
                    self.crashed(side)
        if due <= now:
            wheel.run(now)
        # One event, and the next may be long in coming. More, or one that was there before we slept: we are busy.
        self._unwritten = self.lazy and now < self._write_at and (self._unwritten or len(found) > 1)
        self.settle()
        return len(found)

    def settle(self) -> None:
        """The end of a turn."""
        closing = self.closing
        while closing or self.dispatch:
            if closing:
                for sock in closing:
                    close_socket(sock)
                closing.clear()
            # Who is served may fail to connect, and be closed in turn.
            while self.dispatch:
                backend = self.dispatch.pop()
                if backend.queue:
                    backend.serve_queue()
        ledger, parking = self.ledger, self.parking
        if not self._unwritten and (ledger.dirty or ledger.changed or ledger.accounts):
            self.write_counters()
        if parking.asleep and len(self.connections) != parking.known:
            parking.wake()

    def write_counters(self) -> None:
        """Let main and the other workers see our counters."""
        self._unwritten = False
        self._write_at = self.now + _UNSEEN
        self.ledger.write(self.now + self.offset)
        if self.parking.stale:
            self.parking.tell()

    def crashed(self, owner: object) -> None:
        """A bug met one connection: say so, close that one, go on. To be called while the exception is handled."""
        text = f"cannot go on with a connection because of a bug in hitlessd: {account()}"
        self.log("err", text, event=Event.BUG)
        conn = owner.conn if isinstance(owner, Side) else owner
        if not isinstance(conn, Connection):
            return
        try:
            conn.cause = conn.cause or "ID"
            conn.close()
        except Exception:
            text = f"cannot close a connection because of a bug in hitlessd: {account()}"
            self.log("crit", text, event=Event.BUG)

    def _refresh(self) -> None:
        """Main has changed the state or weight of a server."""
        self._epoch = self.table.epoch
        known, found = self._decisions, self.table.decisions()
        self._decisions = found
        rows = {row for row, (old, new) in enumerate(zip(known, found, strict=True)) if old != new}
        for backend in self.backends.values():
            if not rows.isdisjoint([server.row.number for server in backend.servers]):
                backend.refresh(rows)
                self.dispatch.add(backend)

    def follow_clock(self) -> None:
        """CLOCK_REALTIME may have been set; what we write into the table and into logs is only so right as when we last
        looked."""
        self.offset = time.time() - self.clock()

    def realtime(self, at: float) -> float:
        """CLOCK_REALTIME of a time of our clock."""
        return time.time() - (self.clock() - at)

    def complain(self, message: str, event: Event | None = None, **fields: object) -> None:
        """Log an error that may come in thousands: each text once in 30 seconds at most."""
        self._settlement.quota("err", message, event=event, about=message, **fields)

    def limited(self, frontend: LiveFrontend, rate: int = 0) -> None:
        """Whoever connects now waits: `rate` new sessions a second have come, or there are as many as may be."""
        if rate:
            limit, what = rate, f"frontend {frontend.name} lets in no more than {rate} sessions a second"
        elif len(self.connections) >= self.limit:
            limit, what = self.limit, f"worker {self.index} serves no more than {self.limit} connections"
        else:
            limit = frontend.limit
            what = f"worker {self.index} serves no more than {limit} connections of frontend {frontend.name}"
        self._settlement.quota(
            "warning",
            f"{what}: new clients wait",
            event=Event.LIMIT_REACHED,
            about=what,
            worker=self.index,
            frontend=frontend.name,
            limit=limit,
        )

    # -- accepting ---------------------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Watch the listeners that may be accepted from now, and only those."""
        self._may_accept = self.accepting and not self.resting and len(self.connections) < self.limit
        self._full.clear()
        for frontend in self.frontends.values():
            self._arm(frontend)

    def arm_at(self, frontend: LiveFrontend) -> None:
        """The same, when nothing has changed but with one frontend: there may be thousands."""
        if self._may_accept != (self.accepting and not self.resting and len(self.connections) < self.limit):
            self.arm()
        elif self.frontends.get(frontend.name) is frontend:
            self._arm(frontend)

    def _arm(self, frontend: LiveFrontend) -> None:
        below = frontend.sessions < frontend.limit
        if below:
            self._full.discard(frontend)
        else:
            self._full.add(frontend)
        ready = self._may_accept and below and frontend.open
        for listener in frontend.listeners:
            listener.arm(ready and (frontend.rate is None or frontend.rate.until <= self.now))
        self.throttled = self.accepting and (not self._may_accept or bool(self._full))

    def limit_to(self, share: int) -> None:
        """So many connections from now on, 0 for any number; nobody is cut off."""
        self.limit = share or _MANY
        for _ in range(min(self.idle, self.idle + len(self.connections) - self.limit)):
            self.spare_idle()
        self.arm()

    def exhausted(self, message: str, **fields: object) -> None:
        """accept(2) lacks descriptors or memory: level-triggered listeners would spin, so pause."""
        self.complain(message, event=Event.ACCEPT_FAILED, **fields)
        self.rest()

    def rest(self) -> None:
        """Accept nobody for a moment."""
        if not self.resting:
            self.resting = True
            self._rest.until = self.now + _REST
            self.wheel.add(self._rest, self._rest.until)
        self.arm()

    def accept(self, wanted: bool) -> None:
        """Accept from now on, or no more."""
        self.accepting = wanted
        self.arm()

    def stop_accepting(self, leave: Container[int] = ()) -> None:
        """Accept no more, once nobody waits any more; but `leave` those who wait at these listeners."""
        # Out of epoll first: a wake-up that was meant for us and is not taken would be lost.
        self.accept(False)
        for frontend in self.frontends.values():
            for listener in frontend.listeners:
                if listener.number not in leave and frontend.open:
                    listener.accept()

    def drain(self, leave: Container[int]) -> None:
        """Accept no more, for ever, and end when nobody is connected any more. Who waits at a listener that the
        successor has is the successor's."""
        self.stop_accepting(leave)
        for frontend in self.frontends.values():
            for listener in frontend.listeners:
                listener.close()
            frontend.listeners.clear()
        self.draining = True

    def welcome(self, connections: Sequence[Connection]) -> None:
        """Connections of another worker have come, and are ours from now on; to be parked by the caller."""
        for conn in connections:
            frontend = conn.frontend
            # Of a frontend that is no more, nobody knows the rules: no request may begin there.
            retired = frontend.retired and frontend.codes is not None and conn.state in _IDLE
            if conn.state is not State.CLOSED and (
                frontend.config.shutdown_on_reload or conn.backend.config.shutdown_on_reload or retired
            ):
                conn.cause = conn.cause or "KD"
                conn.close()
        if any(conn.state is State.QUEUED for conn in connections):
            for backend in self.backends.values():
                backend.sort_queue()
        if self.accepting:
            self.arm()  # a limit may have been reached

    def sweep(self) -> None:
        """Another worker has died, and with it the wake-ups that only it got."""
        if self.accepting and not self.resting:
            for frontend in self.frontends.values():
                for listener in frontend.listeners:
                    if listener.armed:
                        listener.accept(max(1, listener.waiting()))

    def every_frontend(self) -> list[LiveFrontend]:
        """Those of the configuration, and those that connections have come with."""
        return [*self.frontends.values(), *self.lanes.frontends()]

    def idle_sides(self, backends: Callable[[LiveBackend], bool]) -> list[HttpSide]:
        """The connections that wait in the pools of these backends."""
        servers = [server for backend in self.backends.values() if backends(backend) for server in backend.servers]
        return [side for server in servers if server.pool is not None for side in server.pool.sides()]

    @property
    def room_for_idle(self) -> bool:
        """Whether one more connection to a server may wait for a request."""
        return self.idle + len(self.connections) < self.limit

    def spare_idle(self) -> None:
        """There would be more connections to servers than are planned for: end one that is idle."""
        # There may be more, where there was one.
        if self._spared is not None and self._spared.pool is not None and self._spared.pool.drop_oldest():
            return
        for backend in self.backends.values():
            for server in backend.servers:
                if server.pool is not None and server.pool.drop_oldest():
                    self._spared = server
                    return

    # -- orders ------------------------------------------------------------------------------------------------------

    def _on_wake(self, events: int) -> None:
        """Another worker has freed a slot that one of our queues may want."""
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            pass
        self.dispatch.update(self.queueing)

    @property
    def finished(self) -> bool:
        """Told to drain, and all is drained."""
        moving = self.arrivals or self.emigrating or self.resumptions
        return self.draining and not self.connections and not moving and self.orders.answered

    def close(self) -> None:
        """Give back every descriptor that is the worker's own; for tests."""
        for conn in list(self.connections):
            conn.close()
        for backend in self.backends.values():
            for server in backend.servers:
                if server.pool is not None:
                    server.pool.clear()
        for frontend in self.frontends.values():
            for listener in frontend.listeners:
                listener.close()
            if frontend.rate is not None:
                self.wheel.remove(frontend.rate)
        self.settle()
        self.pipes.close()
        self.epoll.close()
        for slot in self.slots:
            slot.release()
        self.ledger.slot.release()


def run(setup: WorkerSetup) -> NoReturn:
    """A worker's life, from the fork to its end; never returns."""
    worker = Worker(setup)
    # Connections are taken apart when they end, so the collector finds nothing: let it look seldom, and never at what
    # was there before.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    turn = worker.turn
    worker.lazy = True
    while not worker.finished:
        turn()
    worker.write_counters()
    os._exit(0)
