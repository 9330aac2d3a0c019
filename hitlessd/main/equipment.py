"""What a generation serves with: listeners, runtime sockets, the shared table, workers. Everything here may fail."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from hitlessd.dataclass import dataclass
from hitlessd.errors import ListenerRefused, SystemRefused
from hitlessd.events import Event
from hitlessd.listeners import Listener, Wanted, assign, close_unwanted, open_listener, own_path
from hitlessd.log import Log, Logger
from hitlessd.loop import Loop
from hitlessd.main.inheritance import Ancestor, Inheritance
from hitlessd.main.limits import Limits, lowered, plan, raise_soft_limit
from hitlessd.main.parks import Parks
from hitlessd.main.store import Store
from hitlessd.main.wellbeing import carry_over
from hitlessd.main.workers import Pool
from hitlessd.model import Bind, Config, MetricsBind, StatsSocket, UnixAddress
from hitlessd.parking.counters import self_test
from hitlessd.table import RowKey, ServerState, Table, row_keys

__all__ = ["Equipment", "equip"]

#: Rows kept for proxies and servers that are no longer configured, so that their totals can go on if they come back.
_MOST_RETIRED = 10_000


@dataclass(slots=True)
class Equipment:
    """The result of equip(). `config` is the effective configuration of its start, `planned` are the limits by what the
    files say, `limits` those in force. `unwanted` are inherited listeners that no bind asks for, still open;
    `opened` are new."""

    config: Config
    listeners: list[tuple[Wanted, Listener]]
    runtime: list[tuple[StatsSocket, Listener]]
    metrics: list[tuple[MetricsBind, Listener]]
    unwanted: list[Listener]
    opened: list[Listener]
    table: Table
    pool: Pool
    parks: Parks
    planned: Limits
    limits: Limits
    taken: int
    bound: int
    older: list[Table]  # of those before us, the youngest first
    accepting: bool = False

    @property
    def mains(self) -> list[Listener]:
        """The listeners of main itself: of the runtime API and of metrics."""
        return [*(listener for _, listener in self.runtime), *(listener for _, listener in self.metrics)]

    def kept(self, inheritance: Inheritance) -> list[int]:
        """Indexes, in the predecessor's offer, of the listeners that live on."""
        used = [listener for _, listener in self.listeners] + self.mains
        return [inheritance.offered[id(x)] for x in used if id(x) in inheritance.offered]

    def accept(self, loop: Loop, patience: float) -> None:
        """Have the workers accept. Raises SystemRefused, TimeoutError."""
        resting = {frontend.name for frontend in self.config.frontends if frontend.disabled}
        for want, listener in self.listeners:
            if want.frontend not in resting or not listener.can_rest:
                listener.start_listening(want.bind.backlog)
            elif listener in self.opened:
                listener.stop_listening()  # of others, a predecessor may have to accept on once more
        for listener in self.mains:
            listener.start_listening(0)
        # Who went down while we prepared gets nothing from us, either.
        carry_over(self.config, self.table, self.older, time.time())
        self.older = []
        self.accepting = True
        done: list[bool] = []
        self.pool.tell("accept", lambda: done.append(True))
        _pump(loop, lambda: bool(done), patience, "cannot start: the workers do not accept")

    def withdraw(self) -> None:
        """Undo it: whoever had the inherited listeners still has them."""
        self.pool.when_gone(lambda: None)
        self.pool.kill_all()
        for listener in self.opened:
            close_unwanted(listener)

    def own_paths(self, log: Logger) -> None:
        """Apply mode and owner to unix paths that were taken over; opened ones have them."""
        binds = [(want.bind, listener) for want, listener in self.listeners]
        binds += [(_bind_of(stats), listener) for stats, listener in self.runtime]
        binds += [(_bind_of(metrics), listener) for metrics, listener in self.metrics]
        for bind, listener in binds:
            if not isinstance(bind.address, UnixAddress) or bind.address.abstract or listener.origin == "systemd":
                continue
            try:
                own_path(bind.address.path, bind)
            except (OSError, SystemRefused) as error:
                log("warning", f"cannot set mode and owner of {bind.address.path}: {error}", event=Event.FILE_FAILED)


def equip(
    configured: Config,
    config: Config,
    inheritance: Inheritance,
    *,
    loop: Loop,
    log: Log,
    store: Store,
    generation: int,
    replace: bool,
    patience: float,
) -> Equipment:
    """Match, open, map and fork; accept nothing yet. `config` is what the files say, `configured`, with what operators
    have changed. Raises SystemRefused with every problem; nothing stays behind."""
    workers = config.global_.workers or len(os.sched_getaffinity(0))
    wanted = [Wanted(frontend.name, bind) for frontend in config.frontends for bind in frontend.binds]
    stats = _stats_sockets(config)
    metrics = config.global_.metrics_binds
    wanted_runtime = [Wanted("", _bind_of(each)) for each in stats]
    wanted_metrics = [Wanted("", _bind_of(each)) for each in metrics]
    # In one go: what was a frontend's may become the runtime API's.
    held = inheritance.listeners + inheritance.runtime
    matched, missing, unwanted = assign(wanted + wanted_runtime + wanted_metrics, held)
    _refuse_strays(unwanted)
    taken = sum(1 for want, _ in matched if want.frontend)
    bound = sum(1 for want in missing if want.frontend)
    planned = limits = plan(configured, workers, taken + bound, raise_soft_limit(), inheritance.sessions)
    if config.global_.maxconn != configured.global_.maxconn:
        limits = lowered(planned, config.global_.maxconn, workers)
    opened: list[Listener] = []
    try:
        every = matched + _open(missing, held, opened, replace)
        pairs = [(want, listener) for want, listener in every if want.frontend]
        by_bind = {id(want): listener for want, listener in every if not want.frontend}
        table = _table(config, workers, generation, inheritance.ancestors)
        sockets = [(want.frontend, want.bind, listener.sock) for want, listener in pairs]
        parks = _parks(config, log, store, generation, planned)
        pool = Pool(loop, log, config, sockets, table, limits.share, parks)
        try:
            pool.start()
            _pump(loop, lambda: pool.alive, patience, "cannot start: the workers do not answer")
        except (OSError, SystemRefused) as error:
            pool.when_gone(lambda: None)
            pool.kill_all()
            raise SystemRefused(str(error)) from None
    except BaseException:
        for listener in opened:
            close_unwanted(listener)
        raise
    return Equipment(
        config,
        pairs,
        [(each, by_bind[id(want)]) for each, want in zip(stats, wanted_runtime, strict=True)],
        [(each, by_bind[id(want)]) for each, want in zip(metrics, wanted_metrics, strict=True)],
        unwanted,
        opened,
        table,
        pool,
        parks,
        planned,
        limits,
        taken=taken,
        bound=bound,
        older=[ancestor.table for ancestor in reversed(inheritance.ancestors)],
    )


def _parks(config: Config, log: Logger, store: Store, generation: int, limits: Limits) -> Parks:
    """Room for more connections than a worker is meant to have: those that move are not spread evenly."""
    problem = self_test() if config.global_.crash_proof else ""
    if problem:
        text = f"cannot be crash-proof: {problem}; connections outlive a restart, but no crash"
        log("err", text, event=Event.CRASH_PROOF_OFF)
    slots = min(limits.parked, 4 * limits.share + 64)
    return Parks(log, store, generation, slots, limits.parked, not problem)


def _stats_sockets(config: Config) -> list[StatsSocket]:
    """Those configured, and always one where `systemctl reload` looks for it."""
    stats = list(config.global_.stats_sockets)
    directory = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    default = UnixAddress(f"{directory}/hitlessd.sock")
    if directory and all(each.address != default for each in stats):
        stats.append(StatsSocket(default, mode=0o600, level="admin", expose_fd_listeners=True))
    return stats


def _bind_of(ours: StatsSocket | MetricsBind) -> Bind:
    """The socket of something that main itself answers."""
    mode = ours.mode
    commands = isinstance(ours, StatsSocket)
    if commands and mode is None and isinstance(ours.address, UnixAddress) and not ours.address.abstract:
        mode = 0o600  # whoever may connect may command
    return Bind(ours.address, ours.where, mode=mode, user=ours.user, group=ours.group)


def _refuse_strays(unwanted: Sequence[Listener]) -> None:
    """PID 1 would go on queueing connections for a socket that nobody accepts on."""
    strays = [
        f"cannot leave {listener.identity} alone: systemd listens there for us (FileDescriptorName={listener.name})"
        f" and no bind wants it; add `bind = sd@{listener.name}`, or stop and disable that .socket unit"
        for listener in unwanted
        if listener.origin == "systemd"
    ]
    if strays:
        raise SystemRefused("\n".join(strays))


def _open(
    missing: Sequence[Wanted], held: Sequence[Listener], opened: list[Listener], replace: bool
) -> list[tuple[Wanted, Listener]]:
    pairs, problems = [], []
    for want in missing:
        try:
            listener = open_listener(want.bind, [*held, *opened], replace)
        except SystemRefused as error:
            problems.append(str(error))
            continue
        opened.append(listener)
        pairs.append((want, listener))
    if problems:
        raise ListenerRefused("\n".join(problems))
    return pairs


def _table(config: Config, workers: int, generation: int, ancestors: Sequence[Ancestor]) -> Table:
    keys = row_keys(config)
    known_now = frozenset(keys)
    known = set(keys)
    retired: list[RowKey] = []
    for ancestor in reversed(ancestors):
        new = [key for key in ancestor.table.keys if key not in known]
        known.update(new)
        retired += new
    table = Table.create(keys + retired[:_MOST_RETIRED], workers, generation)
    now = int(time.time())
    older = [ancestor.table for ancestor in reversed(ancestors)]
    index, tables = table.index, [(old, old.index) for old in older]
    # Connections of servers that are no longer configured may come, and even wait for one.
    for ancestor in ancestors:
        old = ancestor.table
        for key, row in old.index.items():
            if key not in known_now and key.kind == "server" and key in index:
                table.set_state(index[key], old.state(row), old.weight(row), old.since(row))
    for backend in config.backends:
        for server in backend.servers:
            state = ServerState.DRAIN if server.drain else ServerState.READY
            state = ServerState.MAINT if server.disabled else state
            key = RowKey("server", backend.name, server.name)
            before = next(((old, rows[key]) for old, rows in tables if key in rows), None)
            since = before[0].since(before[1]) if before and before[0].state(before[1]) is state else 0
            table.set_state(index[key], state, server.weight, since or now)
    carry_over(config, table, older, now)
    return table


def _pump(loop: Loop, condition: Callable[[], bool], seconds: float, problem: str) -> None:
    deadline = loop.time() + seconds
    while not condition():
        left = deadline - loop.time()
        if left <= 0:
            raise SystemRefused(problem)
        loop.turn(left)
