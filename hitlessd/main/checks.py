"""The checks of a generation: when each server is checked next, what comes of it, and who hears of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from hitlessd import health
from hitlessd.events import Event
from hitlessd.health import DESCRIPTIONS, Outcome, Result
from hitlessd.loop import Loop, Timer
from hitlessd.main.attempt import Attempt, OutOfMeans
from hitlessd.main.standing import Standing
from hitlessd.main.wellbeing import carry_over, unknown
from hitlessd.model import Backend, Check, Config, Server
from hitlessd.table import Column, Health, RowKey, ServerState, Table

__all__ = ["Checks"]

#: Checks begun in one turn of the loop at most, however many are due: others wait for main, too.
_AT_ONCE = 32
#: The part of the first spread over which overdue checks are spread.
_HURRY = 0.1


class _Checked:
    """A server that is checked."""

    def __init__(self, backend: Backend, server: Server, check: Check, table: Table, patience: float) -> None:
        self.backend = backend
        self.server = server
        self.check = check
        self.patience = patience  # seconds by which its first check is put off, so that not all come at once
        self.key = RowKey("server", backend.name, server.name)
        self.row = table.index[self.key]
        self.mark = health.identity(backend, server)
        self.attempt: Attempt | None = None
        self.began = 0.0
        self.due_at = 0.0
        self.timer: Timer | None = None


class Checks:
    """Runs from start() to stop(). `tables()` are all generations', ours first."""

    def __init__(
        self,
        loop: Loop,
        config: Config,
        table: Table,
        tables: Callable[[], Sequence[Table]],
        standing: Standing,
    ) -> None:
        self._loop = loop
        self._config = config
        self._table = table
        self._tables = tables
        self._standing = standing
        self._wall = standing.wall
        self._stopped = False
        standing.know(config)
        self._due: deque[_Checked] = deque()
        self._pump: Timer | None = None
        pairs = [(backend, server) for backend in config.backends for server in backend.servers if server.check]
        shortest = min((health.shortest_interval(server.check) for _, server in pairs if server.check), default=0.0)
        self._checked: dict[tuple[str, str], _Checked] = {}
        for position, (backend, server) in enumerate(pairs):
            assert server.check
            patience = health.first_delay(server.check, position, len(pairs), shortest)
            self._checked[backend.name, server.name] = _Checked(backend, server, server.check, table, patience)

    def start(self) -> None:
        """Go on where those before us are; see wellbeing.py. Once more when there are other servers, or they are
        elsewhere, before any check has begun."""
        carry_over(self._config, self._table, self._tables()[1:], self._wall())
        for each in self._checked.values():
            record = self._table.health(each.row)
            wait = min(record.next_at / 1000 - health.moment(), health.interval(each.check, record.counter))
            if not record.next_at:
                wait = each.patience
            elif wait <= 0:
                # It was being made, or nobody was there to make it: soon, yet not all at once.
                wait = each.patience * _HURRY
            self._schedule(each, wait)

    def retire(self, retired: bool) -> None:
        """Another generation speaks and counts for the servers now, or not after all. We check on: those whom we still
        serve need to know."""
        self._standing.retired = retired

    def follow(self, config: Config) -> None:
        """Servers have been added, deleted or moved, or are checked no more or again."""
        self._config = config
        wanted = {(b.name, s.name): (b, s, s.check) for b in config.backends for s in b.servers if s.check}
        for name in [name for name in self._checked if name not in wanted]:
            self._forget(self._checked.pop(name))
        for name, (backend, server, check) in wanted.items():
            known = self._checked.get(name)
            if known is None:
                new = self._checked[name] = _Checked(backend, server, check, self._table, 0.0)
                self._table.set_health(new.row, unknown(check, new.mark, self._wall()))
                if not self._stopped:
                    self._schedule(new, 0.0)
            elif known.server is not server or known.backend is not backend:
                known.backend, known.server, known.check = backend, server, check
                self._is_elsewhere(known)

    def _is_elsewhere(self, each: _Checked) -> None:
        """It stays up or down, until the checks of its new address say otherwise, as with HAProxy."""
        mark = health.identity(each.backend, each.server)
        if mark == each.mark:
            return
        each.mark = mark
        self._table.set_health(each.row, self._table.health(each.row)._replace(identity=mark))
        if each.attempt:
            each.attempt.cancel()
            each.attempt = None
            self._schedule(each, 0.0)

    def _forget(self, each: _Checked) -> None:
        if each.timer:
            each.timer.cancel()
        if each.attempt:
            each.attempt.cancel()
            each.attempt = None
        if each in self._due:
            self._due.remove(each)

    def stop(self) -> None:
        """Check no more."""
        self._stopped = True
        self._standing.said.close()
        self._due.clear()
        for timer in (self._pump, *(each.timer for each in self._checked.values())):
            if timer:
                timer.cancel()
        for each in self._checked.values():
            if each.attempt:
                each.attempt.cancel()
                each.attempt = None

    def observed(self, backend: str, server: str, text: str) -> None:
        """Workers have seen too many errors of a server's in a row (configuration manual, "observe", "on-error")."""
        each = self._checked.get((backend, server))
        if each is None or self._stopped:
            return
        self._count(each.key, Column.HANAFAIL, 1)
        self._table.add(each.key, Column.OBSERVED_OK, 1)  # they count anew
        how = each.server.on_error
        before = self._table.health(each.row).counter
        if how != "fastinter":
            self._count(each.key, Column.CHKFAIL, 1 if before else 0)
            self._judge(each, Outcome(Result.HANA, 0, text), health.struck(each.check, before, how), None)
        # Look soon, if that is sooner than planned.
        soon = each.check.fastinter
        if soon is not None and each.attempt is None and self._loop.time() + soon < each.due_at:
            self._schedule(each, soon)

    # --- one check after the other

    def _schedule(self, each: _Checked, seconds: float) -> None:
        if each.timer:
            each.timer.cancel()
        each.due_at = self._loop.time() + seconds
        each.timer = self._loop.call_later(seconds, lambda: self._is_due(each))
        record = self._table.health(each.row)
        self._table.set_health(each.row, record._replace(next_at=round((health.moment() + seconds) * 1000)))

    def _is_due(self, each: _Checked) -> None:
        self._due.append(each)
        if not self._pump:
            self._pump = self._loop.call_soon(self._begin_some)

    def _begin_some(self) -> None:
        self._pump = None
        for _ in range(min(_AT_ONCE, len(self._due))):
            self._begin(self._due.popleft())
        if self._due:
            self._pump = self._loop.call_soon(self._begin_some)

    def _begin(self, each: _Checked) -> None:
        if self._table.state(each.row) is ServerState.MAINT:
            return self._schedule(each, each.check.inter)
        each.began = self._loop.time()
        try:
            each.attempt = Attempt(
                self._loop, each.backend, each.server, each.check, lambda outcome: self._ended(each, outcome)
            )
        except OutOfMeans as error:
            name = f"{each.backend.name}/{each.server.name}"
            text = f"cannot check server {name}: {error.strerror}; its state stays as it is"
            self._standing.said(
                "err",
                text,
                event=Event.CHECK_FAILED,
                about=("check", each.key),
                backend=each.backend.name,
                server=each.server.name,
            )
            self._schedule(each, each.check.inter)

    def _ended(self, each: _Checked, outcome: Outcome) -> None:
        each.attempt = None
        before = self._table.health(each.row).counter
        passed = outcome.result.passed
        if passed and each.server.observe:
            self._table.add(each.key, Column.OBSERVED_OK, 1)
        if not passed and before:
            self._count(each.key, Column.CHKFAIL, 1)
        self._judge(each, outcome, health.after(each.check, before, passed), self._loop.time() - each.began)
        self._schedule(each, health.interval(each.check, self._table.health(each.row).counter))

    # --- what comes of it

    def _judge(self, each: _Checked, outcome: Outcome, counter: int, took: float | None) -> None:
        """`took`: seconds, None when it was no check."""
        table, now = self._table, self._wall()
        before = table.health(each.row)
        up = counter >= each.check.rise
        # Who is stopping goes on with that until a check passes.
        changed = up is (before.health == Health.DOWN) or (
            before.health == Health.STOPPING and outcome.result.passed and up
        )
        record = before._replace(counter=counter, result=outcome.result, code=outcome.code, identity=each.mark)
        if took is None:
            record = record._replace(duration=0)
        else:
            record = record._replace(duration=round(took * 1000), checked_at=round(health.moment() * 1000))
        if changed:
            record = record._replace(health=Health.UP if up else Health.DOWN, since=int(now))
            record = record._replace(up_since=int(now)) if up else record
        table.set_health(each.row, record)
        table.set_check_text(each.row, outcome.text)
        if not changed:
            return
        if not up:
            self._count(each.key, Column.CHKDOWN, 1)
        elif before.health == Health.DOWN:
            self._count(each.key, Column.DOWNTIME, max(0, int(now) - before.since))
        self._tell(each, outcome, up, took)
        self._standing.look_at(each.backend)
        if not up:
            self._standing.marked_down(each.backend, each.server)

    def _count(self, key: RowKey, column: Column, number: int) -> None:
        self._standing.count(key, column, number)

    def _tell(self, each: _Checked, outcome: Outcome, up: bool, took: float | None) -> None:
        standing, backend, server = self._standing, each.backend, each.server
        text = f"{standing.name(backend, server)} is {'UP' if up else 'DOWN'}"
        text += f", reason: {DESCRIPTIONS[outcome.result]}"
        text += f", code: {outcome.code}" if outcome.code else ""
        text += f', info: "{outcome.text}"' if outcome.text else ""
        text += "" if took is None else f", check duration: {took * 1000:.0f}ms"
        text += "." + (standing.online(backend) if up else standing.left(backend, server))
        standing.tell(
            "notice" if up else "alert",
            text,
            event=Event.SERVER_UP if up else Event.SERVER_DOWN,
            backend=backend,
            server=server,
        )
