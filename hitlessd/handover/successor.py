"""The side that takes over: a sequence of questions and answers, before it serves anybody.

It may block, but not blindly: it pumps the loop, on which its own workers answer too, and every wait has a deadline.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hitlessd.dataclass import dataclass
from hitlessd.descriptors import close_all
from hitlessd.errors import HitlessdError, PeerError, StateError
from hitlessd.handover.faults import injector
from hitlessd.handover.phases import Phases
from hitlessd.handover.process import PeerProcess
from hitlessd.handover.states import SUCCESSOR, Action, Event, Machine, State
from hitlessd.handover.stream import FrameStream
from hitlessd.handover.wire import VERSION, Message, encode, speaks_with
from hitlessd.loop import Loop

__all__ = ["Offered", "PredecessorLost", "Successor", "Summons", "TakeoverRefused", "hello", "summon_fails"]

_ENVIRONMENT = "HITLESSD_TAKEOVER"
_MESSAGES = {event.value: event for event in (Event.OFFER, Event.BATCH, Event.GO, Event.COMMIT, Event.REFUSE)}


class TakeoverRefused(HitlessdError):
    """The predecessor said no, and serves on."""


class PredecessorLost(HitlessdError):
    """The predecessor died, or was ended because it fell silent: nobody else accepts now."""


@dataclass(frozen=True, slots=True)
class Summons:
    """How a predecessor tells the successor that it starts where to find it; travels in the environment."""

    fd: int
    nonce: str
    predecessor: int

    def put(self, environment: dict[str, str]) -> None:
        environment[_ENVIRONMENT] = f"{self.fd}:{self.nonce}:{self.predecessor}"

    @classmethod
    def take(cls, environment: dict[str, str]) -> Summons | None:
        """Read it and remove it, so that nothing we start is summoned by it again."""
        parts = environment.pop(_ENVIRONMENT, "").split(":")
        if len(parts) != 3 or not parts[0].isdecimal() or not parts[2].isdecimal():
            return None
        return cls(int(parts[0]), parts[1], int(parts[2]))


@dataclass(slots=True)
class Offered:
    """What the predecessor has passed: `items` are (record, descriptor), in its order."""

    facts: dict[str, Any]
    items: list[tuple[dict[str, Any], int]]


class Successor:
    """One attempt. Any method may raise TakeoverRefused or PredecessorLost; the latter only when it is surely dead."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        nonce: str,
        predecessor: int,
        timeout: float,
        environment: Mapping[str, str] = os.environ,
        sender: int = 0,
    ) -> None:
        """`predecessor`: its pid if we were told by who started us, else 0 until the offer names it; `sender` is then
        the process that the kernel says has answered, or 0."""
        self._loop = loop
        self._nonce = nonce
        self.timeout = timeout
        self.phases = Phases(loop.time)
        self._machine = Machine(SUCCESSOR)
        self._entering = injector("successor", environment)
        self._inbox: deque[Message] = deque()
        self._lost = ""
        self._process: PeerProcess | None = None
        self._known = bool(predecessor)
        self._sender = sender
        self.late: dict[str, Any] = {}  # facts that have come up since the offer
        self._adopt: Callable[[list[int]], object] | None = None
        self._ended: Callable[[dict[str, Any]], object] = lambda _report: None
        self._stream = FrameStream(loop, sock, self._received, self._trouble)
        if predecessor:
            try:
                self._process = PeerProcess(predecessor)
            except PeerError:
                self._lost = "it is gone"  # it died while we started
        self._entering(State.HELLO)

    def introduce(self) -> Offered:
        """Say hello, unless that was part of the greeting by hand, and take everything that is offered."""
        if self._nonce:
            self._stream.send({**_hello(self._nonce), "started": self.phases.began})
        self.phases.end("configuration")
        text = self._expect(Event.OFFER).text
        if not speaks_with(text.get("version")):
            self._fail(Event.GARBAGE, f"it speaks version {text.get('version')} of the protocol, we speak {VERSION}")
        if not self._known:
            self._meet(text.get("pid"))
        records = text.get("records")
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            self._fail(Event.GARBAGE, "its offer makes no sense")
        offered = Offered(text, [])
        assert isinstance(records, list)
        while len(offered.items) < len(records):
            self._stream.send({"is": "next"})
            fds = self._expect(Event.BATCH).fds
            if not fds or len(offered.items) + len(fds) > len(records):
                for fd in fds:
                    os.close(fd)
                self._fail(Event.GARBAGE, f"it offered {len(records)} descriptors and sent another number")
            offered.items += zip(records[len(offered.items) :], fds, strict=False)
        return offered

    def ready(self, kept: Sequence[int], workers: Sequence[int]) -> None:
        """Say that all that can fail has succeeded, and the pids of our workers; returns when they may accept."""
        self._machine.handle(Event.PREPARED)
        self._stream.send({"is": "ready", "kept": list(kept), "workers": list(workers)})
        self._expect(Event.GO)
        self.phases.end("prepare")

    def accepting(self) -> tuple[list[dict[str, Any]], list[int]]:
        """Say that our workers accept; returns when we are the main process, with the clients of the runtime API."""
        self._machine.handle(Event.SERVING)
        self.phases.end("accept")
        self._stream.send({"is": "accepting"})
        message = self._expect(Event.COMMIT)
        self.phases.end("stop")
        clients, self.late = message.text.get("clients", []), message.text
        return (clients if isinstance(clients, list) else []), message.fds

    def committed(
        self, adopt: Callable[[list[int]], object], ended: Callable[[dict[str, Any]], object]
    ) -> PeerProcess | None:
        """Say that systemd knows us as the main process; gives the predecessor, which now moves its connections.

        `adopt` gets the descriptors for that, the line first; `ended` its report, which is empty if it is dead. Both
        are called from the loop, or at once.
        """
        self._machine.handle(Event.SERVING)
        self.phases.end("commit")
        self._stream.send({"is": "committed"})
        self._adopt, self._ended = adopt, ended
        self._entering(State.MIGRATE)
        while self._inbox:
            self._migrating(self._inbox.popleft())
        if self._lost:
            self._end({})
        return self._process

    def _received(self, message: Message) -> None:
        if self._adopt:
            self._migrating(message)
        else:
            self._inbox.append(message)

    def _migrating(self, message: Message) -> None:
        """From committed() on it is the predecessor that speaks; what we do not understand ends the conversation."""
        if message.kind == "migrate" and message.fds and self._machine.state is State.MIGRATE and self._adopt:
            self._machine.handle(Event.MIGRATE)
            self.phases.end("migrate")
            self._adopt(message.fds)
            self._entering(State.MOVE)
            self._stream.send({"is": "adopted"})
            return
        close_all(message.fds)
        self._end(message.text if message.kind == "moved" else {})

    def _end(self, report: dict[str, Any]) -> None:
        if self._machine.state in (State.MIGRATE, State.MOVE):
            self.phases.leave(self._machine.state, None)
            self._machine.handle(Event.MOVED)
            self._entering(State.DONE)
            self.close()
            self._ended(report)

    def refuse(self, reason: str) -> None:
        """Withdraw, telling the predecessor why; it serves on."""
        self._stream.send({"is": "refuse", "reason": reason, "started": self.phases.began})
        self.close()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Pump the loop until the condition holds. Raises TimeoutError after the handover's time-out."""
        deadline = self._loop.time() + self.timeout
        while not condition():
            left = deadline - self._loop.time()
            if left <= 0:
                raise TimeoutError(f"{what} within {self.timeout:g} s")
            self._loop.turn(left)

    def close(self) -> None:
        self._stream.close()

    def _trouble(self, lost: bool, why: str) -> None:
        self._lost = why
        if self._adopt:
            self._end({})

    def _expect(self, wanted: Event) -> Message:
        try:
            self.wait(lambda: bool(self._inbox or self._lost), "no answer")
        except TimeoutError as error:
            self._fail(Event.SILENT, f"{error}")
        if not self._inbox:
            self._fail(Event.LOST, self._lost)
        message = self._inbox.popleft()
        event = _MESSAGES.get(message.kind)
        before = self._machine.state
        try:
            if event is None or event not in (wanted, Event.REFUSE):
                raise StateError(f"cannot handle '{message.kind}' in state '{before.value}'")
            action = self._machine.handle(event)
        except StateError as error:
            self._fail(Event.GARBAGE, str(error))
            raise AssertionError from None  # _fail() always raises
        if action is Action.FORGET:
            self.close()
            raise TakeoverRefused(str(message.text.get("reason", "the predecessor gave no reason")))
        if self._machine.state is not before:
            self._entering(self._machine.state)
        return message

    def _meet(self, pid: object) -> None:
        """Note whom we speak with. Since we may kill it, its own word is not enough."""
        if self._sender and pid != self._sender:
            self._fail(Event.GARBAGE, f"it says that it is process {pid}, and is process {self._sender}")
        try:
            uid = os.stat(f"/proc/{int(str(pid))}").st_uid
            if uid != os.getuid() and os.getuid():
                raise TakeoverRefused(f"cannot take over: process {pid} is not ours but of uid {uid}")
            self._process, self._known = PeerProcess(int(str(pid))), True
        except (OSError, ValueError, PeerError):
            self._fail(Event.GARBAGE, f"it says that it is process {pid}, which there is not")

    def _fail(self, event: Event, why: str) -> None:
        """The predecessor cannot be relied on: prove it dead, then raise."""
        self._machine.handle(event)
        self.close()
        if not self._known:
            # Never introduced: we do not know whom we spoke with, and hold nothing of theirs.
            raise TakeoverRefused(f"cannot take over: {why}")
        if self._process:
            self._process.kill()
        raise PredecessorLost(why)


def hello(nonce: str) -> bytes:
    """The first message, for who has only a plain socket yet."""
    return encode(_hello(nonce))


def _hello(nonce: str) -> dict[str, Any]:
    return {"is": "hello", "version": VERSION, "pid": os.getpid(), "nonce": nonce}


def summon_fails(sock: socket.socket, reason: str) -> None:
    """For a successor that could not even start: tell the predecessor why over the plain socket."""
    try:
        sock.sendall(encode({"is": "refuse", "reason": reason}))
    except OSError as error:
        raise PeerError(f"cannot tell the predecessor: {error.strerror}") from None
