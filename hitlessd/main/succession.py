"""Being replaced: starts successors, and is the Host of the handovers to them. Also gives listeners to a haproxy."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from hitlessd.dataclass import dataclass
from hitlessd.descriptors import close_all
from hitlessd.errors import HitlessdError, PeerError
from hitlessd.events import Event
from hitlessd.handover.getsocks import Giver
from hitlessd.handover.predecessor import Offer, Predecessor
from hitlessd.handover.process import PeerProcess
from hitlessd.log import Logger
from hitlessd.loop import Loop
from hitlessd.main import status
from hitlessd.main.office import Office
from hitlessd.main.reloads import Reloads
from hitlessd.main.spare import Spare
from hitlessd.main.spawn import command_line, spawn
from hitlessd.main.store import Store
from hitlessd.runtime.control import Credentials, ReloadOutcome
from hitlessd.systemd import Manager
from hitlessd.table import PROCESS, Column

__all__ = ["Succession"]

#: It ends when it has drained, and the kernel kills all others of its namespace then (pid_namespaces(7)).
_PROCESS_1 = "it is process 1, with which its container ends; run it under an init (docker run --init)"


@dataclass
class _Passage:
    """Connections that go to one successor."""

    moved: int = 0  # once it is over
    failed: bool = False  # the successor is dead


class Succession:
    """At most one handover at a time. `committing()` is called when the successor becomes the main process, and
    `ended(handed_over, by_hand)` at the end of each; `memories()` are facts for the successor."""

    def __init__(
        self,
        loop: Loop,
        log: Logger,
        manager: Manager,
        store: Store,
        reloads: Reloads,
        office: Office,
        spare: Spare | None,
        committing: Callable[[], object],
        ended: Callable[[bool, bool], object],
        facts: Callable[[], dict[str, Any]],
        memories: Callable[[], dict[str, Any]],
    ) -> None:
        """`facts()` are more that the successor gets, when it asks and again as they are in the end; `memories()` what
        it may do without."""
        self._loop = loop
        self._log = log
        self._manager = manager
        self._store = store
        self._reloads = reloads
        self._office = office
        self._spare = spare
        self._committing = committing
        self._ended = ended
        self._facts = facts
        self._memories = memories
        self._places: list[int] = []  # of the listeners in the offer, among ours
        self._handover: Predecessor | None = None
        self._exported: list[tuple[int, dict[str, Any]]] = []
        self._by_hand = False
        self._began = 0.0
        self._again = False
        self.kept: list[int] = []  # what the successor has of our listeners
        self._passage = _Passage()
        self._line: socket.socket | None = None  # over which the successor may ask us while we drain

    def begin(self, number: int) -> None:
        """Reload: start a successor."""
        self._began = time.monotonic()
        self._by_hand = False
        self._again = False
        self._manager.reloading()
        if self._office.stopping:
            return self.refused("it is being stopped")
        if os.getpid() == 1:
            return self.refused(f"cannot be replaced: {_PROCESS_1}")
        nonce = os.urandom(16).hex()  # the module secrets would add 5 ms of imports
        try:
            process, sock, how = self._start(nonce)
        except (HitlessdError, OSError) as error:
            return self.refused(str(error))
        text = f"reload {number}: started process {process.pid}{how}"
        self._log("info", text, event=Event.RELOAD_STARTED, reload=number, pid=process.pid)
        timeout = self._office.config.global_.reload_timeout
        self._handover = Predecessor(self._loop, self, sock, process, nonce, timeout, began=self._began)

    def _start(self, nonce: str) -> tuple[PeerProcess, socket.socket, str]:
        """The successor, our end of the stream to it, and a word on how it came to be, if there is one to say."""
        how = ""
        if self._spare:
            try:
                return *self._spare.summon(nonce), ""
            except PeerError as error:
                self._spare = None
                how = f" anew: {error}"
        return *spawn(nonce, command_line(sys.orig_argv)), how

    def prepare(self, packages: Sequence[str]) -> None:
        """A reload will not have to import these."""
        if self._spare:
            self._spare.prepare(packages)

    def leave(self) -> None:
        """No reload will come any more."""
        if self._spare:
            self._spare.end()
            self._spare = None

    def again(self) -> None:
        """Somebody who waits for no answer wants one more reload than the running one."""
        self._again = self._reloads.running

    @property
    def handing_over(self) -> bool:
        """A successor is on its way."""
        return self._handover is not None

    def abandon(self, why: str) -> bool:
        """Call a running handover off; False when it is too late for that, and its end has to be awaited."""
        return not self._handover or self._handover.abandon(f"cannot reload: {why}")

    def give(self, sock: socket.socket, credentials: Credentials | None) -> None:
        """Answer `_getsocks`."""
        who = f" by process {credentials.pid}" if credentials else ""
        # Copies: a reload meanwhile closes ours, and their numbers must not come to mean something else.
        fds: list[int] = []
        try:
            for _, listener in self._office.equipment.listeners:
                if listener.open and listener.listening:
                    fds.append(os.dup(listener.sock.fileno()))
        except OSError as error:
            close_all(fds)
            sock.close()
            text = f"cannot give listeners away, which were asked for{who}: {error.strerror}"
            self._log("warning", text, event=Event.DESCRIPTORS_SHORT)
            return

        def done(ok: bool) -> None:
            close_all(fds)
            self._office.given |= ok
            how = "were taken" if ok else "were asked for, but not taken,"
            self._log("notice", f"{len(fds)} listeners {how}{who}", event=Event.LISTENERS_GIVEN)

        Giver(self._loop, sock, fds, done)

    def takeover(self, sock: socket.socket, credentials: Credentials, already: bytes) -> None:
        """Answer `_takeover`: somebody was started by hand to replace us."""
        problem = _PROCESS_1 if os.getpid() == 1 else ""
        if self._manager.present and not self._office.config.global_.external_takeover:
            problem = (
                "this one is run by systemd, which would revive it beside you: use `systemctl reload`,"
                " or set `external-takeover = on` in [global]"
            )
        elif self._reloads.running or self._office.stopping:
            problem = "it is being reloaded or stopped; try again"
        elif not credentials.pid:
            problem = "you are in another pid namespace"
        try:
            if problem:
                raise PeerError(problem)
            process = PeerProcess(credentials.pid)
        except PeerError as error:
            text = f"cannot be taken over by process {credentials.pid}: {error}"
            self._log("warning", text, event=Event.TAKEOVER_REFUSED, pid=credentials.pid)
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
        self._began = time.monotonic()
        text = f"process {process.pid} takes over"
        self._log("notice", text, event=Event.TAKEOVER_STARTED, reload=self._reloads.number, pid=process.pid)
        self._handover = Predecessor(
            self._loop, self, sock, process, "", self._office.config.global_.reload_timeout, already, self._began
        )

    # What follows is Host, for Predecessor.

    def offer(self, offer: Offer) -> None:
        office = self._office
        offer.facts.update(
            {
                "generation": office.generation,
                "pid": office.pid,
                "sessions": status.sessions([office.equipment.table]),
                "reloads": {**self._reloads.export(), "began": self._began},
                "memories": self._memories(),
                "state": self._store.state,
                **self._facts(),
            }
        )
        self._places = [place for place, (_, listener) in enumerate(office.equipment.listeners) if listener.open]
        for place in self._places:
            listener = office.equipment.listeners[place][1]
            offer.add("listener", listener.sock.fileno(), listener.record())
        for listener in office.equipment.mains:
            offer.add("runtime", listener.sock.fileno(), listener.record())
        for ancestor in [*office.ancestors, office.as_ancestor()]:
            offer.add_copy("table", ancestor.table.fd, ancestor.record())
        for ancestor in office.ancestors:
            if ancestor.line:
                offer.add_copy("line", ancestor.line.fileno(), {"generation": ancestor.generation})
        owned = [(ancestor.generation, park) for ancestor in office.ancestors for park in ancestor.parks]
        for generation, park in [*owned, *((office.generation, park) for park in office.equipment.parks)]:
            for part, fd in park.parts().items():
                offer.add_copy("park", fd, {"generation": generation, "name": park.name, "part": part})

    def late(self) -> dict[str, Any]:
        return self._facts()

    def stop_accepting(self, done: Callable[[], object]) -> None:
        self._office.equipment.pool.stop_accepting(done)

    def resume_accepting(self) -> None:
        self._office.equipment.pool.tell("accept")
        self._office.pidfile.write(self._log)  # the successor may have written its own
        self._office.close_runtime()
        self._office.open_runtime()

    def announce(self, successor: int, kept: Sequence[int]) -> None:
        equipment = self._office.equipment
        self._committing()
        self.kept = [self._places[index] for index in kept if index < len(self._places)]
        ours = [equipment.listeners[place][1] for place in self._places] + equipment.mains
        keep = set(kept)
        self._store.forget(x.name for i, x in enumerate(ours) if i not in keep and x.origin == "own" and x.name)
        if not self._by_hand:
            # READY=1 too: systemd 257 would wait for one from a main process that dies now, and restart nothing.
            self._manager.notify("READY=1", f"MAINPID={successor}")
            self._manager.replaced = True

    def export_clients(self) -> tuple[list[dict[str, Any]], list[int]]:
        # No new ones from here on: they are the successor's.
        self._office.close_runtime()
        self._exported = self._office.export_clients()
        return [state for _, state in self._exported], [fd for fd, _ in self._exported]

    def migrate(self, workers: int, done: Callable[[dict[str, Any]], object]) -> list[int]:
        def moved(report: dict[str, Any]) -> None:
            for column, number in (
                (Column.LOST, report["lost"]),
                (Column.MOVED, report["moved"]),
                (Column.KEPT, sum(report["kept"].values())),
            ):
                self._office.equipment.table.add(PROCESS, column, number)
            passage.moved = report["moved"]
            if passage.failed:
                self._report_lost(passage)
            done(report)

        passage = self._passage = _Passage()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        self._line = near
        return [far.detach(), *self._office.equipment.pool.migrate(workers, moved)]

    def _report_lost(self, passage: _Passage) -> None:
        """The successor has failed: what had moved to it is gone."""
        lost, passage.moved = passage.moved, 0
        if lost:
            text = f"{lost} connections had moved to the successor, and are lost with it"
            self._log("err", text, event=Event.CONNECTIONS_LOST, lost=lost)

    def handed_over(self, successor: PeerProcess, report: dict[str, Any]) -> None:
        self._handover = None
        if self._spare:
            self._spare.close()
            self._spare = None
        close_all(fd for fd, _ in self._exported)
        self._exported.clear()
        if self._again and not self._by_hand:
            successor.signal(signal.SIGHUP)
        self._log(
            "notice" if self._by_hand else "info",
            f"generation {self._office.generation} has handed over to process {successor.pid}:"
            f" {report.get('moved', 0)} connections moved,"
            f" {status.sessions([self._office.equipment.table])} to be drained",
            event=Event.HANDED_OVER,
            pid=successor.pid,
            moved=report.get("moved", 0),
            sessions=status.sessions([self._office.equipment.table]),
        )
        successor.close()
        self._ended(True, self._by_hand)

    def take_line(self) -> socket.socket | None:
        """Over which the successor asks us, for whoever answers; once."""
        line, self._line = self._line, None
        return line

    def refused(self, reason: str) -> None:
        handover, self._handover = self._handover, None
        if handover and handover.lost:
            text = f"the successor, process {handover.pid}, is lost"
            self._log("err", text, event=Event.SUCCESSOR_LOST, pid=handover.pid)
        if self._line:
            self._line.close()
            self._line = None
        self._manager.replaced = False
        if not self._by_hand:
            self._manager.notify("READY=1")
        took = time.monotonic() - self._began
        outcome = ReloadOutcome(
            self._reloads.number,
            False,
            reason,
            took,
            time.time(),
            self._office.generation,
            lost=self._passage.moved,
            phases=handover.phases if handover else (("start", took),),
        )
        for line in reason.splitlines():
            text = f"reload {outcome.number} refused: {line}"
            self._log("err", text, event=Event.RELOAD_REFUSED, reload=outcome.number)
        # Those who had moved before it failed; whoever is still on the way is reported when that is known.
        self._passage.failed = True
        self._report_lost(self._passage)
        self._passage = _Passage()
        self._reloads.finished(outcome)
        # Clients that were on their way to the successor come back, and find the outcome there.
        for fd, state in self._exported:
            try:
                self._office.import_client(fd, state)
            except PeerError as error:
                text = f"cannot take a client back: {error}"
                self._log("warning", text, event=Event.RUNTIME_CLIENT_DROPPED)
        self._exported.clear()
        self._ended(False, self._by_hand)
