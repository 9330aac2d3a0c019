"""Backends and servers as a worker sees them: which are usable, who gets a connection, who waits for a slot."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hitlessd.balance import NOBODY, Chooser, chooser
from hitlessd.model import Backend, InetAddress, Server
from hitlessd.table import Column, RowKey, ServerState
from hitlessd.worker.counters import Tally
from hitlessd.worker.observation import Observation
from hitlessd.worker.pool import Pool
from hitlessd.worker.timers import NEVER

if TYPE_CHECKING:
    from hitlessd.worker.connection import Connection
    from hitlessd.worker.loop import Worker

__all__ = ["LiveBackend", "LiveServer"]

_SCUR, _QCUR, _LBTOT = int(Column.SCUR), int(Column.QCUR), int(Column.LBTOT)
#: Seconds between two looks at the queue when nobody has woken us; a lost wake-up costs no more than this.
_RECHECK = 0.1


class LiveServer(Tally):
    """A server and its counters."""

    def __init__(self, worker: Worker, backend: LiveBackend, server: Server) -> None:
        super().__init__(worker.ledger, worker.ledger.row(RowKey("server", backend.name, server.name)), [])
        self.backend = backend
        self.name = server.name
        self.config = server
        self.maxconn = server.maxconn
        self.state = ServerState.READY
        self.running = True  # neither down nor in maintenance
        #: Of failures to connect; of connections, too, where only these count as successes; of HTTP.
        self.observer: Observation | None = None
        self.observer4: Observation | None = None
        self.observer7: Observation | None = None
        if server.observe and server.check:
            self.observer = Observation(worker, backend.name, server)
            if server.observe == "layer4":
                self.observer4 = self.observer
            else:
                self.observer7 = self.observer
        self.weight = server.weight
        self.family = int(server.address.family)
        self.inet = isinstance(server.address, InetAddress)
        self.address = server.address.sockaddr
        self.send_proxy = server.send_proxy
        self.any_port = isinstance(server.address, InetAddress) and server.address.port == 0
        self.pool = Pool(worker, self) if backend.config.mode == "http" else None
        self.codes = [0] * 10 if self.pool is not None else None
        self._slots = worker.slots
        self._slot = self.row.slot
        self._scur_at = self.row.start + _SCUR

    def total(self) -> int:
        """Connections of all workers of this generation."""
        at = self._scur_at
        return sum([slot[at] for slot in self._slots]) if self.row.number >= 0 else self.sessions

    def count(self, change: int) -> None:
        """One more or one fewer of ours, seen by all workers at once."""
        sessions = self.sessions = self.sessions + change
        self._slot[self._scur_at] = sessions  # nobody shares a server's row
        if not self.dirty:
            self.dirty = True
            self.ledger.dirty.append(self)

    def claim(self) -> bool:
        """Take a slot, unless that is one too many over all workers. Ours is counted first: two cannot both win."""
        self.count(1)
        if self.maxconn and self.total() > self.maxconn:
            self.count(-1)
            return False
        return True

    def collect(self, wall: int) -> None:
        opened = self.opened
        if opened:
            for row in (self.row, self.backend.row):
                row.lbtot = row.slot[row.start + _LBTOT] = row.lbtot + opened
        super().collect(wall)


class LiveBackend(Tally):
    """A backend: its usable servers, its algorithm and its queue."""

    def __init__(self, worker: Worker, config: Backend) -> None:
        super().__init__(worker.ledger, worker.ledger.row(RowKey("backend", config.name)), [])
        self.worker = worker
        self.name = config.name
        self.config = config
        self.codes = [0] * 10 if config.mode == "http" else None
        self.servers = [LiveServer(worker, self, server) for server in config.servers]
        self.usable: list[LiveServer] = []
        self.only: LiveServer | None = None  # the one to choose, when there is no choice
        self.by_source = config.balance == "source"
        self.limited = False  # a usable server has a maxconn
        self.queue: dict[Connection, None] = {}
        self.bucket = 0
        self._recheck_at = NEVER
        self._handed = 0
        self._chooser: Chooser | None = None
        self._made_of: list[tuple[int, int]] = []
        self.refresh()

    def refresh(self) -> None:
        """States or weights have changed: look at the table."""
        table = self.worker.table
        for server in self.servers:
            if server.row.number >= 0:
                server.state = table.state(server.row.number)
                server.weight = table.weight(server.row.number)
                server.running = table.running(server.row.number)
        ready = [s for s in self.servers if s.running and s.state is ServerState.READY and s.weight]
        # As with HAProxy, backup servers count only when nothing else is left, and then only the first.
        usable = [s for s in ready if not s.config.backup] or ready[:1]
        made_of = [(self.servers.index(s), s.weight) for s in usable]
        if made_of == self._made_of:
            return
        self._made_of = made_of
        self.usable = usable
        self.limited = any(s.maxconn for s in usable)
        self._chooser = None
        self.only = usable[0] if len(usable) == 1 and not self.limited else None
        if usable:
            weights, names = [s.weight for s in usable], [s.name for s in usable]
            self._chooser = chooser(self.config.balance, weights, names, self.worker.index)

    def _load(self, position: int) -> int:
        return self.usable[position].total()

    def choose(self, conn: Connection, avoid: LiveServer | None = None) -> LiveServer | None:
        """A server with a slot claimed for the connection; None when none is usable or all are full (see `usable`)."""
        only = self.only
        if only is not None:
            only.count(1)
            return only
        algorithm = self._chooser
        if algorithm is None:
            return None
        usable = self.usable
        key = conn.source_key() if self.by_source else b""
        if not self.limited and avoid is None:
            position = algorithm.choose(key, self._load, NOBODY)
            if position is None:
                return None
            server = usable[position]
            server.count(1)
            return server
        full: set[int] = set()
        if avoid is not None and len(usable) > 1 and avoid in usable:
            full.add(usable.index(avoid))
            if self.by_source:
                # The hash knows one server only; another one is the next in turn.
                others = [s for s in usable[min(full) :] + usable[: min(full)] if s is not avoid]
                return next((s for s in others if s.claim()), None)
        while True:
            position = algorithm.choose(key, self._load, full)
            if position is None:
                return None
            if usable[position].claim():
                return usable[position]
            full.add(position)

    def enqueue(self, conn: Connection) -> None:
        """Let it wait for a slot, at the end of the queue."""
        self.queue[conn] = None
        self._count_queue()
        if not self.bucket:
            self._recheck_at = self.worker.now + _RECHECK
            self.worker.wheel.add(self, self._recheck_at)
        # A slot that was freed before others could see us waiting would wake nobody: look once more.
        self.worker.dispatch.add(self)

    def sort_queue(self) -> None:
        """Some have come from another worker: who came first is served first."""
        self.queue = dict.fromkeys(sorted(self.queue, key=lambda conn: conn.started))

    def dequeue(self, conn: Connection) -> None:
        """It waits no more, for whatever reason."""
        del self.queue[conn]
        self._count_queue()
        if not self.queue:
            self.worker.wheel.remove(self)

    def _count_queue(self) -> None:
        row = self.row
        row.qcur = len(self.queue)
        row.qmax = max(row.qmax, row.qcur)
        row.slot[row.start + _QCUR] = row.qcur
        row.change()

    def freed(self) -> None:
        """A slot of a limited server is free again: whoever waits, here or in another worker, may have it."""
        if self.row.number < 0:
            self.worker.dispatch.add(self)
            return
        at = self.row.start + _QCUR
        index = self.worker.index
        waiting = [(i, slot[at]) for i, slot in enumerate(self.worker.slots) if i != index and slot[at]]
        others = sum(count for _, count in waiting)
        mine = len(self.queue)
        if others:
            # Taking turns in proportion, so that a long queue here does not starve a short one there.
            self._handed = (self._handed + 1) % (mine + others)
            if self._handed < others:
                for i, _ in waiting:
                    try:
                        os.eventfd_write(self.worker.setup.wake[i], 1)
                    except BlockingIOError:
                        pass
                return
        if mine:
            self.worker.dispatch.add(self)

    def serve_queue(self) -> None:
        """Give slots to those who wait, first come first served."""
        for conn in list(self.queue):
            server = self.choose(conn)
            if server is None:
                if self.by_source and self.usable:
                    continue  # its own server is full; another one's may have a slot
                return
            self.dequeue(conn)
            try:
                conn.connect(server)
            except Exception:
                self.worker.crashed(conn)

    def deadline(self) -> float:
        return self._recheck_at

    looked_at = deadline

    def expired(self) -> None:
        """Nobody has woken us for a while."""
        if self.queue:
            self._recheck_at = self.worker.now + _RECHECK
            self.worker.wheel.add(self, self._recheck_at)
            self.worker.dispatch.add(self)
