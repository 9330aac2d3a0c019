"""How a generation comes into the world, and what it inherits: cold, from systemd's store, or from a predecessor."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import Any

from hitlessd.dataclass import dataclass, field
from hitlessd.descriptors import close_all
from hitlessd.errors import PeerError, SystemRefused, reason_of
from hitlessd.events import Event
from hitlessd.handover.getsocks import take
from hitlessd.handover.process import PeerProcess
from hitlessd.handover.successor import Offered, Successor, Summons, TakeoverRefused, hello
from hitlessd.handover.wire import MAGIC
from hitlessd.listeners import Listener
from hitlessd.log import Logger
from hitlessd.loop import Loop
from hitlessd.main.store import Stored
from hitlessd.parking.park import Park
from hitlessd.table import Table

__all__ = ["Ancestor", "Inheritance", "connect", "from_offer", "from_store", "summoned", "take_foreign"]

_UCRED = struct.Struct("=iII")


@dataclass(slots=True)
class Ancestor:
    """A generation before ours that may still drain; its table counts until it has ended."""

    generation: int
    pid: int
    table: Table
    started: float = 0.0  # CLOCK_MONOTONIC seconds
    version: str = ""
    workers: list[int] = field(default_factory=list)
    process: PeerProcess | None = None
    moved: int = 0  # connections that came from it
    kept: dict[str, int] = field(default_factory=dict)  # how many it kept for which reason, then
    line: socket.socket | None = None  # to ask its main process over, see sessions.py
    parks: list[Park] = field(default_factory=list)  # of its workers, should it die

    def record(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "pid": self.pid,
            "started": self.started,
            "version": self.version,
            "workers": self.workers,
            "moved": self.moved,
            "kept": self.kept,
        }


@dataclass(slots=True)
class Inheritance:
    """What a new generation starts from. `offered` maps a listener to its index in the predecessor's offer."""

    generation: int = 0  # of whoever was before us
    listeners: list[Listener] = field(default_factory=list)
    runtime: list[Listener] = field(default_factory=list)
    ancestors: list[Ancestor] = field(default_factory=list)
    reloads: dict[str, Any] = field(default_factory=dict)
    changes: list[Any] = field(default_factory=list)  # of operators, see Changes.export()
    changes_name: str = ""  # of their entry in systemd's store
    memories: dict[str, Any] = field(default_factory=dict)  # what else it knew, for pages that are open
    offered: dict[int, int] = field(default_factory=dict)
    foreign: bool = False  # taken from a haproxy
    sessions: int = 0  # connections that may come from the predecessor
    state: str = ""  # the name of its state in the store


def from_store(stored: Stored) -> Inheritance:
    """Everybody who wrote into a stored table is dead: systemd starts us only then."""
    state = stored.state
    numbers = [table.generation for table in stored.tables] + [park.book.generation for park in stored.parks]
    newest = max(numbers, default=0)
    return Inheritance(
        generation=max(state.generation if state else 0, newest),
        listeners=stored.listeners,
        runtime=stored.runtime,
        ancestors=[Ancestor(table.generation, 0, table) for table in stored.tables],
        reloads=dict(state.reloads) if state else {},
        changes=stored.changes,
        changes_name=stored.changes_name,
    )


def from_offer(offered: Offered, log: Logger) -> Inheritance:
    """Make sense of a predecessor's offer. What is unsound is left out; its bind will then be opened anew."""
    facts = offered.facts
    try:
        result = Inheritance(
            generation=int(facts.get("generation", 0)),
            reloads=dict(facts.get("reloads", {})),
            sessions=int(facts.get("sessions", 0)),
            memories=dict(facts.get("memories", {})),
            state=str(facts.get("state", "")),
            changes=list(facts.get("changes", ())),
            changes_name=str(facts.get("changes_name", "")),
        )
    except (TypeError, ValueError, ArithmeticError):
        raise PeerError("cannot take over: the predecessor's offer makes no sense") from None
    parks: dict[tuple[int, str], dict[str, int]] = {}
    for index, (record, fd) in enumerate(offered.items):
        try:
            match record.get("kind"):
                case "listener" | "runtime" as kind:
                    listener = Listener.adopt(fd, record, idle=True)
                    (result.listeners if kind == "listener" else result.runtime).append(listener)
                    result.offered[id(listener)] = index
                case "table":
                    table = Table.attach(fd)
                    try:
                        result.ancestors.append(_ancestor(record, table))
                    except BaseException:
                        table.close()
                        raise
                case "line":
                    line = socket.socket(fileno=fd)
                    line.setblocking(False)
                    _give_line(result.ancestors, record.get("generation"), line)
                case "park":
                    key = (int(record["generation"]), str(record["name"]))
                    parks.setdefault(key, {})[str(record["part"])] = fd
                case _:
                    os.close(fd)  # something that a later version passes
        except (PeerError, SystemRefused, TypeError, ValueError, ArithmeticError, LookupError) as error:
            log("warning", f"cannot use what the predecessor passed: {error}", event=Event.PASSED_UNUSABLE)
    for (generation, name), parts in parks.items():
        _give_park(result.ancestors, generation, name, parts, log)
    return result


def _give_park(ancestors: list[Ancestor], generation: int, name: str, parts: dict[str, int], log: Logger) -> None:
    owner = next((ancestor for ancestor in ancestors if ancestor.generation == generation), None)
    if owner is None:
        return close_all(parts.values())
    try:
        park = Park.adopt(name, parts)
    except PeerError as error:
        return log("warning", f"cannot use what the predecessor passed: {error}", event=Event.PASSED_UNUSABLE)
    park.stored = True
    owner.parks.append(park)


def _give_line(ancestors: list[Ancestor], generation: object, line: socket.socket) -> None:
    for ancestor in ancestors:
        if ancestor.generation == generation and ancestor.process and not ancestor.line:
            ancestor.line = line
            return
    line.close()


def _ancestor(record: dict[str, Any], table: Table) -> Ancestor:
    ancestor = Ancestor(
        table.generation,
        int(record.get("pid", 0)),
        table,
        float(record.get("started", 0.0)),
        str(record.get("version", "")),
        [int(pid) for pid in record.get("workers", ())],
        moved=int(record.get("moved", 0)),
        kept={str(why): int(number) for why, number in dict(record.get("kept", {})).items()},
    )
    if not 0 <= ancestor.pid < 1 << 31:
        raise ValueError(f"{ancestor.pid} is no pid")
    try:
        ancestor.process = PeerProcess(ancestor.pid) if ancestor.pid else None
    except PeerError:
        ancestor.process = None  # it has ended meanwhile
    return ancestor


def take_foreign(path: str, timeout: float, log: Logger) -> Inheritance:
    """Take the listeners of a haproxy, or of anything that speaks `_getsocks`. Raises PeerError."""
    with _connect(path, timeout) as sock:
        fds = take(sock, timeout)
    result = Inheritance(foreign=True)
    for fd in fds:
        try:
            result.listeners.append(Listener.adopt(fd, {}))
        except SystemRefused as error:
            # UDP sockets, and listeners of families that we do not serve, come along.
            log("debug", f"left out: {error}")
    log("notice", f"{len(result.listeners)} listeners taken from {path}", event=Event.LISTENERS_TAKEN)
    return result


def connect(loop: Loop, path: str, timeout: float) -> Successor | None:
    """Begin a takeover by hand from whoever owns that runtime socket; None when it does not speak our protocol.

    Raises PeerError when nobody answers, TakeoverRefused when a hitlessd says no.
    """
    sock = _connect(path, timeout)
    try:
        # The kernel adds to each message who has sent it (SCM_CREDENTIALS, unix(7)).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.sendall(b"_takeover\n" + hello(""))
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if not poll.poll(timeout * 1000):
            raise PeerError(f"cannot take over from {path}: no answer within {timeout:g} s")
        start, ancillary, _, _ = sock.recvmsg(512, socket.CMSG_SPACE(_UCRED.size), socket.MSG_PEEK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        if start.startswith(MAGIC):
            sender = next((_UCRED.unpack(data)[0] for _, kind, data in ancillary if kind == socket.SCM_CREDENTIALS), 0)
            if not sender:
                raise PeerError(f"cannot take over from {path}: it is in another pid namespace")
            return Successor(loop, sock.dup(), "", 0, timeout, sender=sender)
        text = start.decode(errors="replace").strip()
        if text.startswith("cannot "):
            raise TakeoverRefused(text)
        return None
    except OSError as error:
        raise PeerError(f"cannot take over from {path}: {reason_of(error)}") from None
    finally:
        sock.close()


def _connect(path: str, timeout: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    deadline = time.monotonic() + timeout
    try:
        while True:
            try:
                sock.connect("\0" + path[5:] if path.startswith("abns@") else path.removeprefix("unix@"))
                return sock
            except BlockingIOError:
                # Its backlog is full.
                if time.monotonic() > deadline:
                    raise PeerError(f"cannot take over from {path}: nobody accepts there") from None
                time.sleep(0.01)
    except OSError as error:
        sock.close()
        why = {ConnectionRefusedError: "nobody listens there", FileNotFoundError: "there is no such socket"}
        raise PeerError(f"cannot take over from {path}: {why.get(type(error), reason_of(error))}") from None
    except PeerError:
        sock.close()
        raise


def summoned(loop: Loop, summons: Summons, timeout: float) -> Successor:
    """Answer the predecessor that started us."""
    sock = socket.socket(fileno=summons.fd)
    sock.set_inheritable(False)
    return Successor(loop, sock, summons.nonce, summons.predecessor, timeout)
