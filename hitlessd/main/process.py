"""The main process of one generation, from its start to its end: puts the parts together and answers for them."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from hitlessd import latecomers
from hitlessd.bugs import account
from hitlessd.dataclass import replace
from hitlessd.errors import ConfigError, HitlessdError, PeerError, SystemRefused
from hitlessd.events import Event
from hitlessd.handover.successor import Summons
from hitlessd.listeners import close_unwanted
from hitlessd.log import Log
from hitlessd.loop import Loop
from hitlessd.main import status
from hitlessd.main.administration import Administration
from hitlessd.main.arrival import Arrival
from hitlessd.main.birth import Birth, Born, Options, failure
from hitlessd.main.checks import Checks
from hitlessd.main.departure import Departure
from hitlessd.main.facade import Facade
from hitlessd.main.homecoming import YOUNG, Homecoming
from hitlessd.main.inheritance import Ancestor
from hitlessd.main.limits import raise_soft_limit
from hitlessd.main.office import Office, send_signal
from hitlessd.main.pidfile import Pidfile
from hitlessd.main.readiness import outcome_of, phases_of, say_ready
from hitlessd.main.reloads import Reloads
from hitlessd.main.sessions import LineServer, Sessions
from hitlessd.main.site import page_of, responders
from hitlessd.main.spare import Place
from hitlessd.main.standing import Standing, limited
from hitlessd.main.store import State, Store
from hitlessd.main.succession import Succession
from hitlessd.main.visitors import Visitors
from hitlessd.model import Backend, Frontend, LogTarget
from hitlessd.parking.park import Park
from hitlessd.runtime.control import ReloadOutcome
from hitlessd.runtime.server import RuntimeServer
from hitlessd.systemd import Manager, leave_no_trace
from hitlessd.table import PROCESS, Column, sum_over
from hitlessd.web.server import WebServer

__all__ = ["EXIT_CONFIG", "EXIT_REPLACED", "Main", "Options"]

#: sysexits.h; in the unit's RestartPreventExitStatus=, since trying again cannot help.
EXIT_CONFIG = 78
#: Replaced by somebody outside the unit, or told to finish and go: systemd must not revive us.
EXIT_REPLACED = 79

#: Seconds that callers of a reload wait, at most, for connections that move.
_ARRIVAL_PATIENCE = 10.0
#: Seconds that a start waits, at most, for connections that were parked.
_HOMECOMING_PATIENCE = 5.0
#: The part of the watchdog's time after which a silence is worth a word.
_NEAR = 2 / 3
#: Seconds after which a start is over for good.
_SETTLED = 1.0
_STATUS_EVERY = 5  # ticks between two STATUS lines, so that PID 1 is not kept busy


class Main(Facade):
    """Runs one generation."""

    def __init__(self, options: Options, place: Place, announce: Callable[[], object] = lambda: None) -> None:
        """`announce` is called once, when this generation serves."""
        super().__init__()
        self._options = options
        self._place = place
        self._announce = announce
        self._exit_status = 0
        self.log = Log(LogTarget())
        self.loop = Loop(self._report)
        self.started = self.loop.time()
        self._manager = Manager(dict(os.environ))
        self._store = Store(self._manager)
        self._reloads = Reloads(
            self.loop,
            lambda number: self._succession.begin(number),
            self._reload_ended,
        )
        self._stop_next = False
        self._succeeded = False  # another generation serves
        self._predecessor = 0  # its pid
        self._petted = 0.0  # when systemd's watchdog last heard of us
        self._departure: Departure
        self._homecoming: Homecoming
        self._checks: Checks
        self._visitors: Visitors

    def run(self) -> int:
        """Serve until told to stop; returns the exit status."""
        summons = self._place.summons or Summons.take(os.environ)  # type: ignore[arg-type]
        raise_soft_limit()
        self.loop.handle_signals(
            {
                signal.SIGTERM: self._stop,
                signal.SIGINT: self._stop,
                signal.SIGHUP: self._reload_by_signal,
                signal.SIGUSR2: self._reload_by_signal,
                signal.SIGUSR1: self._finish,
                signal.SIGTTOU: lambda: self._pause("pause"),
                signal.SIGTTIN: lambda: self._pause("resume"),
            }
        )
        birth = Birth(self.loop, self.log, self._options, self._store, self._manager.present)
        try:
            born = birth.come_up(summons)
            leave_no_trace(os.environ)  # type: ignore[arg-type]
            self._take_office(born)
        except BaseException as error:
            birth.withdraw(str(error))
            if not isinstance(error, HitlessdError):
                raise
            for line in str(error).splitlines():
                self.log("alert", line, event=failure(error))
            return EXIT_CONFIG if isinstance(error, ConfigError | SystemRefused) else 1
        gc.enable()
        self.loop.run()
        return self._exit_status

    # --- taking office

    def _take_office(self, born: Born) -> None:
        """From here on this process is the main one, to systemd and to everybody else."""
        equipment = born.equipment
        equipment.own_paths(self.log)
        office = self._office = Office(
            born.config,
            born.generation,
            equipment,
            RuntimeServer(self.loop, self, self.log),
            WebServer(self.loop, self.log, responders(self, self.loop), lambda proxy: page_of(self.config, proxy)),
            Pidfile(self._options.pidfile),
            born.config_error,
            born.inheritance.ancestors,
            self.started,
        )
        self._sessions = Sessions(self.loop, self.log, equipment.pool, office.ancestors)
        self._homecoming = Homecoming(self.loop, self.log, equipment.pool, equipment.parks, equipment.table)
        equipment.pool.when_bereaved(self._bereaved, self._homecoming.give)
        self._departure = Departure(self.loop, self.log, self._manager, office, self._homecoming.lose)
        self._succession = Succession(
            self.loop,
            self.log,
            self._manager,
            self._store,
            self._reloads,
            office,
            self._place.spare,
            self._committing,
            self._handover_ended,
            lambda: self._administration.facts(),
            self._memories,
        )
        standing = Standing(
            limited(self.loop, self.log),
            equipment.table,
            office.tables,
            lambda backend, server: self.shut_down(0, (backend, server), lambda _result: None),
        )
        self._checks = Checks(self.loop, office.config, equipment.table, office.tables, standing)
        self._administration = Administration(
            self.loop,
            self.log,
            self._store,
            office,
            born.configured,
            born.changes,
            self._checks,
            standing,
            lambda: self._reloads.running,
            lambda: self._succession.handing_over,
            lambda everything, done: self._sessions.clear_maxima(everything, done),
        )
        equipment.pool.when_observed(self._checks.observed)
        self._visitors = Visitors(lambda: self.config, office.web)
        equipment.pool.when_visited(self._visitors.came)
        self._sessions.when_visited(self._visitors.came)
        self._sessions.listen()
        self._checks.start()
        self._reloads.restore(born.inheritance.reloads)
        self._remember(born.inheritance.memories)
        office.pidfile.write(self.log)
        self._predecessor = office.ancestors[-1].pid if office.ancestors else 0
        dead = [ancestor.table for ancestor in office.ancestors if not ancestor.pid]
        lost, parked = status.unparked(dead), sum_over(dead, PROCESS, Column.PARKED)
        # Our table goes into the store before it gets the totals of others, which die with us else.
        self._keep(born)
        late = born.successor.late if born.successor else {}
        name = str(late.get("changes_name", born.inheritance.changes_name))
        self._administration.begin(late.get("changes"), name, born.dropped)
        for ancestor in list(office.ancestors):
            self._watch(ancestor)
        if not born.successor:
            # All who had them are dead.
            parks = born.stored.parks
            held = sum(park.book.held() for park in parks)
            spoilt = max(0, parked - held) if born.stored.spoilt else 0
            over: list[bool] = []
            self._homecoming.begin(parks, lost=lost, spoilt=spoilt, cold=True, done=lambda: over.append(True))
            # Whoever restarts us is told when everybody is back: restarts in a row would add up their gaps.
            deadline = self.loop.time() + _HOMECOMING_PATIENCE
            while not over and not office.stopping and self.loop.time() < deadline:
                self.loop.turn(deadline - self.loop.time())
        office.open_runtime()
        for listener in equipment.unwanted:
            close_unwanted(listener)
        outcome, number = outcome_of(born, self._reloads.number), self._reloads.number
        # Whoever waits for it is answered when the predecessor's connections have come.
        self._reloads.running = bool(outcome)
        self._manager.notify("READY=1", f"STATUS={self._status()}")
        # Whoever waits for a reload may next ask systemd for the main process: let it know first.
        self._manager.barrier()
        equipment.pool.tell("sweep")
        for state, fd in born.clients:
            try:
                office.import_client(fd, state)
            except PeerError as error:
                text = f"cannot serve a client of the predecessor: {error}"
                self.log("warning", text, event=Event.RUNTIME_CLIENT_DROPPED)
        if born.successor:
            arrival = self._arrival = Arrival(
                self.loop,
                self.log,
                equipment.pool,
                office.ancestors[-1] if office.ancestors else None,
                min(_ARRIVAL_PATIENCE, office.config.global_.reload_timeout),
                lambda: self._arrived(outcome, born),
                lambda: self._reloads.amend(number, phases=phases_of(born), **arrival.counts()),
            )

            def adopt(fds: list[int]) -> None:
                arrival.adopt(fds)
                self._sessions.listen()

            if predecessor := born.successor.committed(adopt, arrival.ended):
                predecessor.close()
        else:
            self._arrived(outcome, born)
        # Only now: the predecessor would take the signal of -sf for a wish to call the handover off.
        for pids, number in ((self._options.finish, signal.SIGUSR1), (self._options.terminate, signal.SIGTERM)):
            for pid in pids:
                send_signal(pid, number, self.log)
        self._tick()
        if self._manager.watchdog:
            self._pet_watchdog()
        self._announce()
        self.loop.call_later(_SETTLED, self._complete)

    def _complete(self) -> None:
        """Import what the start has left out, here and in the workers."""
        if self._serving.stopping:
            return
        left = {"main", "workers"}

        def loaded(who: str) -> None:
            left.discard(who)
            if not left:
                self.log("debug", "all modules are loaded")

        self._serving.equipment.pool.ask("complete", lambda _answers: loaded("workers"))
        packages = ["hitlessd.runtime", "hitlessd.config", *latecomers.WORKERS]
        if self._has_visitors():
            packages.append("hitlessd.web")
        self._go_on_importing(latecomers.imports(tuple(packages)), lambda: loaded("main"))
        self._succession.prepare(packages)

    def _go_on_importing(self, rest: Iterator[str], done: Callable[[], object]) -> None:
        # One a turn: others wait for main, too.
        if next(rest, ""):
            self.loop.call_soon(lambda: self._go_on_importing(rest, done))
        else:
            done()

    def _has_visitors(self) -> bool:
        """Whether the configuration has metrics or a page, which cost some memory."""
        config = self.config
        proxies: list[Frontend | Backend] = [*config.frontends, *config.backends]
        return bool(config.global_.metrics_binds) or any(
            proxy.stats or any(rule.action == "use-service" for rule in proxy.http_request) for proxy in proxies
        )

    def _keep(self, born: Born) -> None:
        """Put into systemd's store what a restart needs, and drop what it does not need any more."""
        equipment = born.equipment
        self._store.keep(
            State(born.generation, born.configured.files, born.configured.resolved, {}, self._reloads.export()),
            equipment.table,
            [listener for _, listener in equipment.listeners],
            equipment.mains,
        )
        equipment.parks.store()
        self._store.forget(born.stored.useless)
        self._store.forget(listener.name for listener in equipment.unwanted if listener.name)
        before = born.stored.state.generation if born.stored.state else born.inheritance.generation
        if before:
            self._store.forget_state(before, born.stored.state_name or born.inheritance.state)

    def _arrived(self, outcome: ReloadOutcome | None, born: Born) -> None:
        """The reload is over, if there was one."""
        office = self._serving
        if outcome:
            first, *rest = outcome.reason.splitlines()
            counts: dict[str, Any] = {}
            if self._arrival:
                counts = self._arrival.counts()
                first += f"; {self._arrival.summary}" if self._arrival.summary else ""
            outcome = replace(
                outcome,
                reason="\n".join([first, *rest]),
                duration=time.monotonic() - born.inheritance.reloads["began"],
                at=time.time(),
                phases=phases_of(born),
                **counts,
            )
        say_ready(
            self.log, office, self._manager, outcome, self._predecessor, self._arrival.moved if self._arrival else 0
        )
        if outcome:
            self._reloads.finished(outcome)

    def _reload_ended(self) -> None:
        """Called before those who wait for it are answered: what they ask systemd next must be true already."""
        self._store.keep_reloads(self._reloads.export())
        self._tell_status()

    # --- what goes from generation to generation

    def _memories(self) -> dict[str, Any]:
        return {"secret": self.secret.hex(), "trends": self._trends.export()}

    def _remember(self, memories: dict[str, Any]) -> None:
        try:
            self.secret = bytes.fromhex(memories["secret"]) or self.secret
            self._trends.restore(memories["trends"])
        except (KeyError, TypeError, ValueError):
            return  # a version before ours has none

    # --- being told (signals), being replaced

    def _committing(self) -> None:
        """The successor becomes the main process."""
        self._retire(True)
        self._visitors.hold()
        # What older generations say is for the successor's ears: it listens from now on.
        self._sessions.close()

    def _retire(self, retired: bool) -> None:
        """A successor is the main process from here on, or not after all."""
        self._checks.retire(retired)
        self._administration.retire(retired)

    def _handover_ended(self, handed_over: bool, by_hand: bool) -> None:
        if handed_over:
            self._succeeded = True
            outside = by_hand and self._manager.present
            self._exit_status = EXIT_REPLACED if outside else 0
            # The lines of older generations are the successor's, as is the one to us.
            for ancestor in self._serving.ancestors:
                if ancestor.line:
                    ancestor.line.close()
                    ancestor.line = None
            line = self._succession.take_line()
            self._visitors.leave_to(LineServer(self.loop, self._serving.equipment.pool, line) if line else None)
            self._departure.drain(awaits_ancestors=outside, kept=self._succession.kept)
        else:
            self._retire(False)
            self._visitors.stay()
            self._sessions.listen()
        if self._stop_next:
            self._stop()

    def _finish(self) -> None:
        if not self._office or self._office.stopping:
            return
        if not self._succession.abandon("it was told to finish"):
            return  # the successor takes over, and that is what finishes us
        self._succession.leave()
        self._exit_status = EXIT_REPLACED if self._manager.present else 0
        self._departure.finish()

    def _stop(self) -> None:
        if not self._office:
            raise SystemExit(1)
        if self._arrival:
            self._arrival.finish()  # whoever waits for the reload that brought us up
        if not self._succession.abandon("it is being stopped"):
            self._stop_next = True
            return
        self._succession.leave()
        self._checks.stop()
        self._departure.stop()

    def _pause(self, order: str) -> None:
        if not self._office or self._office.stopping:
            return
        paused = order == "pause"
        what = "paused: listeners stay open, nothing is accepted" if paused else "accepting again"
        self.log("notice", what, event=Event.ACCEPTING_PAUSED if paused else Event.ACCEPTING_RESUMED)
        self._office.equipment.pool.tell(order)

    def _reload_by_signal(self) -> None:
        if not self._office or self._office.stopping:
            return
        self._succession.again()
        self._reloads.request(lambda _outcome: None)

    # --- housekeeping

    def _tick(self) -> None:
        office = self._serving
        if office.stopping:
            return
        self.loop.call_later(1.0, self._tick)
        office.equipment.pool.tick()
        self._rates.tick(office.tables())
        self._request_rates.tick(office.tables())
        self._trends.tick(status.busy(office.config, self._rates, self._request_rates))
        if self._rates.ticks % _STATUS_EVERY == 0:
            self._tell_status()

    def _pet_watchdog(self) -> None:
        # Also while finishing: we are the main process until we end.
        watchdog = self._manager.watchdog
        assert watchdog
        since = self.loop.time() - (self._petted or self.loop.time())
        self._petted = self.loop.time()
        self._manager.notify("WATCHDOG=1")
        if since > watchdog * _NEAR:
            text = f"the main process was held up for {since:.1f} s; after {watchdog:g} s, systemd kills it"
            self.log("warning", text, event=Event.WATCHDOG_NEAR, duration_ms=round(since * 1000))
        self.loop.call_later(watchdog / 3, self._pet_watchdog)

    def _status(self) -> str:
        return status.line(self, self._serving.equipment, self._reloads, self._serving.ancestors, self._arrival)

    def _tell_status(self) -> None:
        if not self._serving.stopping and not self._reloads.running:
            self._manager.notify(f"STATUS={self._status()}")

    def _watch(self, ancestor: Ancestor) -> None:
        if ancestor.process is None:
            self._bury(ancestor)
        else:
            ancestor.process.when_dead(self.loop, lambda: self._bury(ancestor))

    def _bury(self, ancestor: Ancestor) -> None:
        """A generation has ended: its totals are ours now."""
        office = self._serving
        left, lost = status.sessions([ancestor.table]), status.unparked([ancestor.table])
        ancestor.process = None
        office.ancestors.remove(ancestor)
        office.equipment.table.fold(ancestor.table)
        self._store.forget_table(ancestor.generation)
        ancestor.table.close()
        if ancestor.line:
            self._sessions.forget(ancestor.line)
            ancestor.line.close()
        if not office.stopping:
            held = sum(park.book.held() for park in ancestor.parks)
            if left and ancestor.pid:
                text = f"generation {ancestor.generation} ended with {left} connections, {held} are parked"
                self.log("err", text, event=Event.GENERATION_LOST, pid=ancestor.pid, parked=held)
            if ancestor.pid:
                self._homecoming.begin(ancestor.parks, lost=lost)
        self._departure.ancestor_ended()

    def _bereaved(self, park: Park, index: int, lost: int) -> None:
        pool = self._serving.equipment.pool
        if self._manager.replaced and pool.members():
            # Systemd does not hear us any more, so that a new worker's park would not be kept: an old one goes on.
            index = pool.members()[0][0]
        if pool.state in ("park", "quit", "hurry"):
            self._homecoming.lose(Counter({YOUNG: lost}))
        elif pool.members() or not self._serving.stopping:
            self._homecoming.begin([park], index, lost)
        elif not self._succeeded:
            # The last one, while finishing.
            self._homecoming.lose(Counter({YOUNG: lost + park.book.held()}))
        else:
            self._homecoming.lose(Counter({YOUNG: lost}))  # the successor goes on with the others

    def _report(self, what: str, error: BaseException) -> None:
        text = f"a callback of {what} failed, which is a bug in hitlessd; it goes on\n{account(error)}"
        self.log("crit", text, event=Event.BUG)
