"""The side that serves and is to be replaced: reacts to one successor, on the loop, while traffic goes on."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hitlessd.dataclass import dataclass, field
from hitlessd.descriptors import close_all
from hitlessd.errors import PeerError, StateError
from hitlessd.handover.faults import injector
from hitlessd.handover.phases import Phases
from hitlessd.handover.process import PeerProcess
from hitlessd.handover.states import PREDECESSOR, Action, Event, Machine, State
from hitlessd.handover.stream import FrameStream
from hitlessd.handover.wire import MAX_FDS, MIGRATES, VERSION, Message, speaks_with
from hitlessd.loop import Loop

__all__ = ["Host", "Offer", "Predecessor"]

_MESSAGES = {
    event.value: event
    for event in (
        Event.HELLO,
        Event.NEXT,
        Event.READY,
        Event.REFUSE,
        Event.ACCEPTING,
        Event.COMMITTED,
        Event.ADOPTED,
    )
}
_MOST_WORKERS = 64  # as many as `workers` allows
_LAST_BREATH = 1.0  # seconds that a worker may take to die with its main process
#: When the successor was lost, for the operator.
_REASONS = {
    State.HELLO: "before it said hello; its own log lines say why",
    State.OFFER: "while it prepared",
    State.ACCEPT: "when it was to accept",
    State.STOP: "while our workers stopped",
    State.COMMIT: "when it was to take over",
    State.MIGRATE: "when it was to take connections over",
    State.MOVE: "while connections moved",
}


@dataclass(slots=True)
class Offer:
    """What the successor gets: descriptors, each with a record that says what it is, and facts about us."""

    facts: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)
    copies: list[int] = field(default_factory=list)

    def add(self, kind: str, fd: int, record: dict[str, Any]) -> None:
        """Something that stays open until the end of the handover."""
        self.records.append({"kind": kind, **record})
        self.fds.append(fd)

    def add_copy(self, kind: str, fd: int, record: dict[str, Any]) -> None:
        """Something that may be closed before, as what is an older generation's when that ends. Raises OSError."""
        self.copies.append(os.dup(fd))
        self.add(kind, self.copies[-1], record)

    def close(self) -> None:
        close_all(self.copies)
        self.copies.clear()


class Host(Protocol):
    """What the handover needs of the process in which it runs."""

    def offer(self, offer: Offer) -> None:
        """Fill it. Raises OSError."""

    def stop_accepting(self, done: Callable[[], object]) -> None: ...
    def resume_accepting(self) -> None: ...
    def announce(self, successor: int, kept: Sequence[int]) -> None:
        """Tell systemd that `successor` is the main process; `kept` are the indexes of what it took of the offer."""

    def late(self) -> dict[str, Any]:
        """Facts that have come up since the offer."""

    def export_clients(self) -> tuple[list[dict[str, Any]], list[int]]:
        """Clients of the runtime API and their descriptors, which must stay open until the end of the handover."""

    def migrate(self, workers: int, done: Callable[[dict[str, Any]], object]) -> list[int]:
        """Begin to move connections to the successor's `workers` workers; `done` gets the report of all. Returns what
        the successor needs: a line to ask us over, and the ends of the ways; they are the caller's."""

    def handed_over(self, successor: PeerProcess, report: dict[str, Any]) -> None: ...
    def refused(self, reason: str) -> None: ...


class Predecessor:
    """One attempt. Ends with exactly one call of host.handed_over() or host.refused()."""

    def __init__(
        self,
        loop: Loop,
        host: Host,
        sock: socket.socket,
        successor: PeerProcess,
        nonce: str,
        timeout: float,
        already: bytes = b"",
        began: float | None = None,
    ) -> None:
        """`nonce` is what a successor that we started must know; a takeover by hand has none, and may only be killed
        once it holds something of ours. `began`: when, on the loop's clock, if not now."""
        self._loop = loop
        self._host = host
        self._successor = successor
        self._nonce = nonce
        self._ours = bool(nonce)
        self._timeout = timeout
        self._phases = Phases(loop.time, began)
        self._started: object = None  # when the successor says that it has
        self._machine = Machine(PREDECESSOR)
        self._entering = injector("predecessor", os.environ)
        self._offer = Offer({})
        self._given = 0
        self._kept: list[int] = []
        self._version = 0  # that the successor speaks
        self._workers = 0  # that it has
        self._witnesses: list[PeerProcess] = []  # these
        self._report: dict[str, Any] = {}
        self._all_moved = False
        self._refusal = ""
        self.lost = False  # the successor went away, or fell silent
        self._stream = FrameStream(loop, sock, self._message, self._trouble)
        self._timer = loop.call_later(timeout, self._silent)
        self._entering(State.HELLO)
        self._stream.feed(already)

    @property
    def pid(self) -> int:
        return self._successor.pid

    @property
    def phases(self) -> tuple[tuple[str, float], ...]:
        """What took how long so far; the last one may have failed."""
        return self._phases.all()

    def abandon(self, reason: str) -> bool:
        """Call it off, for reasons of our own. False when it is too late: the successor may serve alone already."""
        if self._machine.state in (State.COMMIT, State.MIGRATE, State.MOVE):
            return False
        self._refusal = reason
        self._handle(Event.SILENT)
        return True

    def _message(self, message: Message) -> None:
        for fd in message.fds:
            os.close(fd)  # nobody sends us any
        event = _MESSAGES.get(message.kind)
        self._started = message.text.get("started", self._started)
        problem = "" if event else f"cannot understand the successor: unknown message '{message.kind}'"
        if event is Event.HELLO:
            problem = self._introduced(message.text)
        elif event is Event.NEXT and self._given >= len(self._offer.fds):
            problem = "cannot offer more listeners: the successor has them all"
        elif event is Event.READY:
            problem = self._ready(message.text)
        elif event is Event.REFUSE:
            self._refusal = str(message.text.get("reason", "it gave no reason"))
        if problem or event is None:
            # A peer that lies gets the reason, and is then treated as one that broke the protocol.
            self._stream.send({"is": "refuse", "reason": problem})
            self._refusal = problem
            event = Event.GARBAGE
        self._handle(event)

    def _introduced(self, text: dict[str, Any]) -> str:
        version, nonce = text.get("version"), text.get("nonce", "")
        if not speaks_with(version):
            return f"cannot hand over: the successor speaks version {version} of the protocol, we speak {VERSION}"
        if nonce != self._nonce:
            return "cannot hand over: the successor does not know the nonce of this reload"
        self._version = int(str(version))
        return ""

    def _ready(self, text: dict[str, Any]) -> str:
        if self._given < len(self._offer.fds):
            return "cannot be ready: the successor has not taken all listeners"
        kept = text.get("kept", [])
        if not isinstance(kept, list) or not all(isinstance(i, int) and 0 <= i < self._given for i in kept):
            return "cannot be ready: the successor names listeners that were not offered"
        pids = text.get("workers", [])
        if not isinstance(pids, list) or len(pids) > _MOST_WORKERS or not all(isinstance(pid, int) for pid in pids):
            return "cannot be ready: the successor's workers make no sense"
        self._kept = kept
        self._workers = len(pids)
        for pid in pids:
            with contextlib.suppress(PeerError):
                self._witnesses.append(PeerProcess(pid))
        return ""

    def _trouble(self, lost: bool, why: str) -> None:
        self._refusal = self._refusal or (
            f"the successor went away {_REASONS.get(self._machine.state, '')}" if lost else why
        )
        self.lost = lost
        self._handle(Event.LOST if lost else Event.GARBAGE)

    def _silent(self) -> None:
        self.lost = True
        self._refusal = (
            f"the successor did not answer within {self._timeout:g} s {_REASONS.get(self._machine.state, '')}"
        )
        self._handle(Event.SILENT)

    def _handle(self, event: Event) -> None:
        before = self._machine.state
        if before in (State.DONE, State.FAILED):
            return
        try:
            action = self._machine.handle(event)
        except StateError as error:
            self._refusal = f"cannot hand over: {error}"
            action = self._machine.handle(Event.GARBAGE)
            self._stream.send({"is": "refuse", "reason": self._refusal})
        if self._machine.state is not before:
            self._phases.leave(before, self._started)
            self._entering(self._machine.state)
        self._timer.cancel()
        if self._machine.state not in (State.DONE, State.FAILED):
            self._timer = self._loop.call_later(self._timeout, self._silent)
        self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case Action.SEND_OFFER:
                self._make_offer()
            case Action.SEND_BATCH:
                batch = self._offer.fds[self._given : self._given + MAX_FDS]
                self._given += len(batch)
                self._stream.send({"is": "batch"}, batch)
            case Action.SEND_GO:
                self._stream.send({"is": "go"})
            case Action.STOP_WORKERS:
                self._host.stop_accepting(lambda: self._handle(Event.STOPPED))
            case Action.COMMIT:
                self._commit()
            case Action.MIGRATE:
                self._migrate()
            case Action.NOTHING:
                # Not before the successor has said that it goes on: until then we would accept again.
                if self._all_moved:
                    self._handle(Event.MOVED)
            case Action.DRAIN:
                self._stream.send({"is": "moved", **self._report})
                self._stream.close()
                self._dismiss()
                self._host.handed_over(self._successor, self._report)
            case Action.FORGET | Action.KILL | Action.KILL_AND_RESUME:
                self._give_up(action)
            case _:
                raise AssertionError(action)

    def _make_offer(self) -> None:
        try:
            self._host.offer(self._offer)
        except OSError as error:
            self._refusal = f"cannot hand over: {error.strerror}"
            self._stream.send({"is": "refuse", "reason": self._refusal})
            self._handle(Event.GARBAGE)
            return
        self._stream.send({"is": "offer", "version": VERSION, **self._offer.facts, "records": self._offer.records})

    def _commit(self) -> None:
        self._host.announce(self._successor.pid, self._kept)
        clients, fds = self._host.export_clients()
        self._stream.send({"is": "commit", **self._host.late(), "clients": clients}, fds)

    def _migrate(self) -> None:
        if self._version < MIGRATES or not self._workers:
            self._handle(Event.MOVED)
            return
        self._stream.send({"is": "migrate"}, self._host.migrate(self._workers, self._moved), give=True)

    def _moved(self, report: dict[str, Any]) -> None:
        self._report = report
        self._all_moved = True
        if self._machine.state is State.MOVE:
            self._handle(Event.MOVED)

    def _dismiss(self) -> None:
        for worker in self._witnesses:
            worker.close()
        self._witnesses.clear()
        self._offer.close()

    def _give_up(self, action: Action) -> None:
        if action is not Action.FORGET and (self._ours or self._offer.records):
            # Not merely timed out: a sleeping successor would accept when it wakes up. And before it can see our end of
            # the conversation, or it would do the same to us.
            with contextlib.suppress(PeerError):
                self._successor.kill()
        self._stream.close()
        self._successor.close()
        if action is Action.KILL_AND_RESUME:
            # Its workers die with it, and until then they may accept somebody, or hold a connection that we take back.
            for worker in self._witnesses:
                worker.wait(_LAST_BREATH)
        self._dismiss()
        if action is Action.KILL_AND_RESUME:
            self._host.resume_accepting()
        self._host.refused(self._refusal)
