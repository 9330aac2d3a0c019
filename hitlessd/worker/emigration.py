"""Giving this worker's connections away, to workers of the successor.

Each way is one end of a SOCK_SEQPACKET pair; a worker of the successor has the other. A batch at a time goes out on
each, and few are unanswered, so that the descriptors in flight stay far below the limit on open files, which is what
the kernel allows (ETOOMANYREFS), and no connection is frozen for long; where that limit is low and the ways are many,
batches are smaller. We keep our descriptors until the receiver has answered. A way that has ended, in whatever manner,
means that nobody claims anything of it any more: what its receiver has not claimed is ours again.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from hitlessd import channel
from hitlessd.dataclass import dataclass, field
from hitlessd.errors import PeerError
from hitlessd.events import Event
from hitlessd.handover.faults import striker
from hitlessd.model import Backend, Frontend
from hitlessd.worker.batch import ROOM, Batch, Texts, descriptors_of
from hitlessd.worker.connection import Connection, State
from hitlessd.worker.lanes import Places, backend_record, frontend_record
from hitlessd.worker.relay import ignore
from hitlessd.worker.serial import Frozen, freeze, freeze_idle, names_of, resume

if TYPE_CHECKING:
    from hitlessd.worker.backend import LiveBackend, LiveServer
    from hitlessd.worker.frontend import LiveFrontend
    from hitlessd.worker.loop import Worker

__all__ = ["Emigration"]

_Config = TypeVar("_Config", bound=Frontend | Backend)

#: Batches of one way that may be unanswered: one is being taken in while the next is on its way.
_WINDOW = 2
#: The most descriptors that a connection has: two sockets, two pipes.
_EACH = 6


@dataclass
class _Sent:
    batch: Batch
    connections: list[Frozen]
    frontends: Texts  # what was told of these
    backends: Texts


@dataclass(eq=False)
class _Way:
    sock: socket.socket
    sent: deque[_Sent] = field(default_factory=deque)
    open: bool = True
    # What the receiver has been told and remembers.
    frontends: Texts = field(default_factory=dict)
    backends: Texts = field(default_factory=dict)


class Emigration:
    """One attempt to give all away. `done(report)` is called once: "moved" and "lost" are numbers, "kept" tells how
    many stay for which reason."""

    def __init__(self, worker: Worker, fds: list[int], done: Callable[[dict[str, Any]], object], ways: int = 0) -> None:
        """Owns the descriptors, one a way; `ways` is how many there are, those of other workers included."""
        self._worker = worker
        self._done = done
        self._moved = self._lost = self._batches = 0
        self._kept: dict[str, int] = {}
        self._why = "nobody takes them"
        # All processes of a user share the limit, and the parks of both generations may take two thirds of it: all
        # ways share a quarter.
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._room = min(ROOM, max(_EACH, soft // 4 // (_WINDOW * max(ways, len(fds), 1)) - 1))
        self._strike = striker("emigration", os.environ)
        self._known: dict[tuple[LiveFrontend, LiveBackend, LiveServer | None], str] = {}
        self._records: dict[int, tuple[object, str]] = {}  # by the configuration's id()
        self._waiting: deque[Connection] = deque()
        for conn in worker.connections:
            if conn.frontend.config.migrate and conn.backend.config.migrate:
                self._waiting.append(conn)
            else:
                self._keep("option migrate is off")
        self._idle = worker.idle_sides(lambda backend: backend.config.migrate)
        worker.emigrating = True  # what is on its way may come back
        self._ways = [_Way(socket.socket(fileno=fd)) for fd in fds]
        for way in self._ways:
            way.sock.setblocking(False)
            worker.handlers[way.sock.fileno()] = lambda events, way=way: self._on_event(way, events)  # type: ignore[misc]
            worker.epoll.register(way.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        self._end_if_over()

    def _names(self, conn: Connection) -> str:
        """Those of its frontend, backend and server, as JSON, which many have in common."""
        key = (conn.frontend, conn.backend, conn.target)
        names = self._known.get(key)
        if names is None:
            names = self._known[key] = names_of(conn)
        return names

    def _record(self, config: _Config, make: Callable[[_Config], dict[str, Any]]) -> str:
        """What is told of a proxy, made once: a backend may have thousands of servers."""
        # Configuration objects are never changed, and we keep those that we have seen.
        known = self._records.get(id(config))
        if known is None:
            known = self._records[id(config)] = (config, json.dumps(make(config), separators=(",", ":")))
        return known[1]

    def _keep(self, reason: str, number: int = 1) -> None:
        self._kept[reason] = self._kept.get(reason, 0) + number

    def _on_event(self, way: _Way, events: int) -> None:
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self._hear(way)
        if way.open and events & select.EPOLLOUT and len(way.sent) < _WINDOW and (self._waiting or self._idle):
            self._send(way)
        if way.open:
            # One batch a turn: those that are still here are served between two.
            more = (self._waiting or self._idle) and len(way.sent) < _WINDOW
            self._worker.epoll.modify(way.sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if more else 0))
        self._end_if_over()

    def _send(self, way: _Way) -> None:
        connections: list[Frozen] = []
        frontends: Texts = {}
        backends: Texts = {}
        fds: list[int] = []
        while self._waiting and len(fds) <= self._room - _EACH:
            conn = self._waiting.popleft()
            if conn.state is State.CLOSED:
                continue
            frontend, backend = conn.frontend, conn.backend
            if frontend.name not in frontends:
                frontends[frontend.name] = self._record(frontend.config, frontend_record)
            if backend.name not in backends:
                backends[backend.name] = self._record(backend.config, backend_record)
            try:
                frozen = freeze(conn, self._names(conn))
            except Exception:
                self._worker.crashed(conn)
                continue
            connections.append(frozen)
            fds += descriptors_of(frozen)
        while self._idle and len(fds) <= self._room - _EACH:
            side = self._idle.pop()
            if side.conn is None and side.pool is not None and side in side.pool:
                connections.append(freeze_idle(side))
                fds += descriptors_of(connections[-1])
        if not connections:
            return
        try:
            batch = Batch.write(
                [frozen.text() for frozen in connections],
                _unknown(frontends, way.frontends),
                _unknown(backends, way.backends),
            )
        except OSError as error:
            self._shut(way, f"cannot write a batch: {error.strerror}")
            self._take_back(connections)
            return
        sent = _Sent(batch, connections, frontends, backends)
        # First: whoever has them counts them from then on, and nobody twice.
        self._worker.write_counters()
        try:
            channel.send(way.sock, {"is": "batch"}, [batch.fd, *fds])
        except OSError as error:
            batch.close()
            passing = error.errno == errno.EAGAIN or (error.errno == errno.ETOOMANYREFS and bool(way.sent))
            if not passing:
                self._shut(way, f"cannot send them: {error.strerror}")
            self._take_back(connections)
            return
        way.sent.append(sent)
        self._batches += 1
        self._strike(f"batch-{self._batches}")

    def _hear(self, way: _Way) -> None:
        """An answer, or the end."""
        while way.open:
            try:
                answer = channel.receive(way.sock)
            except BlockingIOError:
                return
            except (OSError, PeerError):
                answer = None
            if answer is None:
                return self._shut(way, "the worker that was to take them has ended")
            if answer.get("is") != "taken" or not way.sent:
                return self._shut(way, str(answer.get("why", "the successor does not understand them")))
            sent = way.sent.popleft()
            if answer.get("remembers"):
                way.frontends |= sent.frontends
                way.backends |= sent.backends
            refused = [frozen for i, frozen in enumerate(sent.connections) if not sent.batch.claimed(i)]
            self._moved += _number(sent.connections) - _number(refused)
            self._forget(sent, refused)
            self._take_back(refused)

    def _shut(self, way: _Way, why: str) -> None:
        """Nobody takes anything from this way any more."""
        self._why = why
        way.open = False
        fd = way.sock.fileno()
        self._worker.epoll.unregister(fd)
        self._worker.handlers[fd] = ignore
        way.sock.close()
        while way.sent:
            sent = way.sent.popleft()
            ours = [frozen for i, frozen in enumerate(sent.connections) if not sent.batch.kept(i)]
            self._moved += _number(sent.connections) - _number(ours)  # the receiver's heir has them, and its main tells
            self._forget(sent, ours)
            self._take_back(ours)

    def _forget(self, sent: _Sent, but: list[Frozen]) -> None:
        """Close our descriptors of a batch; close(2) alone, for others have them too."""
        keep = {id(frozen) for frozen in but}
        for frozen in sent.connections:
            if id(frozen) not in keep:
                frozen.close()
                self._worker.parking.gone(frozen.ticket)
        sent.batch.close()

    def _take_back(self, connections: list[Frozen]) -> None:
        """Go on with them here; and try another way, if there is one."""
        places = Places(self._worker.lanes)
        for frozen in connections:
            if frozen.pooled:
                frozen.close()  # superfluous now, and its end costs nobody anything
                continue
            try:
                conn = resume(self._worker, frozen, places)
            except Exception as error:
                self._worker.complain(
                    f"a connection is lost: cannot go on with it: {error}", event=Event.CONNECTIONS_LOST, lost=1
                )
                self._lost += 1
                frozen.reset()
                self._worker.parking.gone(frozen.ticket)
                continue
            self._worker.parking.admit([conn])
            self._worker.parking.gone(frozen.ticket)
            if conn.state is not State.CLOSED:
                self._waiting.append(conn)

    def _end_if_over(self) -> None:
        ways = [way for way in self._ways if way.open]
        if any(way.sent for way in ways) or (ways and (self._waiting or self._idle)):
            return
        stay = sum(1 for conn in self._waiting if conn.state is not State.CLOSED)
        if stay:
            self._keep(self._why, stay)
        self._waiting.clear()
        for way in ways:
            way.open = False
            fd = way.sock.fileno()
            self._worker.epoll.unregister(fd)
            self._worker.handlers[fd] = ignore
            way.sock.close()
        self._ways.clear()
        self._worker.emigrating = False
        self._worker.parking.sweep()
        done, self._done = self._done, lambda _report: None
        done({"moved": self._moved, "kept": self._kept, "lost": self._lost})


def _unknown(told: Texts, known: Texts) -> Texts:
    return {name: text for name, text in told.items() if known.get(name) is not text}


def _number(connections: list[Frozen]) -> int:
    """Of clients: those to servers that wait in a pool nobody misses."""
    return sum(not frozen.pooled for frozen in connections)
