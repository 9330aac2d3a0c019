"""How servers stand: what operators and checks say of them, in the table, in the totals, and in HAProxy's log lines.

The words are those of srv_update_status() and srv_append_status() in HAProxy 2.6's server.c.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from hitlessd import health
from hitlessd.events import Event
from hitlessd.log import Logger
from hitlessd.loop import Loop
from hitlessd.main.wellbeing import any_usable, rows_of, usable
from hitlessd.model import Backend, Config, Server
from hitlessd.quota import Quota
from hitlessd.table import Column, Health, HealthRecord, RowKey, ServerState, Table, sum_over

__all__ = ["STATES", "Forced", "Standing", "limited"]

#: Changes of one server's state that are logged as they come, in so many seconds.
_BURST, _PERIOD = 10, 60.0

#: Administrative states by the words of `set server ... state`.
STATES = {"ready": ServerState.READY, "drain": ServerState.DRAIN, "maint": ServerState.MAINT}
Forced = Literal["up", "stopping", "down"]


def limited(loop: Loop, log: Logger) -> Quota:
    """How often the same server's changes are said."""
    return Quota.on(loop, log, _BURST, _PERIOD)


class Standing:
    """`shut_down(backend, server)` ends the sessions of a server. `tables()` are all generations', ours first.

    `said` logs, not without limit: a server may flap. `wall` is CLOCK_REALTIME."""

    def __init__(
        self,
        said: Quota,
        table: Table,
        tables: Callable[[], Sequence[Table]],
        shut_down: Callable[[str, str], object],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.said = said
        self._table = table
        self._tables = tables
        self._shut_down = shut_down
        self.wall = wall
        self.retired = False  # another generation speaks and counts for the servers now
        self._listens: frozenset[str] = frozenset()
        self._rows: dict[str, tuple[Backend, tuple[list[int], list[int]]]] = {}  # see _rows_of()

    def know(self, config: Config) -> None:
        """Which backends are those of a [listen] section."""
        self._listens = frozenset(frontend.name for frontend in config.frontends)

    # --- what operators say

    def administer(self, backend: Backend, server: Server, word: str) -> None:
        """A server's administrative state becomes another: ready, drain or maint."""
        key = RowKey("server", backend.name, server.name)
        row, state, now = self._table.index[key], STATES[word], int(self.wall())
        was, since, record = self._table.state(row), self._table.since(row), self._table.health(row)
        if was is state:
            return
        name, down = self.name(backend, server), record.health == Health.DOWN
        if was is ServerState.MAINT:
            self.count(key, Column.DOWNTIME, max(0, now - since))
            self._freshen(row, server, record, now)
            text = f"{name} is UP/{'DRAIN' if state is ServerState.DRAIN else 'READY'} (leaving forced maintenance)."
        self._set_state(key, state, self._table.weight(row), now)
        if state is ServerState.MAINT and down:
            self.count(key, Column.DOWNTIME, max(0, now - max(since, record.since)))
            text = f"{name} was DOWN and now enters maintenance."
        elif state is ServerState.MAINT:
            self.count(key, Column.CHKDOWN, 1)
            text = f"{name} is going DOWN for maintenance.{self.left(backend, server)}"
        elif was is not ServerState.MAINT and state is ServerState.DRAIN:
            text = f"{name} enters drain state.{self.left(backend, server) if down else self.online(backend)}"
        elif was is not ServerState.MAINT:
            text = f"{name} is {'DOWN' if down else 'UP'} (leaving forced drain)."
        alarming = state is ServerState.MAINT and not down
        self.tell(
            "alert" if alarming else "notice",
            text,
            event=Event.SERVER_MAINT
            if state is ServerState.MAINT
            else Event.SERVER_DRAIN
            if state is ServerState.DRAIN
            else Event.SERVER_READY,
            backend=backend,
            server=server,
        )
        if was is ServerState.MAINT and state is ServerState.DRAIN:
            text = f"{name} remains in forced drain mode."
            self.tell("notice", text, event=Event.SERVER_DRAIN, backend=backend, server=server)
        self.look_at(backend)
        if alarming:
            self.marked_down(backend, server)

    def weigh(self, backend: Backend, server: Server) -> None:
        """Its weight has become another."""
        key = RowKey("server", backend.name, server.name)
        row = self._table.index[key]
        self._set_state(key, self._table.state(row), server.weight, self._table.since(row))
        self.look_at(backend)

    def force(self, backend: Backend, server: Server, word: Forced) -> None:
        """`set server ... health`: until a check says otherwise, or for good where there is none."""
        row = self._table.index[RowKey("server", backend.name, server.name)]
        before, now = self._table.health(row), int(self.wall())
        wanted = {"up": Health.UP, "stopping": Health.STOPPING, "down": Health.DOWN}[word]
        check = server.check
        if wanted is Health.UP and check is None:
            wanted = Health.UNCHECKED
        counter = 0 if check is None or wanted is Health.DOWN else health.top(check)
        if self._table.state(row) is ServerState.MAINT:
            return
        if before.health == wanted:
            self._table.set_health(row, before._replace(counter=counter))  # failures of checks are forgotten
            return
        mark = health.identity(backend, server) or health.forced_identity(server)
        record = before._replace(health=wanted, since=now, counter=counter, identity=mark)
        self._settle(backend, server, before, record)
        name = self.name(backend, server)
        if wanted is Health.DOWN:
            text = f"{name} is DOWN, changed from CLI.{self.left(backend, server)}"
            self.tell("alert", text, event=Event.SERVER_DOWN, backend=backend, server=server)
            self.look_at(backend)
            self.marked_down(backend, server)
        else:
            how = "stopping" if wanted is Health.STOPPING else "UP"
            text = f"{name} is {how}, changed from CLI.{self.online(backend)}"
            self.tell("notice", text, event=Event.SERVER_UP, backend=backend, server=server)
            self.look_at(backend)

    def is_elsewhere(self, backend: Backend, server: Server) -> None:
        """Its address has become another. What an operator has said of it stays true, for those as well who look later;
        see wellbeing.py. Of a server that is checked, checks.py knows."""
        row = self._table.index[RowKey("server", backend.name, server.name)]
        record = self._table.health(row)
        if server.check is None and record.identity:
            self._table.set_health(row, record._replace(identity=health.forced_identity(server)))

    def forget_health(self, backend: Backend, server: Server) -> None:
        """It is not checked any more, so that nothing is known of it: it counts as up."""
        row = self._table.index[RowKey("server", backend.name, server.name)]
        before = self._table.health(row)
        if before.health != Health.UNCHECKED:
            self._settle(backend, server, before, HealthRecord(since=int(self.wall()), up_since=before.up_since))
            self._table.set_check_text(row, "")
            self.look_at(backend)

    def admit(self, backend: Backend, server: Server) -> int:
        """A server that was added; its row. Raises SystemRefused when the table has no room for it. The backend is to
        be looked at when all its servers have rows."""
        row = self._table.add_row(RowKey("server", backend.name, server.name))
        self._table.set_health(row, HealthRecord())
        self._table.set_check_text(row, "")
        state = ServerState.MAINT if server.disabled else ServerState.DRAIN if server.drain else ServerState.READY
        self._table.set_state(row, state, server.weight, int(self.wall()))
        return row

    # --- what comes of it

    def look_at(self, backend: Backend) -> None:
        """Its first server came, or its last one went."""
        key = RowKey("backend", backend.name)
        row, now = self._table.index[key], int(self.wall())
        before, up = self._table.health(row), not backend.servers or any_usable(self._rows_of(backend), self._table)
        if up is (before.health != Health.DOWN):
            return
        self._table.set_health(row, before._replace(health=Health.UP if up else Health.DOWN, since=now))
        if up:
            self.count(key, Column.DOWNTIME, max(0, now - before.since))
            return
        self.count(key, Column.CHKDOWN, 1)
        if not self.retired:
            kind = "proxy" if backend.name in self._listens else "backend"  # of a [listen] section, as HAProxy says it
            text = f"{kind} {backend.name} has no server available!"
            self.said("emerg", text, event=Event.BACKEND_DOWN, about=key, backend=backend.name)

    def marked_down(self, backend: Backend, server: Server) -> None:
        """Do what `on-marked-down` says."""
        if not self.retired and server.on_marked_down == "shutdown-sessions":
            self._shut_down(backend.name, server.name)

    def count(self, key: RowKey, column: Column, number: int) -> None:
        if not self.retired:
            self._table.add(key, column, number)

    def tell(
        self, severity: Literal["alert", "notice"], text: str, *, event: Event, backend: Backend, server: Server
    ) -> None:
        """Log what has become of a server."""
        if not self.retired:
            about = RowKey("server", backend.name, server.name)
            self.said(severity, text, event=event, about=about, backend=backend.name, server=server.name)

    @staticmethod
    def name(backend: Backend, server: Server) -> str:
        return f"{'Backup ' if server.backup else ''}Server {backend.name}/{server.name}"

    def _rows_of(self, backend: Backend) -> tuple[list[int], list[int]]:
        """Of thousands of servers, each of which may go at the same time, found once."""
        known = self._rows.get(backend.name)
        if known is None or known[0] is not backend:
            known = self._rows[backend.name] = backend, rows_of(backend, self._table)
        return known[1]

    def online(self, backend: Backend) -> str:
        """The end of a line that is not about a loss."""
        active, backup = usable(self._rows_of(backend), self._table)
        queued = sum_over(self._tables(), RowKey("backend", backend.name), Column.QCUR)
        return f" {active} active and {backup} backup servers online. 0 sessions requeued, {queued} total in queue."

    def left(self, backend: Backend, server: Server) -> str:
        """The end of a line that is about one."""
        active, backup = usable(self._rows_of(backend), self._table)
        tables = self._tables()
        queued = sum_over(tables, RowKey("backend", backend.name), Column.QCUR)
        sessions = sum_over(tables, RowKey("server", backend.name, server.name), Column.SCUR)
        text = f" {active} active and {backup} backup servers left."
        text += " Running on backup." if backup and not active else ""
        return f"{text} {sessions} sessions active, 0 requeued, {queued} remaining in queue."

    def _set_state(self, key: RowKey, state: ServerState, weight: int, since: int) -> None:
        """In older generations, too: whoever they still serve may ask for a server."""
        for table in self._tables():
            row = table.index.get(key)
            if row is not None:
                table.set_state(row, state, weight, since)

    def _freshen(self, row: int, server: Server, record: HealthRecord, now: int) -> None:
        """Nobody has checked it in maintenance: up, and the first failure takes it down."""
        if server.check is not None:
            record = record._replace(health=Health.UP, counter=server.check.rise, since=now)
        elif record.health != Health.UNCHECKED:
            record = HealthRecord(since=now)
        self._table.set_health(row, record)

    def _settle(self, backend: Backend, server: Server, before: HealthRecord, record: HealthRecord) -> None:
        key = RowKey("server", backend.name, server.name)
        now = record.since
        if before.health == Health.DOWN and record.health != Health.DOWN:
            self.count(key, Column.DOWNTIME, max(0, now - before.since))
            record = record._replace(up_since=now)
        elif record.health == Health.DOWN:
            self.count(key, Column.CHKDOWN, 1)
        self._table.set_health(self._table.index[key], record)
