"""The main process of one generation, from its start to its end."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hitlessd import __version__
from hitlessd.config import load, parse
from hitlessd.errors import ConfigError, HitlessdError, PeerError, SystemRefused
from hitlessd.handover.getsocks import Giver
from hitlessd.handover.predecessor import Offer, Predecessor
from hitlessd.handover.process import PeerProcess
from hitlessd.handover.successor import PredecessorLost, Successor, Summons
from hitlessd.listeners import close_unwanted
from hitlessd.log import Log
from hitlessd.loop import Loop, Timer
from hitlessd.main import status
from hitlessd.main.equipment import Equipment, equip
from hitlessd.main.inheritance import Ancestor, Inheritance, connect, from_offer, from_store, summoned, take_foreign
from hitlessd.main.limits import raise_soft_limit
from hitlessd.main.reloads import Reloads
from hitlessd.main.spawn import command_line, spawn
from hitlessd.main.store import State, Store, Stored
from hitlessd.model import Config, LogTarget, StatsSocket
from hitlessd.runtime.control import Credentials, GenerationInfo, ReloadOutcome
from hitlessd.runtime.server import RuntimeServer
from hitlessd.systemd import Manager, inherited_descriptors, leave_no_trace
from hitlessd.table import RowKey, Table

__all__ = ["EXIT_CONFIG", "EXIT_REPLACED", "Main", "Options"]

#: sysexits.h; in the unit's RestartPreventExitStatus=, since trying again cannot help.
EXIT_CONFIG = 78
#: Replaced by somebody outside the unit, or told to finish and go: systemd must not revive us.
EXIT_REPLACED = 79

#: Seconds that SIGTERM leaves the workers, and generations that still drain, to close what they have.
_STOP_PATIENCE = 2.0
#: Seconds a killed predecessor's workers may take to let go of their listeners.
_LAST_GASP = 3.0


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. `finish` and `terminate` are the pids of -sf and -st."""

    files: tuple[str, ...]
    pidfile: str = ""
    predecessor: str = ""
    finish: tuple[int, ...] = ()
    terminate: tuple[int, ...] = ()


class Main:
    """Runs one generation. It is the Host of handovers in which it is replaced, and the Control of the runtime API."""

    def __init__(self, options: Options, announce: Callable[[], object] = lambda: None) -> None:
        """`announce` is called once, when this generation serves."""
        self.version = __version__
        self.pid = os.getpid()
        self.generation = 0
        self.started_at = time.time()
        self.warm = False
        self.config_error = ""
        self.stopping = False
        self._options = options
        self._announce = announce
        self._exit_status = 0
        self.log = Log(LogTarget())
        self.loop = Loop(self._report)
        self.started = self.loop.time()
        self._manager = Manager(dict(os.environ))
        self._store = Store(self._manager)
        self._reloads = Reloads(self.loop, self._begin_reload)
        self._rates = status.Rates()
        self._ancestors: list[Ancestor] = []
        self._handover: Predecessor | None = None
        self._exported: list[tuple[socket.socket, dict[str, Any]]] = []
        self._by_hand = False
        self._reload_began = 0.0
        self._again = False
        self._stop_next = False
        self._finishing = False
        self._drained = False
        self._given = False
        self._givers: set[Giver] = set()
        self._ticker: Timer | None = None
        self._watchdog: Timer | None = None
        self._server: RuntimeServer
        self._equipment: Equipment
        self.config: Config

    # --- start

    def run(self) -> int:
        """Serve until told to stop; returns the exit status."""
        summons = Summons.take(os.environ)  # type: ignore[arg-type]
        raise_soft_limit()
        self.loop.handle_signals(
            {
                signal.SIGTERM: self._stop,
                signal.SIGINT: self._stop,
                signal.SIGHUP: self._reload_by_signal,
                signal.SIGUSR2: self._reload_by_signal,
                signal.SIGUSR1: self._soft_stop,
                signal.SIGTTOU: lambda: self._pause("pause"),
                signal.SIGTTIN: lambda: self._pause("resume"),
            }
        )
        successor: Successor | None = None
        try:
            if summons:
                successor = summoned(self.loop, summons, self._patience(None))
            stored = self._store.recover(inherited_descriptors(), self.log)
            leave_no_trace(os.environ)  # type: ignore[arg-type]
            config = self._configuration(stored)
            self.log = Log(config.global_.log, self.generation)
            self._start(config, stored, successor)
        except BaseException as error:
            if hasattr(self, "_equipment"):
                self._equipment.withdraw()
            if not isinstance(error, HitlessdError):
                raise
            if successor:
                successor.refuse(str(error))
            for line in str(error).splitlines():
                self.log("alert", line)
            return EXIT_CONFIG if isinstance(error, ConfigError | SystemRefused) else 1
        self.loop.run()
        return self._exit_status

    def _patience(self, config: Config | None) -> float:
        return config.global_.reload_timeout if config else 60.0

    def _configuration(self, stored: Stored) -> Config:
        """The files' configuration; where they are broken and systemd has kept what ran last, that."""
        try:
            return load(self._options.files)
        except ConfigError as error:
            if not stored.state or not stored.state.files:
                raise
            self._fall_back(error)
            return self._stored_configuration(stored.state)

    def _stored_configuration(self, state: State) -> Config:
        def resolver(name: str) -> Sequence[str]:
            return state.resolved.get(name, ())

        return parse(state.files, resolver=resolver)

    def _fall_back(self, error: HitlessdError) -> None:
        self.warm = True
        self.config_error = str(error)
        for line in self.config_error.splitlines():
            self.log("err", line)
        self.log("err", "cannot use the configuration as it is now; serving the one that ran last")

    def _start(self, config: Config, stored: Stored, successor: Successor | None) -> None:
        if not stored.state:
            self._check_pidfile()
        if self._options.predecessor and successor is None:
            successor = connect(self.loop, self._options.predecessor, self._patience(config))
            foreign = successor is None
        else:
            foreign = False
        lost = False
        if successor:
            successor.timeout = self._patience(config)
            try:
                inheritance = from_offer(successor.introduce(), self.log)
            except PredecessorLost as error:
                inheritance, lost = Inheritance(), self._alone(error)
        elif foreign:
            inheritance = take_foreign(self._options.predecessor, min(5.0, self._patience(config)), self.log)
        else:
            inheritance = from_store(stored)
        self.generation = self.log.generation = inheritance.generation + 1
        self._reloads.restore(inheritance.reloads)
        try:
            self._equip(config, inheritance, lost)
        except (SystemRefused, ConfigError) as error:
            # A file that is valid but cannot be served is no better than a broken one.
            if self.warm or successor or not stored.state or not stored.state.files:
                raise
            self._fall_back(error)
            config = self._stored_configuration(stored.state)
            self._equip(config, inheritance, lost)
        clients: list[dict[str, Any]] = []
        fds: list[int] = []
        if successor and not lost:
            try:
                successor.ready(self._equipment.kept(inheritance))
                self._equipment.accept(self.loop, self._patience(config))
                clients, fds = successor.accepting()
            except PredecessorLost as error:
                lost = self._alone(error)
        if not self._equipment.accepting:
            self._equipment.accept(self.loop, self._patience(config))
        self._take_office(inheritance, stored, clients, fds)
        if successor and not lost and (predecessor := successor.committed()):
            predecessor.close()
        # Only now: it would take the signal of -sf for a wish to call the handover off.
        for pids, number in ((self._options.finish, signal.SIGUSR1), (self._options.terminate, signal.SIGTERM)):
            for pid in pids:
                self._signal_old(pid, number)

    def _alone(self, error: PredecessorLost) -> bool:
        """The predecessor is dead. Under systemd it was the unit's main process: the unit restarts, from the store."""
        if self._manager.present:
            raise PeerError(f"cannot take over: {error}; systemd restarts the unit") from error
        self.log("err", f"the predecessor is gone ({error}): going on alone")
        return True

    def _equip(self, config: Config, inheritance: Inheritance, lost: bool) -> None:
        deadline = self.loop.time() + _LAST_GASP
        while True:
            try:
                self._equipment = equip(
                    config,
                    inheritance,
                    loop=self.loop,
                    log=self.log,
                    generation=self.generation,
                    replace=inheritance.foreign or bool(self._options.finish or self._options.terminate),
                    patience=self._patience(config),
                )
            except SystemRefused:
                # A killed predecessor's workers take a moment to die and to let go of its addresses.
                if not lost or self.loop.time() > deadline:
                    raise
                self.loop.turn(0.02)
            else:
                self.config = config
                return

    def _take_office(
        self, inheritance: Inheritance, stored: Stored, clients: Sequence[dict[str, Any]], fds: Sequence[int]
    ) -> None:
        """From here on this process is the main one, to systemd and to everybody else."""
        equipment = self._equipment
        equipment.own_paths(self.log)
        self._write_pidfile()
        self._server = RuntimeServer(self.loop, self, self.log)
        for stats, listener in equipment.runtime:
            self._server.add_listener(stats, listener.sock)
        self._ancestors = inheritance.ancestors
        for ancestor in list(self._ancestors):
            self._watch(ancestor)
        self._store.keep(
            State(
                self.generation,
                self.config.files,
                self.config.resolved,
                {},
                self._reloads.export(),
            ),
            equipment.table,
            [listener for _, listener in equipment.listeners],
            [listener for _, listener in equipment.runtime],
        )
        self._store.forget(stored.useless)
        if stored.state:
            self._store.forget_state(stored.state.generation)
        elif inheritance.generation:
            self._store.forget_state(inheritance.generation)
        for listener in equipment.unwanted:
            if listener.name:
                self._store.forget([listener.name])
            close_unwanted(listener)
        outcome = self._note_reload(inheritance)
        self._manager.notify("READY=1", f"STATUS={self._status()}")
        # Whoever waits for a reload may next ask systemd for the main process: let it know first.
        self._manager.barrier()
        equipment.pool.tell("sweep")
        self._say_ready(inheritance, outcome)
        if len(clients) == len(fds):
            for state, fd in zip(clients, fds, strict=True):
                try:
                    self._server.import_client(socket.socket(fileno=fd), state)
                except (PeerError, OSError) as error:
                    self.log("warning", f"cannot serve a client of the predecessor's runtime API: {error}")
        self._tick()
        if self._manager.watchdog:
            self._pet_watchdog()
        self._announce()

    def _note_reload(self, inheritance: Inheritance) -> ReloadOutcome | None:
        began = inheritance.reloads.get("began")
        if not isinstance(began, int | float) or not began:
            return None
        duration = time.monotonic() - began
        closed = len(self._equipment.unwanted)
        summary = (
            f"generation {self.generation} (pid {self.pid}) serves, took {duration * 1000:.0f} ms;"
            f" listeners: {self._equipment.taken} taken, {self._equipment.bound} bound, {closed} closed"
        )
        if self.config.warnings:
            summary += "\n" + "\n".join(self.config.warnings)
        outcome = ReloadOutcome(self._reloads.number, True, summary, duration, time.time())
        self._reloads.note(outcome)
        return outcome

    def _say_ready(self, inheritance: Inheritance, outcome: ReloadOutcome | None) -> None:
        for warning in self.config.warnings:
            self.log("warning", warning)
        equipment = self._equipment
        fields = {
            "pid": self.pid,
            "workers": equipment.table.workers,
            "taken": equipment.taken,
            "bound": equipment.bound,
            "closed": len(equipment.unwanted),
        }
        if outcome:
            old = max(self._ancestors, key=lambda x: x.generation, default=None)
            self.log(
                "notice",
                f"reload {outcome.number} done: {outcome.reason.splitlines()[0]}",
                **fields,
                predecessor=old.pid if old else 0,
                duration_ms=round(outcome.duration * 1000),
            )
        else:
            self.log(
                "notice",
                f"hitlessd {self.version} serves: generation {self.generation}, {len(equipment.listeners)} listeners"
                f" ({equipment.taken} taken, {equipment.bound} bound), {equipment.table.workers} workers,"
                f" maxconn {equipment.limits.maxconn}",
                **fields,
            )

    def _signal_old(self, pid: int, number: signal.Signals) -> None:
        try:
            process = PeerProcess(pid)
        except PeerError:
            return  # gone already, as with HAProxy
        try:
            process.signal(number)
        except PeerError as error:
            self.log("warning", str(error))
        finally:
            process.close()

    # --- being asked (Control)

    @property
    def last_reload(self) -> ReloadOutcome | None:
        return self._reloads.last

    @property
    def reloads(self) -> tuple[int, int]:
        return self._reloads.completed, self._reloads.refused

    @property
    def startup_logs(self) -> str:
        return "\n".join(self.config.warnings)

    @property
    def listeners(self) -> int:
        return len(self._equipment.listeners)

    @property
    def maxconn(self) -> int:
        return self._equipment.limits.maxconn

    def tables(self) -> Sequence[Table]:
        return [self._equipment.table, *(ancestor.table for ancestor in reversed(self._ancestors))]

    def generations(self) -> Sequence[GenerationInfo]:
        return status.generations(self, self._equipment, self._ancestors)

    def rates(self, key: RowKey) -> tuple[int, int]:
        return self._rates.of(key)

    def request_reload(self, done: Callable[[ReloadOutcome], None]) -> int:
        return self._reloads.request(done)

    def resume_reload(self, number: int, done: Callable[[ReloadOutcome], None]) -> int:
        return self._reloads.resume(number, done)

    def getsocks(
        self, sock: socket.socket, stats: StatsSocket, credentials: Credentials | None, already: bytes
    ) -> None:
        # Copies: a reload meanwhile closes ours, and their numbers must not come to mean something else.
        fds = [os.dup(listener.sock.fileno()) for _, listener in self._equipment.listeners]

        def done(ok: bool) -> None:
            for fd in fds:
                os.close(fd)
            self._given |= ok
            who = f" by process {credentials.pid}" if credentials else ""
            self.log("notice", f"{len(fds)} listeners {'were taken' if ok else 'were asked for, but not taken,'}{who}")

        Giver(self.loop, sock, fds, done)

    def takeover(
        self, sock: socket.socket, rest: bytes, stats: StatsSocket, credentials: Credentials, already: bytes
    ) -> None:
        problem = ""
        if self._manager.present and not self.config.global_.external_takeover:
            problem = (
                "this one is run by systemd, which would revive it beside you: use `systemctl reload`,"
                " or set `external-takeover = on` in [global]"
            )
        elif self._reloads.running or self.stopping:
            problem = "it is being reloaded or stopped; try again"
        elif not credentials.pid:
            problem = "you are in another pid namespace"
        try:
            if problem:
                raise PeerError(problem)
            process = PeerProcess(credentials.pid)
        except PeerError as error:
            with sock:
                sock.setblocking(False)
                try:
                    sock.send(f"cannot take over: {error}\n".encode(), socket.MSG_NOSIGNAL)
                except OSError:
                    return
            return
        self._by_hand = True
        self._reloads.running = True
        self._reloads.number += 1
        self._reload_began = time.monotonic()
        self._handover = Predecessor(self.loop, self, sock, process, "", self.config.global_.reload_timeout, already)

    # --- being replaced (Host)

    def _begin_reload(self, number: int) -> None:
        self._reload_began = time.monotonic()
        self._by_hand = False
        self._again = False
        self._manager.reloading()
        if self.stopping:
            return self.refused("it is being stopped")
        nonce = secrets.token_hex(16)
        try:
            process, sock = spawn(nonce, command_line(sys.orig_argv))
        except (HitlessdError, OSError) as error:
            return self.refused(str(error))
        self.log("info", f"reload {number}: started process {process.pid}")
        self._handover = Predecessor(self.loop, self, sock, process, nonce, self.config.global_.reload_timeout)

    def offer(self) -> Offer:
        equipment = self._equipment
        offer = Offer(
            {
                "generation": self.generation,
                "pid": self.pid,
                "reloads": {**self._reloads.export(), "began": self._reload_began},
            }
        )
        for _, listener in equipment.listeners:
            offer.add("listener", listener.sock.fileno(), listener.record())
        for _, listener in equipment.runtime:
            offer.add("runtime", listener.sock.fileno(), listener.record())
        for ancestor in [*self._ancestors, self._as_ancestor()]:
            offer.add("table", ancestor.table.fd, ancestor.record())
        return offer

    def _as_ancestor(self) -> Ancestor:
        workers = [pid for _, pid in sorted(self._equipment.pool.members())]
        return Ancestor(self.generation, self.pid, self._equipment.table, self.started, self.version, workers)

    def stop_accepting(self, done: Callable[[], object]) -> None:
        self._equipment.pool.stop_accepting(done)

    def resume_accepting(self) -> None:
        self._equipment.pool.tell("accept")
        self._write_pidfile()  # the successor may have written its own
        for _, listener in self._equipment.runtime:
            self._server.remove_listener(listener.sock)
        for stats, listener in self._equipment.runtime:
            self._server.add_listener(stats, listener.sock)

    def announce(self, successor: int, kept: Sequence[int]) -> None:
        ours = [listener for _, listener in (*self._equipment.listeners, *self._equipment.runtime)]
        keep = set(kept)
        self._store.forget(x.name for i, x in enumerate(ours) if i not in keep and x.origin == "own" and x.name)
        if not self._by_hand:
            # READY=1 too: systemd 257 would wait for one from a main process that dies now, and restart nothing.
            self._manager.notify("READY=1", f"MAINPID={successor}")
            self._manager.replaced = True

    def export_clients(self) -> tuple[list[dict[str, Any]], list[int]]:
        # No new ones from here on: they are the successor's.
        for _, listener in self._equipment.runtime:
            self._server.remove_listener(listener.sock)
        self._exported = self._server.export_clients()
        return [state for _, state in self._exported], [sock.fileno() for sock, _ in self._exported]

    def handed_over(self, successor: PeerProcess) -> None:
        self._handover = None
        for sock, _ in self._exported:
            sock.close()
        self._exported.clear()
        if self._again and not self._by_hand:
            successor.signal(signal.SIGHUP)
        self.log(
            "notice" if self._by_hand else "info",
            f"generation {self.generation} hands over to process {successor.pid} and drains"
            f" {status.sessions([self._equipment.table])} connections",
        )
        successor.close()
        self._leave(EXIT_REPLACED if self._by_hand and self._manager.present else 0)
        if self._stop_next:
            self._stop()

    def refused(self, reason: str) -> None:
        self._handover = None
        self._manager.replaced = False
        if not self._by_hand:
            self._manager.notify("READY=1")
        outcome = ReloadOutcome(self._reloads.number, False, reason, time.monotonic() - self._reload_began, time.time())
        for line in reason.splitlines():
            self.log("err", f"reload {outcome.number} refused: {line}")
        self._reloads.finished(outcome)
        # Clients that were on their way to the successor come back, and find the outcome there.
        for sock, state in self._exported:
            self._server.import_client(sock, state)
        self._exported.clear()
        self._tell_status()
        if self._stop_next:
            self._stop()

    # --- leaving

    def _leave(self, exit_status: int) -> None:
        """Accept nothing more, serve who is there, then end."""
        self._exit_status = exit_status
        self.stopping = True
        if self._ticker:
            self._ticker.cancel()
        pool = self._equipment.pool
        for _, listener in self._equipment.runtime:
            self._server.remove_listener(listener.sock)
            listener.close()
        self._server.close()
        for _, listener in self._equipment.listeners:
            listener.close()
        pool.close_listeners()
        pool.when_gone(self._gone)
        pool.tell("drain")
        limit = self.config.global_.hard_stop_after
        if limit is not None:
            self.loop.call_later(limit, self._hurry)
        self._ticker = self.loop.call_later(1.0, self._leaving_tick)

    def _leaving_tick(self) -> None:
        self._equipment.pool.tick()
        self._ticker = self.loop.call_later(1.0, self._leaving_tick)

    def _hurry(self) -> None:
        left = status.sessions([self._equipment.table])
        self.log("warning", f"hard-stop-after has run out: closing {left} connections", closed=left)
        self._equipment.pool.tell("hurry")

    def _gone(self) -> None:
        self.log("info", f"generation {self.generation} has drained")
        self._drained = True
        self._end_when_drained()

    def _end_when_drained(self) -> None:
        # While we are the unit's main process, our end is the end of older generations too.
        main = self._finishing or (self._by_hand and self._manager.present)
        if not self._drained or (main and any(ancestor.process for ancestor in self._ancestors)):
            return
        # PID 1 must have seen all that we sent before it sees us end.
        self._manager.barrier()
        self.loop.stop()

    def _soft_stop(self) -> None:
        if self.stopping or not self._serving():
            return
        if not self._abandon_handover("it was told to finish"):
            return  # the successor takes over, and that is what finishes us
        self._finishing = True
        self.log("notice", "finishing: no new connections are accepted")
        self._manager.notify(f"STATUS=finishing {status.sessions(self.tables())} connections")
        self._unlink_paths()
        self._remove_pidfile()
        self._leave(EXIT_REPLACED if self._manager.present else 0)

    def _stop(self) -> None:
        if not self._serving():
            raise SystemExit(1)
        if not self._abandon_handover("it is being stopped"):
            self._stop_next = True
            return
        if not self.stopping:
            self._manager.notify("STOPPING=1", "STATUS=stopping")
            self.log("notice", f"stopping: closing {status.sessions(self.tables())} connections")
            if not self._manager.has_store:
                self._unlink_paths()
            self._remove_pidfile()
        self.stopping = True
        for timer in (self._ticker, self._watchdog):
            if timer:
                timer.cancel()
        pool = self._equipment.pool
        for ancestor in self._ancestors:
            if ancestor.process:
                self._signal_old(ancestor.pid, signal.SIGTERM)
        pool.when_gone(self._stopped)
        pool.tell("quit")
        self.loop.call_later(_STOP_PATIENCE, self._stop_hard)

    def _stop_hard(self) -> None:
        self._equipment.pool.kill_all()
        for ancestor in self._ancestors:
            if ancestor.process:
                self._signal_old(ancestor.pid, signal.SIGKILL)

    def _stopped(self) -> None:
        """systemd kills what is left of the unit as soon as we are gone: let those that drain close in good order."""
        if not any(ancestor.process for ancestor in self._ancestors):
            self.loop.stop()
        else:
            self.loop.call_later(0.02, self._stopped)

    def _abandon_handover(self, why: str) -> bool:
        """Call a running handover off; False when it is too late for that, and its end has to be awaited."""
        return not self._handover or self._handover.abandon(f"cannot reload: {why}")

    def _serving(self) -> bool:
        return hasattr(self, "_server")

    def _unlink_paths(self) -> None:
        # After `_getsocks` a haproxy may serve our paths.
        listeners = [] if self._given else self._equipment.listeners
        for _, listener in (*listeners, *self._equipment.runtime):
            listener.unlink()

    def _pause(self, order: str) -> None:
        if not self._serving() or self.stopping:
            return
        self.log(
            "notice", "paused: listeners stay open, nothing is accepted" if order == "pause" else "accepting again"
        )
        self._equipment.pool.tell(order)

    def _reload_by_signal(self) -> None:
        if not self._serving() or self.stopping:
            return
        self._again = self._reloads.running
        self._reloads.request(lambda _outcome: None)

    # --- housekeeping

    def _tick(self) -> None:
        self._ticker = self.loop.call_later(1.0, self._tick)
        self._equipment.pool.tick()
        self._rates.tick(self.tables())
        if self._rates.ticks % 5 == 0:
            self._tell_status()

    def _pet_watchdog(self) -> None:
        assert self._manager.watchdog
        self._manager.notify("WATCHDOG=1")
        self._watchdog = self.loop.call_later(self._manager.watchdog / 3, self._pet_watchdog)

    def _status(self) -> str:
        return status.line(self, self._equipment, self._reloads)

    def _tell_status(self) -> None:
        if not self.stopping and not self._reloads.running:
            self._manager.notify(f"STATUS={self._status()}")

    def _watch(self, ancestor: Ancestor) -> None:
        if ancestor.process is None:
            self._bury(ancestor)
        else:
            ancestor.process.when_dead(self.loop, lambda: self._bury(ancestor))

    def _bury(self, ancestor: Ancestor) -> None:
        """A generation has ended: its totals are ours now."""
        left = status.sessions([ancestor.table])
        ancestor.process = None
        self._ancestors.remove(ancestor)
        self._equipment.table.fold(ancestor.table)
        self._store.forget_table(ancestor.generation)
        ancestor.table.close()
        if left and ancestor.pid:
            self.log("err", f"generation {ancestor.generation} ended with {left} connections lost", lost=left)
        self._end_when_drained()

    def _check_pidfile(self) -> None:
        """Refuse what cannot be written before anything moves. Raises SystemRefused."""
        path = self._options.pidfile
        if not path:
            return
        temporary = f"{path}.{self.pid}.tmp"
        try:
            if os.path.isdir(path):
                raise IsADirectoryError(errno.EISDIR, "it is a directory")
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
            os.unlink(temporary)
        except OSError as error:
            raise SystemRefused(f"cannot write the pidfile {path}: {error.strerror}") from None

    def _write_pidfile(self) -> None:
        path = self._options.pidfile
        if not path:
            return
        temporary = f"{path}.{self.pid}.tmp"
        try:
            with open(temporary, "w", encoding="ascii") as file:
                file.write(f"{self.pid}\n")
            os.rename(temporary, path)
        except OSError as error:
            self.log("err", f"cannot write {path}: {error.strerror}")

    def _remove_pidfile(self) -> None:
        path = self._options.pidfile
        if not path:
            return
        try:
            with open(path, encoding="ascii") as file:
                ours = file.read().strip() == str(self.pid)
            if ours:
                os.unlink(path)
        except (OSError, ValueError):
            return

    def _report(self, what: str, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        self.log("crit", f"a callback of {what} failed, which is a bug in hitlessd; it goes on\n{text}")
