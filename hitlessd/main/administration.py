"""What operators change at run time: checked, put in force in the table and in every worker, and kept.

A change is a new set of changes, that is a new effective configuration, and whatever differs from the one before is
done. So the changes that a predecessor has made since its offer are caught up with in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from hitlessd.changes import Change, Changes, Item, described
from hitlessd.dataclass import replace
from hitlessd.effective import Difference, added_words, configured, differences, effective, free_sid, keep, structure
from hitlessd.errors import SystemRefused
from hitlessd.events import Event
from hitlessd.listeners import Listener, close_unwanted
from hitlessd.log import Logger
from hitlessd.loop import Loop
from hitlessd.main.checks import Checks
from hitlessd.main.clearing import clear_counters
from hitlessd.main.custody import Custody
from hitlessd.main.limits import lowered
from hitlessd.main.office import Office
from hitlessd.main.standing import Forced, Standing
from hitlessd.main.store import Store
from hitlessd.model import Backend, Config, Frontend, Server
from hitlessd.records import dump_server
from hitlessd.table import Column, RowKey, ServerState, sum_over, totals

__all__ = ["Administration"]

Done = Callable[[str], object]

_HAS_CONNECTIONS = "Server still has connections attached to it, cannot remove it."  # HAProxy's words
_LATER = "a reload is running; try again when it is over"


class Administration:
    """Of one main process in office. Keeps Office.config, the effective configuration."""

    def __init__(
        self,
        loop: Loop,
        log: Logger,
        store: Store,
        office: Office,
        configuration: Config,
        changes: Changes,
        checks: Checks,
        standing: Standing,
        reloading: Callable[[], bool],
        handing_over: Callable[[], bool],
        clear_maxima: Callable[[bool, Callable[[object], object]], object],
    ) -> None:
        """`configuration`: what the files say. `reloading`: connections may be on their way here or away;
        `handing_over`: a successor may be at our listeners. `clear_maxima` tells all workers of all generations."""
        self._loop = loop
        self._log = log
        self._store = store
        self._office = office
        self._checks = checks
        self._standing = standing
        self._reloading = reloading
        self._handing_over = handing_over
        self._leaving: list[str] = []  # frontends whose listeners our workers are told to leave
        self._clear_maxima = clear_maxima
        self._custody = Custody(loop, store, office.generation)
        self._retired = False
        self._shut: frozenset[str] = frozenset()
        self._promises: set[Done] = set()
        self.configured = configuration
        self.changes = changes

    # --- what operators ask for

    def administer(self, change: Change, done: Done) -> None:
        """Put a change in force. `done` gets "" when every worker has it, or why it is refused."""
        problem = self._refusal() or (self._undeletable(change.item) if change.item.kind == "server-deleted" else "")
        if problem:
            done(problem)
            return
        done = self._promised(done)
        try:
            changes = self._with(change)
            config, dropped = effective(self.configured, changes)
            if any(each.item == change.item for each in dropped):
                raise SystemRefused(f"cannot change {described(change.item)}: {change.value!r} does not fit")
            self._move_to(keep(changes, dropped), config, done)
        except SystemRefused as error:
            done(str(error))

    def may_check(self, backend: str, server: str) -> bool:
        """Whether that server has a health check, switched on or not."""
        return any(
            one.check is not None
            for each in structure(self.configured, self.changes).backends
            if each.name == backend
            for one in each.servers
            if one.name == server
        )

    def force_health(self, backend: str, server: str, how: Forced, done: Done) -> None:
        """`set server ... health`: up, stopping or down, until a check says otherwise."""
        found = self._find(backend, server)
        problem = self._refusal() or ("" if found else f"cannot change server {backend}/{server}: there is none")
        if found and not problem:
            self._standing.force(*found, how)
        done(problem)

    def shut_frontend(self, name: str, done: Done) -> None:
        """Close a frontend's listeners; the next reload opens what the file says."""
        ours = [listener for want, listener in self._office.equipment.listeners if want.frontend == name]
        units = sorted({listener.name for listener in ours if listener.origin == "systemd"})
        problem = self._refusal()
        if units:
            problem = (
                f"cannot shut down frontend {name}: systemd listens for it (FileDescriptorName={', '.join(units)});"
                " stop that .socket unit, or use `disable frontend`"
            )
        elif self._reloading():
            problem = f"cannot shut down frontend {name}: {_LATER}"
        if problem:
            done(problem)
            return

        def left(_answers: object) -> None:
            for listener in ours:
                self._store.forget([listener.name])
                close_unwanted(listener)
            counts = [sum_over(self._office.tables(), RowKey(kind, name), Column.STOT) for kind in _SIDES]
            text = f"Proxy {name} stopped (cumulated conns: FE: {counts[0]}, BE: {counts[1]})."
            self._log("warning", text, event=Event.CHANGE_MADE, proxy=name)
            done("")

        self._shut |= {name}
        self._office.config = self._with_shut(self._office.config)
        self._reconfigure()
        self._office.equipment.pool.ask("shut-frontend", left, proxy=name)

    def clear_counters(self, everything: bool, done: Done) -> None:
        """Forget how much there has been at once, or all that was counted; what there is now stays."""
        if problem := self._refusal():
            done(problem)
            return
        clear_counters(self._office.tables(), everything)
        cleared = self._promised(done)
        self._clear_maxima(everything, lambda _answers: cleared(""))

    # --- over generations

    def facts(self) -> dict[str, Any]:
        """What a successor must know."""
        return {"changes": self.changes.export(), "changes_name": self._custody.entry}

    def begin(self, late: object, name: str, dropped: Iterable[Change]) -> None:
        """We are the main process. `late`: the changes of our predecessor as of its end, None if it has none to tell;
        `name`: their entry in the store. `dropped` are those that the files have overruled."""
        dropped = list(dropped)
        if isinstance(late, list):
            try:
                changes = Changes.load(late)
            except (TypeError, ValueError):
                changes = self.changes
            config, dropped = effective(self.configured, changes)
            try:
                self._move_to(keep(changes, dropped), config, self._caught_up)
            except SystemRefused as error:
                self._caught_up(str(error))
            self._checks.start()  # what those before us know is about the servers as they are now
        for change in dropped:
            item, text = change.item, "is what the configuration says again: it has changed there"
            fields = {"backend": item.proxy, "server": item.server} if item.server else {}
            self._log("notice", f"{described(item)} {text}", event=Event.CHANGE_DROPPED, proxy=item.proxy, **fields)
        self._custody.begin(name, self.changes)
        self._rest()

    def retire(self, retired: bool) -> None:
        """A successor is the main process from here on, or not after all."""
        self._custody.settle()
        self._retired = retired
        self._rest()
        if retired:
            # It has all of it in force before it serves those who asked.
            for promised in list(self._promises):
                promised("")

    # --- within

    def _promised(self, done: Done) -> Done:
        """To be called once; a successor that takes over calls it before."""

        def answer(why: str) -> None:
            if answer in self._promises:
                self._promises.remove(answer)
                done(why)

        self._promises.add(answer)
        return answer

    def _refusal(self) -> str:
        if self._retired or self._office.stopping:
            return "cannot change anything: another generation has taken over, or nobody is served any more"
        return ""

    def _find(self, backend: str, server: str) -> tuple[Backend, Server] | None:
        return next(
            (
                (each, one)
                for each in self._office.config.backends
                if each.name == backend
                for one in each.servers
                if one.name == server
            ),
            None,
        )

    def _undeletable(self, item: Item) -> str:
        found, key = self._find(item.proxy, item.server), RowKey("server", item.proxy, item.server)
        table = self._office.equipment.table
        if found is None:
            return "No such server."
        if self._reloading():
            return f"cannot delete server {item.proxy}/{item.server}: {_LATER}"
        if table.state(table.index[key]) is not ServerState.MAINT:
            return "Only servers in maintenance mode can be deleted."
        counts = totals(self._office.tables(), key)
        return _HAS_CONNECTIONS if counts[Column.SCUR] or counts[Column.QCUR] else ""

    def _with(self, change: Change) -> Changes:
        """All changes, and this one. Raises SystemRefused."""
        item, items = change.item, dict(self.changes.items)
        if item.kind == "server-deleted":
            for each in [each for each in items if (each.proxy, each.server) == (item.proxy, item.server)]:
                if each.kind != "server-deleted":
                    del items[each]
            before = configured(self.configured, item)
            if before is not None:
                items[item] = Change(item, True, before)
            return Changes(items)
        if item.kind == "server-added":
            words, sid = added_words(change)
            servers = next((each.servers for each in self._office.config.backends if each.name == item.proxy), ())
            items[item] = Change(item, f"{words} id {sid or free_sid(servers)}")
            return Changes(items)
        said = configured(structure(self.configured, self.changes), item)
        if said is None:
            raise SystemRefused(f"cannot change {described(item)}: there is no such thing")
        items.pop(item, None)
        if change.value != said:
            items[item] = Change(item, change.value, said)
        return Changes(items)

    def _move_to(self, changes: Changes, config: Config, done: Done) -> None:
        """Put other changes in force. Raises SystemRefused before anything is done."""
        office = self._office
        config = self._with_shut(config)
        todo = differences(office.config, config)
        earlier = self.changes
        rows = self._make_room(todo, config)
        self.changes, office.config = changes, config
        self._reconfigure()
        self._checks.follow(config)
        orders: list[tuple[Item, Any]] = []
        for difference in todo:
            orders += self._do(difference, rows)
        self._custody.save(self.changes)
        leaving = [item.proxy for item, value in todo if item.kind == "frontend-state" and value == "off"]
        self._leaving += leaving

        def over(whys: Sequence[tuple[Item, str]]) -> None:
            for name in leaving:
                self._leaving.remove(name)
            deleted = [item for item, _ in whys if item.kind == "server-deleted"]
            if deleted:
                # Somebody has come to it meanwhile: let there be such a server again.
                self._move_back(deleted, earlier)
                done(_HAS_CONNECTIONS)
                return
            for item, why in whys:
                text = f"cannot change {described(item)} in a worker: {why}"
                fields = {"backend": item.proxy, "server": item.server} if item.server else {}
                self._log("warning", text, event=Event.CHANGE_FAILED, proxy=item.proxy, **fields)
            self._rest()
            done(whys[0][1] if whys else "")

        self._order(orders, over)

    def _move_back(self, deleted: Sequence[Item], earlier: Changes) -> None:
        """Undo deletions; whatever else has been changed meanwhile stays."""
        items = dict(self.changes.items)
        for item in deleted:
            items.pop(item, None)
            names = (item.proxy, item.server)
            items |= {each: change for each, change in earlier.items.items() if (each.proxy, each.server) == names}
        changes = Changes(items)
        config, dropped = effective(self.configured, changes)
        self._move_to(keep(changes, dropped), config, self._complain)

    def _complain(self, why: str) -> None:
        if why:
            self._log("warning", why, event=Event.CHANGE_FAILED, proxy="")

    def _make_room(self, todo: Sequence[Difference], config: Config) -> dict[Item, int]:
        """The rows of servers that are added, and listeners of frontends that are enabled: what may fail."""
        for item, value in todo:
            if item.kind == "frontend-state" and value == "on":
                self._listen(item.proxy)
        backends = {backend.name: backend for backend in config.backends}
        rows = {
            item: self._standing.admit(backends[item.proxy], server)
            for item, server in todo
            if item.kind == "server-added"
        }
        for name in dict.fromkeys(item.proxy for item in rows):
            self._standing.look_at(backends[name])
        return rows

    def _reconfigure(self) -> None:
        office, equipment = self._office, self._office.equipment
        wanted, said = office.config.global_.maxconn, self.configured.global_.maxconn
        equipment.limits = lowered(equipment.planned, 0 if wanted == said else wanted, equipment.table.workers)
        equipment.pool.reconfigure(office.config, equipment.limits.share)

    def _do(self, difference: Difference, rows: dict[Item, int]) -> list[tuple[Item, Any]]:
        """What main has to do; returns what is the workers' part, with its value."""
        item, value = difference
        found = self._find(item.proxy, item.server) if item.server else None
        match item.kind:
            case "server-state" | "server-weight" | "server-check" if found:
                backend, server = found
                if item.kind == "server-state":
                    self._standing.administer(backend, server, value)
                elif item.kind == "server-weight":
                    self._standing.weigh(backend, server)
                    self._tell(difference)
                else:
                    if not value:
                        self._standing.forget_health(backend, server)
                    self._tell(difference)
                    if server.observe:
                        # To workers that know it, this says what it is now: whether its traffic counts.
                        row = self._office.equipment.table.index[RowKey("server", item.proxy, item.server)]
                        return [(item._replace(kind="server-added"), {"record": dump_server(server), "row": row})]
                return []
            case "server-added":
                text = f"Server {item.proxy}/{item.server} was added: {value.address}"
                self._made("notice", text, item)
                return [(item, {"record": dump_server(value), "row": rows[item]})]
            case "server-deleted":
                text = f"Server {item.proxy}/{item.server} was deleted"
                self._made("notice", text, item)
            case "frontend-state":
                what = "proxy" if any(each.name == item.proxy for each in self._office.config.backends) else "frontend"
                text = f"{'Paused' if value == 'off' else 'Resumed'} {what} {item.proxy}."
                self._made("warning", text, item)
            case "server-address" if found:
                self._standing.is_elsewhere(*found)
                self._tell(difference)
            case "global-maxconn":
                self._tell(difference)
                return [(item, self._office.equipment.limits.share)]
            case _:
                self._tell(difference)
        return [(item, value)]

    def _tell(self, difference: Difference) -> None:
        item, value = difference
        shown = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        said = configured(structure(self.configured, self.changes), item)
        shown_before = {True: "on", False: "off"}.get(said, said) if isinstance(said, bool) else said
        more = "" if said == value else f" (configured: {shown_before})"
        text = f"{described(item)} is now {shown}{more}"
        self._made("notice", text, item)

    def _made(self, severity: Literal["notice", "warning"], text: str, item: Item) -> None:
        fields = {"backend": item.proxy, "server": item.server} if item.server else {}
        self._log(severity, text, event=Event.CHANGE_MADE, proxy=item.proxy, **fields)

    def _order(self, orders: Sequence[tuple[Item, Any]], over: Callable[[list[tuple[Item, str]]], object]) -> None:
        """Give the workers orders, in this order; `over` gets those that could not be followed, and why."""
        whys: list[tuple[Item, str]] = []
        waiting = len(orders)

        def answered(item: Item, answers: Sequence[dict[str, Any] | None]) -> None:
            nonlocal waiting
            waiting -= 1
            whys.extend((item, str(answer["why"])) for answer in answers if answer and answer.get("why"))
            if not waiting:
                over(whys)

        if not orders:
            # Not before it is stored.
            self._loop.call_soon(lambda: over(whys))
        for item, value in orders:
            self._office.equipment.pool.ask(
                "change",
                lambda answers, item=item: answered(item, answers),  # type: ignore[misc]
                kind=item.kind,
                proxy=item.proxy,
                server=item.server,
                value=value,
            )

    # --- listeners

    def _with_shut(self, config: Config) -> Config:
        if not self._shut:
            return config

        def shut(frontend: Frontend) -> Frontend:
            return replace(frontend, disabled=True, shut=True) if frontend.name in self._shut else frontend

        return replace(config, frontends=tuple(map(shut, config.frontends)))

    def _listeners(self, name: str) -> list[tuple[int, Listener]]:
        """With the length of their backlogs."""
        return [
            (want.bind.backlog, listener)
            for want, listener in self._office.equipment.listeners
            if want.frontend == name and listener.open
        ]

    def _rest(self) -> None:
        """Refuse the clients of frontends that are off, where that can be done: once our workers have left them, and no
        successor's can be at it. During a reload clients wait, until that is over."""
        if self._retired or self._handing_over():
            return
        for frontend in self._office.config.frontends:
            if frontend.disabled and frontend.name not in self._leaving:
                for _, listener in self._listeners(frontend.name):
                    if listener.can_rest:
                        listener.stop_listening()

    def _listen(self, name: str) -> None:
        """Raises SystemRefused."""
        for backlog, listener in self._listeners(name):
            listener.overlap([other for _, other in self._office.equipment.listeners])
            listener.start_listening(backlog)

    # --- the store

    def _caught_up(self, why: str) -> None:
        if why:
            text = f"cannot do what was changed during the reload: {why}"
            self._log("warning", text, event=Event.CHANGE_FAILED, proxy="")


_SIDES = ("frontend", "backend")
