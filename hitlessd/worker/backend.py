"""Backends and servers as a worker sees them: which are usable, who gets a connection, who waits for a slot."""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from functools import partial
from typing import TYPE_CHECKING, Protocol

from hitlessd.balance import (
    NOBODY,
    Chooser,
    Hashed,
    RankedLeastConn,
    RoundRobin,
    chooser,
    is_hashed,
    is_static,
    unscaled,
)
from hitlessd.dataclass import replace
from hitlessd.hashing import uri_key
from hitlessd.model import Backend, InetAddress, Server
from hitlessd.table import Column, RowKey, ServerState, Table
from hitlessd.worker.counters import NO_CODES, Account, Row, Tally
from hitlessd.worker.http.policy import Policy
from hitlessd.worker.http.pool import Pool
from hitlessd.worker.observation import Observation
from hitlessd.worker.timers import GRAIN, NEVER

if TYPE_CHECKING:
    from hitlessd.http.heads import Response
    from hitlessd.worker.connection import Connection
    from hitlessd.worker.loop import Worker

__all__ = ["Asked", "LiveBackend", "LiveServer"]

_SCUR, _QCUR = int(Column.SCUR), int(Column.QCUR)
#: Seconds between two looks at the queue when nobody has woken us; a lost wake-up costs no more than this.
_RECHECK = 0.1
#: Full servers that are found one by one, before all are looked for at once.
_TRIES = 8
#: Steps of `slowstart`; it begins at the second, which is a tenth.
_STEPS = 20
_FIRST_STEP = 2
#: What no set of usable servers is made of.
_NOTHING = [(-1, 0)]


def _since(head: tuple[Connection, object]) -> float:
    return head[0].waiting_since


class Asked(Protocol):
    """A request, as far as balancing asks about it."""

    @property
    def target(self) -> bytes: ...

    def values(self, name: bytes) -> list[bytes]: ...


def _source(conn: Connection) -> bytes:
    return conn.source_key()


def _uri(config: Backend, conn: Connection) -> bytes:
    request = conn.request
    if request is None:
        return b""
    return uri_key(request.target, config.balance_uri_len, config.balance_uri_depth, config.balance_uri_whole)


def _header(name: bytes, conn: Connection) -> bytes:
    request = conn.request
    if request is None:
        return b""
    # As with HAProxy, what stands before the first comma.
    for value in request.values(name):
        return value.partition(b",")[0].strip()
    return b""


def _key_of(config: Backend) -> Callable[[Connection], bytes]:
    """What a connection is hashed by; b"" for none."""
    if config.balance == "uri":
        return partial(_uri, config)
    if config.balance == "hdr":
        return partial(_header, config.balance_header.lower().encode())
    return _source


def _near(server: Server) -> bool:
    """Whether it is on this machine, so that nothing has to be waited for when it is connected to."""
    address = server.address
    return not isinstance(address, InetAddress) or address.host.startswith("127.") or address.host == "::1"


class LiveServer(Tally):
    """A server and its counters."""

    # One piece of memory instead of two: with thousands of servers, no cache knows the next one.
    __slots__ = (
        "_alone",
        "_scur_at",
        "_slot",
        "_slots",
        "_up_at",
        "_up_since",
        "_worker",
        "account",
        "address",
        "any_port",
        "backend",
        "config",
        "family",
        "inet",
        "latest",
        "maxconn",
        "name",
        "near",
        "observer",
        "observer4",
        "observer7",
        "place",
        "pool",
        "running",
        "send_proxy",
        "state",
        "usable",
        "weight",
    )

    def __init__(self, worker: Worker, backend: LiveBackend, server: Server) -> None:
        super().__init__(worker.ledger, worker.ledger.row(RowKey("server", backend.name, server.name)), [])
        self.backend = backend
        self.name = server.name
        self._worker = worker
        self.configure(server)
        self.state = ServerState.READY
        self.weight = server.weight
        self.usable = server.weight > 0  # balancing may choose it
        self.running = True  # those who belong to it may go there, though it drains
        self.place = -1  # where the backend ranks it, if it ranks at all
        self._up_since = 0
        self._up_at = -NEVER
        self.pool = Pool(worker, self) if backend.config.mode == "http" else None
        self.codes = [0] * 10 if self.pool is not None else None
        self.latest: Response | None = None  # of HTTP: what it said last, if there is nothing unusual to it
        self._slots = worker.slots
        self._alone = len(worker.slots) == 1
        #: Of the frontend whose direct exchanges came here last.
        self.account: Account | None = None
        self._slot = self.row.slot
        self._scur_at = self.row.start + _SCUR

    def configure(self, server: Server) -> None:
        """Take what the configuration says of it. Later than at its birth, the backend is to be arrange()d then."""
        self.config = server
        self.maxconn = server.maxconn
        self.family = int(server.address.family)
        self.inet = isinstance(server.address, InetAddress)
        self.address = server.address.sockaddr
        self.any_port = isinstance(server.address, InetAddress) and server.address.port == 0
        self.near = _near(server)
        self.send_proxy = server.send_proxy
        #: Of failures to connect; of connections, too, where only these count as successes; of HTTP.
        self.observer: Observation | None = None
        self.observer4: Observation | None = None
        self.observer7: Observation | None = None
        if server.observe and server.check:
            self.observer = Observation(self._worker, self.backend.name, server)
            if server.observe == "layer4":
                self.observer4 = self.observer
            else:
                self.observer7 = self.observer

    def sit_on(self, row: Row) -> None:
        """Count there from now on, those included that are connected now."""
        if row is not self.row:
            self.row = row
            self.counted = 0
            self._slot = row.slot
            self._scur_at = row.start + _SCUR
            self.count(0)

    def retire(self) -> None:
        """It is no server of its backend any more, and nobody's: who has it in a cookie gets another one."""
        self.usable = self.running = False
        if self.pool is not None:
            self.pool.open(False)
            self._worker.wheel.remove(self.pool)

    def look(self, table: Table, now: float, wall: float) -> None:
        """Bring state and weight up to date. `now` is of the worker's clock, `wall` the CLOCK_REALTIME of it."""
        row = self.row.number
        if row >= 0:
            state, self.weight, self.running, self.usable, since = table.standing(row)
            if state != self.state:
                self.state = ServerState(state)
            if since != self._up_since:
                # Once only: if somebody sets the time of day later, the server does not grow older by that.
                self._up_since = since
                self._up_at = now - max(0.0, wall - since) if since else -NEVER

    def warmth(self, now: float) -> int:
        """How many of _STEPS parts of its weight and maxconn the server may have by `slowstart`."""
        age, whole = now - self._up_at, self.config.slowstart
        if age >= whole:
            return _STEPS
        return max(_FIRST_STEP, int(age / whole * _STEPS))

    def warmer_at(self, now: float) -> float:
        """When warmth() will give more, NEVER if it is complete."""
        step = self.warmth(now)
        if step == _STEPS:
            return NEVER
        return max(self._up_at + self.config.slowstart * (step + 1) / _STEPS, now + GRAIN)

    def total(self) -> int:
        """Connections of all workers of this generation."""
        if self._alone:
            return self.sessions
        at = self._scur_at
        return sum([slot[at] for slot in self._slots]) if self.row.number >= 0 else self.sessions

    def count(self, change: int) -> None:
        """One more or one fewer of ours, seen by all workers at once."""
        sessions = self.sessions = self.sessions + change
        self._slot[self._scur_at] = sessions  # nobody shares a server's row
        if change < 0 and self.place >= 0:
            self.backend.rank(self.place)
        if not self.dirty:
            self.dirty = True
            self.ledger.dirty.append(self)

    def full(self) -> bool:
        """Whether claim() would fail now."""
        return 0 < self.maxconn <= self.total()

    def claim(self) -> bool:
        """Take a slot, unless that is one too many over all workers. Ours is counted first: two cannot both win."""
        self.count(1)
        if self.maxconn and self.total() > self.maxconn:
            self.count(-1)
            return False
        return True

    def collect(self, wall: int) -> None:
        # As of any tally, spelt out: each of many connections is with another server.
        opened, row, sessions, peak = self.opened, self.row, self.sessions, self.peak
        slot, start = row.slot, row.start
        self.dirty = False
        change = sessions - self.counted
        if change:
            self.counted = sessions
            row.scur = slot[start] = row.scur + change  # Column.SCUR
        if opened:
            self.opened = 0
            slot[start + 4] += opened  # STOT
            slot[start + 16] += opened  # LBTOT
            slot[start + 17] = wall  # LASTSESS
            above = self.backend.row
            above.slot[above.start + 16] += opened
            if peak > row.smax:
                row.smax = slot[start + 1] = peak  # SMAX
        self.peak = sessions
        if self.bin or self.bout:
            slot[start + 5] += self.bin  # BIN
            slot[start + 6] += self.bout  # BOUT
            self.bin = self.bout = 0
            if self.spliced:
                slot[start + 18] += self.spliced  # SPLICED
                self.spliced = 0
        pool = self.pool
        if pool is not None:
            slot[start + 32], slot[start + 44] = len(pool.idle), pool.fresh  # IDLE, FRESH
            if peak > pool.lately:
                pool.lately = peak
                if peak > pool.need:
                    pool.need = peak
            if self.codes != NO_CODES:
                self.collect_codes()


class _Warming:
    """The next step of a `slowstart`, as a member of the wheel."""

    def __init__(self, backend: LiveBackend) -> None:
        self.backend = backend
        self.bucket = 0
        self.at = NEVER

    def deadline(self) -> float:
        return self.at

    looked_at = deadline

    def expired(self) -> None:
        backend = self.backend
        self.at = NEVER
        backend.refresh()
        backend.worker.dispatch.add(backend)


class LiveBackend(Tally):
    """A backend: its usable servers, its algorithm and its queue.

    Who must have a certain server waits for that one, who may have any for the first free slot. Of two for whom the
    same slot would do, the one who has waited longer gets it.
    """

    def __init__(self, worker: Worker, config: Backend) -> None:
        super().__init__(worker.ledger, worker.ledger.row(RowKey("backend", config.name)), [])
        self.worker = worker
        self.name: str = config.name
        self.config = config
        self.codes = [0] * 10 if config.mode == "http" else None
        self.policy = Policy(config)
        self.servers = [LiveServer(worker, self, server) for server in config.servers]
        self.by_cookie: dict[bytes, list[LiveServer]] = {}  # see from_client() in http/cookies.py
        self.usable: list[LiveServer] = []
        self.only: LiveServer | None = None  # the one to choose, when there is no choice
        self.limited = False  # a usable server has a maxconn
        self.watched = False
        self.queue: dict[Connection, LiveServer | None] = {}  # who waits, first come first, and for whom
        self.bucket = 0
        self._queues: dict[LiveServer | None, dict[Connection, None]] = {}  # the same by whom they wait for
        self._hashed = is_hashed(config)
        self._static = is_static(config)
        self._pinning = config.cookie is not None and config.mode == "http"
        self._key_of = _key_of(config)
        self._recheck_at = NEVER
        self._handed = 0
        self._warming = _Warming(self)
        self._chooser: Chooser | None = None
        self._turn: Callable[[], int] | None = None
        self._made_of: list[tuple[int, int]] = []  # positions and weights
        self.arrange()

    def arrange(self) -> None:
        """The servers are others, or their configuration is another one."""
        self.config = replace(self.config, servers=tuple(server.config for server in self.servers))
        self.by_cookie.clear()
        for server in self.servers:
            if server.config.cookie:
                self.by_cookie.setdefault(server.config.cookie.encode(), []).append(server)
        self._made_of = _NOTHING  # positions may mean other servers than before
        self.refresh()

    def refresh(self, rows: Container[int] | None = None) -> None:
        """States or weights have changed, or a slowstart goes on: look at the table, at these `rows` of it if given."""
        worker, now = self.worker, self.worker.now
        wall = worker.realtime(now)
        for server in self.servers:
            if rows is not None and server.row.number not in rows:
                continue
            server.look(worker.table, now, wall)
            if server.pool is not None:
                server.pool.open(server.usable)
        ready = [server for server in self.servers if server.usable]
        # As with HAProxy, backup servers count only when nothing else is left, and then only the first.
        usable = [server for server in ready if not server.config.backup] or ready[:1]
        self._warm(now)
        weights = self._weights(usable, now)
        places = {server: place for place, server in enumerate(self.servers)}
        made_of = [(places[server], weight) for server, weight in zip(usable, weights, strict=True)]
        if made_of != self._made_of:
            self._made_of = made_of
            self.usable = usable
            self._chooser = None
            if usable:
                names = [server.name for server in usable]
                seed = int.from_bytes(os.urandom(8), "little") if self.config.balance == "random" else 0
                alone = worker.table.workers == 1
                self._chooser = chooser(self.config, weights, names, worker.index, seed, alone)
            for server in self.servers:
                server.place = -1
            if isinstance(self._chooser, RankedLeastConn):
                for place, server in enumerate(usable):
                    server.place = place
        self.limited = any(server.maxconn for server in usable)
        # Nothing is asked but whose turn it is.
        free = isinstance(self._chooser, RoundRobin) and not self.limited and not self._pinning
        self._turn = self._chooser.turn if free and isinstance(self._chooser, RoundRobin) else None
        # Others decide by the number of its connections, so that they must see each change at once.
        self.watched = self.limited or self.config.balance in ("leastconn", "first", "random")
        self.only = usable[0] if len(usable) == 1 and not self.limited and not self._pinning else None
        if self.queue:
            self.sort_queue()  # some may belong to another server now

    def _warm(self, now: float) -> None:
        """Apply `slowstart` to the limits, and see to its next step."""
        soonest = NEVER
        for server in self.servers:
            if server.config.slowstart:
                limit = server.config.maxconn
                server.maxconn = max(1, limit * server.warmth(now) // _STEPS) if limit else 0
                soonest = min(soonest, server.warmer_at(now))
        warming = self._warming
        if soonest != warming.at:
            self.worker.wheel.remove(warming)
            warming.at = soonest
            self.worker.wheel.add(warming, soonest)

    def _weights(self, usable: list[LiveServer], now: float) -> list[int]:
        if self._static:
            return unscaled(self.config, [server.config.initial_weight or server.weight for server in usable])
        steps = [server.warmth(now) for server in usable]
        if min(steps, default=_STEPS) == _STEPS:
            return [server.weight for server in usable]
        return [server.weight * step for server, step in zip(usable, steps, strict=True)]

    def _key(self, conn: Connection) -> bytes:
        """What it is hashed by. Nothing, once it has been redispatched: the hash would find the same server again."""
        return b"" if conn.redispatched else self._key_of(conn)

    def _load(self, position: int) -> int:
        return self.usable[position].total()

    def rank(self, place: int) -> None:
        """A usable server may have fewer connections than before."""
        assert isinstance(self._chooser, RankedLeastConn)
        self._chooser.look(place, self._load)

    def choose(self, conn: Connection, avoid: LiveServer | None = None) -> LiveServer | None:
        """A server with a slot claimed for the connection; None when none is usable or all are full (see `usable`)."""
        only = self.only
        if only is not None:
            only.count(1)
            return only
        turn = self._turn
        if turn is not None and avoid is None:
            server = self.usable[turn()]
            server.sessions += 1
            if not server.dirty:
                server.dirty = True
                server.ledger.dirty.append(server)
            return server
        if self._pinning:
            pinned = conn.pinned
            if pinned is not None and pinned.running and not conn.redispatched:
                return pinned if pinned.claim() else None
        algorithm = self._chooser
        if algorithm is None:
            return None
        usable = self.usable
        key = self._key(conn) if self._hashed else b""
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
        while True:
            position = algorithm.choose(key, self._load, full)
            if position is None:
                return None
            if usable[position].claim():
                return usable[position]
            full.add(position)
            if len(full) == _TRIES:
                full.update(place for place, server in enumerate(usable) if server.full())

    def home(self, conn: Connection) -> LiveServer | None:
        """The server that this connection must have, by its cookie or a hash; None if any will do."""
        if self._pinning:
            pinned = conn.pinned
            if pinned is not None and pinned.running and not conn.redispatched:
                return pinned
        if self._hashed and isinstance(self._chooser, Hashed):
            key = self._key(conn)
            if key:
                return self.usable[self._chooser.home(key)]
        return None

    # -- the queue ---------------------------------------------------------------------------------------------------

    def must_wait(self, conn: Connection) -> bool:
        """Whether somebody waits whom a newcomer would overtake."""
        queues = self._queues
        if not queues:
            return False
        # Who waits for any server does so because all are full; what was freed in this turn is given away at its end.
        return None in queues or self in self.worker.dispatch or self.home(conn) in queues

    def enqueue(self, conn: Connection) -> int:
        """Let it wait for a slot, at the end of the queue; returns its position there, from 1."""
        home = self.home(conn)
        self._append(conn, home)
        if not self.bucket:
            self._recheck_at = self.worker.now + _RECHECK
            self.worker.wheel.add(self, self._recheck_at)
        # A slot that was freed before others could see us waiting would wake nobody: look once more.
        self.worker.dispatch.add(self)
        return len(self._queues[home])

    def _append(self, conn: Connection, home: LiveServer | None) -> None:
        self.queue[conn] = home
        self.worker.queueing.add(self)
        waiting = self._queues.get(home)
        if waiting is None:
            waiting = self._queues[home] = {}
        waiting[conn] = None
        self._count_queue(home, len(waiting))

    def sort_queue(self) -> None:
        """Some have come from another worker, or servers have come or gone: who came first is served first."""
        waiting = sorted(self.queue, key=lambda conn: conn.waiting_since)
        for home in self._queues:
            self._count_queue(home, 0)
        self.queue.clear()
        self._queues.clear()
        for conn in waiting:
            self._append(conn, self.home(conn))

    def dequeue(self, conn: Connection) -> None:
        """It waits no more, for whatever reason."""
        home = self.queue.pop(conn)
        waiting = self._queues[home]
        del waiting[conn]
        if not waiting:
            del self._queues[home]
        self._count_queue(home, len(waiting))
        if not self.queue:
            self.worker.queueing.discard(self)
            self.worker.wheel.remove(self)

    def _count_queue(self, home: LiveServer | None, length: int) -> None:
        """As with HAProxy, each is counted where it waits, at its server or at the backend."""
        row: Row = self.row if home is None else home.row
        row.qcur = length
        row.qmax = max(row.qmax, length)
        row.slot[row.start + _QCUR] = length
        row.change()

    def freed(self, server: LiveServer) -> None:
        """A slot of a limited server is free again: whoever waits, here or in another worker, may have it."""
        if self.row.number < 0:
            self.worker.dispatch.add(self)
            return
        any_at, own_at = self.row.start + _QCUR, server.row.start + _QCUR
        index = self.worker.index
        others = 0
        waiting = []
        for i, slot in enumerate(self.worker.slots):
            if i != index and (count := slot[any_at] + (slot[own_at] if server.row.number >= 0 else 0)):
                waiting.append(i)
                others += count
        queues = self._queues
        mine = len(queues.get(None, ())) + len(queues.get(server, ())) if queues else 0
        if others:
            # Taking turns in proportion, so that a long queue here does not starve a short one there.
            self._handed = (self._handed + 1) % (mine + others)
            if self._handed < others:
                for i in waiting:
                    try:
                        os.eventfd_write(self.worker.setup.wake[i], 1)
                    except BlockingIOError:
                        pass
                return
        if mine:
            self.worker.dispatch.add(self)

    def serve_queue(self) -> None:
        """Give slots to those who wait, first come first served."""
        queues = self._queues
        full: set[LiveServer | None] = set()  # nobody who waits for these finds a slot
        while heads := [(next(iter(queue)), home) for home, queue in queues.items() if home not in full]:
            conn, home = min(heads, key=_since)
            server = self.choose(conn)
            if server is None:
                full.add(home)
                continue
            self.dequeue(conn)
            try:
                conn.connect(server)
                if conn in self.worker.connections:
                    conn.rearm()  # the time to queue may be longer than the time to connect
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
