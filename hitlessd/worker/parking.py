"""Parking this worker's connections while they run, so that whoever comes after its death goes on with them.

A connection is parked once: as soon as it is established and not young any more, its descriptors go into the queue of
the worker's park, and its slot in the book is filled. From then on the relay only labels what it reads (relay.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hitlessd.events import Event
from hitlessd.handover.faults import striker
from hitlessd.parking import counters
from hitlessd.parking.book import LABEL_MARK, SlotState, mark_of
from hitlessd.parking.park import ROOM, Kind, Park, Record, farewell, reset
from hitlessd.table import PROCESS, Column
from hitlessd.worker.connection import UNPARKED, Connection, State
from hitlessd.worker.http.serial import http_form
from hitlessd.worker.http.side import HttpSide
from hitlessd.worker.http.state import HttpState
from hitlessd.worker.lanes import backend_record, frontend_record, server_record
from hitlessd.worker.parkpipes import ParkedPipes
from hitlessd.worker.parkqueue import Queue
from hitlessd.worker.pipes import Pipe
from hitlessd.worker.plain import for_park, is_plain
from hitlessd.worker.relay import Side
from hitlessd.worker.serial import to_serial
from hitlessd.worker.timers import NEVER

if TYPE_CHECKING:
    from hitlessd.worker.loop import Worker

__all__ = ["Parking"]

#: A connection that cannot be parked while it runs, whatever becomes of it.
_UNFIT = -2
#: Fields of a form that its slot or its note have, or nobody needs there: a slot has little room for text.
_ELSEWHERE = (
    *("frontend", "backend", "server"),
    *("version", "generation", "worker", "number", "accounted_in", "accounted_out", "expires_in"),
)
#: Connections parked in one turn, which takes some 5 ms.
_BURST = 252
#: Seconds between two looks for those that have come of age, and between two signs of life.
_TICK, _BEAT = 0.25, 1.0
#: Seconds to wait after the kernel has refused to take more.
_REST = 2.0
#: Made once: dumps() makes another one each time, which is a quarter of what it takes.
_encode = json.JSONEncoder(separators=(",", ":")).encode
#: Why a connection cannot be parked whose counters do not add up.
_UNSOUND = "cannot park a connection: the kernel's counters are not what went through it"


class Parking:
    """The park of one worker; does nothing without one."""

    def __init__(self, worker: Worker, park: Park | None, running: bool, after: float, limit: int) -> None:
        """`running`: park while connections run, those that are older than `after` seconds; else only freeze() parks.
        `limit`: descriptors that this worker may have in its queue."""
        self._worker = worker
        self._park = park
        self._running = running and park is not None
        self._after = after
        if park:
            self.queue = Queue(park, limit, self._dropped)
            self._pipes = ParkedPipes(park.book, self.queue)
        self._connections: dict[int, Connection] = {}  # by slot
        #: Parked clients that have an exchange, the longest first.
        self.busy: dict[HttpState, None] = {}
        self._free_slots: list[int] = []
        #: By slot, the number of a connection that was parked in it and has another one now. As long as its record is
        #: in the queue, the slot is nobody's: the two would be taken for one.
        self._retired: dict[int, int] = {}
        self._next_slot = 0
        self._slots = park.book.slots if park else 0
        self._departing: dict[int, tuple[list[int], list[int]]] = {}  # by slot: blocks and places
        self._lanes: dict[tuple[str, str, str], int] = {}
        #: By kind and name, whose record the notes have; of a backend, the servers in it.
        self._noted: dict[tuple[str, str], frozenset[str]] = {}
        self._rest_until = 0.0
        self._complained_of = ""
        self._strike = striker("parking", os.environ)
        self._batches = 0
        self._beat = min(_BEAT, worker.setup.config.global_.park_timeout / 4)
        self._gauge = worker.table.index[PROCESS] * worker.table.columns + Column.PARKED
        self.owners_at = park.book.owners_at if park else 0
        self.stale = False  # the gauge is to be brought up to date
        #: Connections of the worker that need no look: they are parked, or cannot be.
        self.known = 0
        #: All were known at the last look; the worker wakes us when that is over.
        self.asleep = self._running
        self.bucket = 0
        self._due = NEVER
        if park:
            park.book.lock()

    # -- what the worker's turns call ----------------------------------------------------------------------------------

    def wake(self) -> None:
        """There are connections that are not known."""
        self.asleep = False
        self._arm(_TICK)

    def deadline(self) -> float:
        return self._due

    looked_at = deadline

    def expired(self) -> None:
        """Park who has come of age, roll the queue, and give a sign of life."""
        worker = self._worker
        assert self._park
        worker.write_counters()  # a busy one has kept back who came and went; see tell()
        # None while somebody is on the way, who may come back.
        useful = 2 * (len(self._connections) + len(self._pipes))
        pressed = len(self._retired) > len(self._free_slots) + self._slots - self._next_slot
        rolling = bool(self._departing) or self.queue.roll(self._living, useful, pressed)
        if self.busy:
            self._lasting()
        found = self._of_age() if worker.now >= self._rest_until else []
        self.admit(found)
        self._park.book.beat()
        self.asleep = len(worker.connections) == self.known
        if len(found) == _BURST:
            self._arm(0.0)
        elif rolling or not self.asleep:
            self._arm(min(_TICK, self._beat))
        elif worker.connections:
            self._arm(self._beat)

    def _arm(self, seconds: float) -> None:
        self._worker.wheel.remove(self)
        self._due = self._worker.now + seconds
        self._worker.wheel.add(self, self._due)

    def _of_age(self) -> list[Connection]:
        """Those that can be parked and are not, the youngest first."""
        worker = self._worker
        unparked = len(worker.connections) - self.known
        born_before = worker.now - self._after
        found: list[Connection] = []
        if unparked:
            for conn in reversed(worker.connections):
                if conn.slot != UNPARKED:
                    continue
                if conn.since <= born_before and conn.parkable():
                    found.append(conn)
                    if len(found) == _BURST:
                        break
                unparked -= 1
                if not unparked:
                    break
        return found

    # -- parking -------------------------------------------------------------------------------------------------------

    def admit(self, connections: Iterable[Connection], ours: Callable[[Connection], object] | None = None) -> None:
        """Park those of the connections that are fit for it and old enough; each is `ours` before any heir has it."""
        if not self._running:
            return
        born_before = self._worker.now - self._after
        chosen = [
            conn
            for conn in connections
            if conn.slot == UNPARKED and conn.since <= born_before and conn.parkable() and self._fit(conn)
        ]
        self._park_all(chosen, SlotState.LIVE, ours)

    def _fit(self, conn: Connection) -> bool:
        """Whether the kernel's counters are what we know of the connection."""
        client, server = conn.client, conn.server
        if conn.counted:
            return True
        try:
            if not (counters.is_tcp(client.sock) and (server is None or counters.is_tcp(server.sock))):
                self._reject(conn)
                return False
            one = counters.read(client.sock, False)
            other = counters.read(server.sock, True) if server is not None else one
        except OSError as error:
            if error.errno:  # else it is merely too busy just now
                self._reject(conn)
                self._worker.complain(f"cannot park a connection: {error.strerror}", event=Event.PARKING_FAILED)
            return False
        if one.closed or other.closed:
            return False  # we shall soon hear of it
        if isinstance(conn, HttpState):
            return self._fit_http(conn, one, other)
        assert server is not None
        conn.counted = (
            one.consumed == client.received
            and other.consumed == server.received
            and other.written == client.received + client.shift - _held(client)
            and one.written == server.received + server.shift - _held(server)
        )
        if not conn.counted:
            self._reject(conn)
            self._worker.complain(_UNSOUND, event=Event.PARKING_FAILED)
        return conn.counted

    def _fit_http(self, conn: HttpState, one: counters.Counters, other: counters.Counters) -> bool:
        """As _fit(). The sockets have had other partners before, so only the kernel knows how much they differ by."""
        client, server = conn.client, conn.server
        if one.consumed != client.received or (server is not None and other.consumed != server.received):
            fits = False
        elif server is None:
            fits = one.written == conn.given
        else:
            client.shift = other.written - client.received + _held(client)
            server.shift = one.written - server.received + _held(server)
            fits = True
        if not fits:
            self._reject(conn)
            self._worker.complain(_UNSOUND, event=Event.PARKING_FAILED)
        return fits

    def _reject(self, conn: Connection) -> None:
        conn.slot = _UNFIT
        self.known += 1

    def _park_all(
        self,
        connections: Sequence[Connection],
        state: SlotState,
        ours: Callable[[Connection], object] | None = None,
    ) -> int:
        """Returns how many were parked; the others could not be."""
        done = 0
        batch: list[Connection] = []
        fds: list[int] = []
        for conn in connections:
            own = [conn.client.fd] + ([conn.server.fd] if conn.server is not None else [])
            if len(fds) + len(own) > ROOM:
                done += self._send_connections(batch, fds, state, ours)
                batch, fds = [], []
            if why := self.queue.full(len(fds) + len(own)):
                self._refused(why)
                break
            if not self._write(conn, state):
                if not self._free_slots and self._next_slot >= self._slots:
                    break
                continue  # there may be room for others
            batch.append(conn)
            fds += own
        done += self._send_connections(batch, fds, state, ours)
        if done and done == len(connections):
            self._complained_of = ""
        return done

    def _send_connections(
        self,
        batch: Sequence[Connection],
        fds: Sequence[int],
        state: SlotState,
        ours: Callable[[Connection], object] | None,
    ) -> int:
        if not batch:
            return 0
        assert self._park
        records = [
            Record(Kind.BOTH if conn.server is not None else Kind.CLIENT, conn.number, conn.slot) for conn in batch
        ]
        why = self.queue.send(records, fds)
        if not why:
            # Not before: what is not in the queue is somebody else's still, or dies with us and is counted with those.
            for conn in batch:
                if ours is not None:
                    ours(conn)
                self._park.book.set_state(conn.slot, state)
            self.tell()
            self._batches += 1
            self._strike(f"batch-{self._batches}")
            if not self.bucket and self._running:
                self._arm(self._beat)
            return len(batch)
        for conn in batch:
            self._forget(conn)
        self._refused(why)
        return 0

    def _refused(self, why: str) -> None:
        if why != self._complained_of:
            self._complained_of = why
            number = len(self._connections)
            text = f"cannot park more than {number} connections of this worker: {why}"
            self._worker.log("warning", text, event=Event.PARKING_FAILED, parked=number, reason=why)
        self._rest_until = self._worker.now + _REST

    def _write(self, conn: Connection, state: SlotState) -> bool:
        """Fill a slot for it, and label all that it has in flight."""
        lane = self._lane(conn)
        if self._free_slots:
            slot = self._free_slots.pop()
        elif self._next_slot < self._slots:
            slot = self._next_slot
            self._next_slot += 1
        else:
            slot = -1
        if lane < 0 or slot < 0:
            self._refused("its book is full")
            return False
        if not self._fill(conn, slot, state, lane, queued=False):
            self._free_slots.append(slot)
            if state is SlotState.FROZEN:
                self._refused("its book is full")
            else:
                self._reject(conn)
            return False
        conn.slot = slot
        conn.shared = True
        self._connections[slot] = conn
        self.known += 1
        client, server = conn.client, conn.server
        client.copied = True
        if server is None:
            return True  # nothing is on its way
        server.copied = True
        if isinstance(server, HttpSide):
            server.shared = True
        for side, mark in ((client, mark_of(slot, False)), (server, mark_of(slot, True))):
            side.mark = mark
            if side.pipe is not None and side.pipe.place >= 0:
                self._pipes.own(side.pipe, mark)
        for side in (client, server):
            if side.out is not None:
                side.out = self.keep(side, side.out)
        return True

    def _fill(self, conn: Connection, slot: int, state: SlotState, lane: int, queued: bool = True) -> bool:
        assert self._park
        book = self._park.book
        stands = state if queued else SlotState.FREE
        if is_plain(conn):
            plain = for_park(conn, lane).encode()
            if len(plain) <= book.text_size:
                book.write(slot, stands, conn.number, plain, (conn.accounted_in, conn.accounted_out), _shifts(conn))
                return True
        form = to_serial(conn, data=False).as_dict()
        for name in _ELSEWHERE:
            form.pop(name, None)
        form["lane"] = lane
        shifts = _shifts(conn)
        if isinstance(conn, HttpState):
            if state is SlotState.FROZEN:
                form["http"] = http_form(conn)  # of those that run a short form will do
            elif conn.server is None:
                shifts = (conn.client.received, conn.given)
        room = book.text_size
        text = _encode(form).encode()
        if len(text) > room and isinstance(conn, HttpState):
            if state is SlotState.FROZEN:
                # Heads may be long.
                if not self._park.book.add_note({"http": conn.number, "form": form["http"]}):
                    return False
                form["http"] = {}
            else:
                # The target is for the log only.
                form["http"] = http_form(conn, data=False, target=1)
            text = _encode(form).encode()
        if len(text) > room:
            self._worker.complain(
                f"cannot park a connection: its record has {len(text)} bytes, there is room for {room}",
                event=Event.PARKING_FAILED,
            )
            return False
        book.write(slot, stands, conn.number, text, (conn.accounted_in, conn.accounted_out), shifts)
        return True

    def boundary(self, conn: HttpState) -> None:
        """A parked client without a server has had an answer: nothing of it is on its way, once more."""
        assert self._park
        self._park.book.shift(mark_of(conn.slot, False), conn.client.received)
        self._park.book.shift(mark_of(conn.slot, True), conn.given)

    def unpark(self, conn: HttpState) -> None:
        """Its server goes its own way: it is parked anew without it."""
        self._forget(conn, for_another=True)
        if self.asleep:
            self.wake()

    def _lasting(self) -> None:
        """Clients that are parked alone, and have an exchange that takes its time: park them together."""
        worker = self._worker
        found: list[HttpState] = []
        for conn in self.busy:
            exchange = conn.exchange
            if exchange is None or worker.now - exchange.requested_at < self._after or len(found) == _BURST:
                break
            if conn.parkable():
                found.append(conn)
        for conn in found:
            self._forget(conn, for_another=True)
        self.admit(found)

    def _lane(self, conn: Connection) -> int:
        """The number of the note with its frontend, backend and server; negative when there is no room for one."""
        frontend, backend = conn.frontend.config, conn.backend.config
        names = (frontend.name, backend.name, conn.target.name if conn.target is not None else "")
        lane = self._lanes.get(names)
        if lane is None:
            assert self._park
            note: dict[str, Any] = {"lane": names}
            servers = self._noted.get(("backend", backend.name))
            if ("frontend", frontend.name) not in self._noted:
                note["frontend"] = frontend_record(frontend)
            if servers is None:
                note["backend"] = backend_record(backend)
                servers = frozenset(server.name for server in backend.servers)
            elif conn.target is not None and names[2] not in servers:
                note["server"] = server_record(conn.target.config)  # added since
            if not self._park.book.add_note(note):
                return -1
            self._noted[("frontend", frontend.name)] = frozenset()
            self._noted[("backend", backend.name)] = servers
            lane = self._lanes[names] = len(self._lanes)
        return lane

    # -- what happens to a parked connection -----------------------------------------------------------------------

    def keep(self, side: Side, rest: bytes | memoryview) -> bytes | memoryview:
        """A copy of what waits to be written to this side, in a block, so that it outlives us."""
        assert self._park
        mark = side.peer.mark
        kept = self._park.book.keep(mark, side.peer.received - len(rest) - _piped(side.peer), rest)
        if kept is None:
            # Should we die now, it is missed. What the scratch holds next must not be taken for it.
            self._park.book.words[LABEL_MARK] = 0
            return bytes(rest)
        if side.kept >= 0:
            self._park.book.release(side.kept)
        side.kept, view = kept
        return view

    def release(self, side: Side) -> None:
        """Its block is not needed any more."""
        assert self._park
        self._park.book.release(side.kept)
        side.kept = -1

    def shifted(self, side: Side) -> None:
        """The `shift` of a parked connection's side has changed."""
        assert self._park
        self._park.book.shift(side.mark, side.shift)

    def account(self, conn: Connection) -> None:
        assert self._park
        self._park.book.account(conn.slot, conn.accounted_in, conn.accounted_out)

    def end(self, conn: Connection) -> None:
        """It is being closed: close(2) alone would show its peers nothing, for some queue has it, too."""
        parked = conn.slot >= 0
        if parked and self._park:
            self._park.book.set_state(conn.slot, SlotState.ENDING)
        farewell(conn.client.sock)
        if conn.server is not None:
            farewell(conn.server.sock)
        if parked:
            self._forget(conn)

    def _forget(self, conn: Connection, for_another: bool = False) -> None:
        """It is parked no more, or `for_another` time with other sockets."""
        assert self._park
        slot, conn.slot = conn.slot, UNPARKED
        if isinstance(conn, HttpState):
            self.busy.pop(conn, None)
        for side in (conn.client, conn.server):
            if side is not None:
                side.mark = 0
                if side.pipe is not None and side.pipe.place >= 0:
                    self._pipes.own(side.pipe, 0)
                if side.kept >= 0:
                    side.out = bytes(side.out) if side.out is not None else None
                    self.release(side)
        del self._connections[slot]
        self.known -= 1
        if for_another:
            self._park.book.set_state(slot, SlotState.FREE)
            self._retired[slot] = conn.number
            self.stale = True
        else:
            self._free(slot)

    def _dropped(self, records: Sequence[Record]) -> None:
        """These are in the queue no more."""
        for record in records:
            if record.kind is not Kind.PIPE and self._retired.get(record.slot) == record.number:
                del self._retired[record.slot]
                self._free_slots.append(record.slot)

    def _free(self, slot: int) -> None:
        assert self._park
        self._park.book.set_state(slot, SlotState.FREE)
        self._free_slots.append(slot)
        self.stale = True

    def depart(self, conn: Connection, pipes: Sequence[Pipe]) -> int:
        """It is on its way to another worker, and `pipes` with it: a ticket for gone(). Negative: it is not parked."""
        if conn.slot < 0:
            self.left(conn)
            for pipe in pipes:
                self.drop_pipe(pipe)
            return -1
        assert self._park
        slot, conn.slot = conn.slot, UNPARKED
        if isinstance(conn, HttpState):
            self.busy.pop(conn, None)
        self._park.book.set_state(slot, SlotState.MOVING)
        blocks = []
        for side in (conn.client, conn.server):
            if side is not None and side.kept >= 0:
                blocks.append(side.kept)
                side.kept = -1
        self._departing[slot] = (blocks, [pipe.place for pipe in pipes if pipe.place >= 0])
        del self._connections[slot]
        self.known -= 1
        self.stale = True
        return slot

    def gone(self, ticket: int) -> None:
        """It has arrived elsewhere, or is parked anew."""
        if ticket < 0:
            return
        assert self._park
        blocks, places = self._departing.pop(ticket)
        for block in blocks:
            self._park.book.release(block)
        for place in places:
            self._pipes.free(place)
        self._free(ticket)

    def left(self, conn: Connection) -> None:
        """A connection of this worker that is not parked is no more."""
        if conn.slot == _UNFIT:
            conn.slot = UNPARKED
            self.known -= 1

    def tell(self) -> None:
        """Bring the gauge up to date: at once when it grows, else together with that of all connections. Thus whatever
        the difference is when we die, so many were not parked."""
        self.stale = False
        self._worker.slots[self._worker.index][self._gauge] = len(self._connections)

    # -- pipes -----------------------------------------------------------------------------------------------------

    def add_pipe(self, pipe: Pipe) -> None:
        """A pipe is parked before a byte enters it."""
        if self._running:
            self._park_pipe(pipe)

    def _park_pipe(self, pipe: Pipe) -> None:
        if why := self._pipes.add(pipe):
            self._refused(why)

    def drop_pipe(self, pipe: Pipe) -> None:
        """A pipe is about to be closed, or has left."""
        if pipe.place >= 0:
            self._pipes.free(pipe.place)
            pipe.place = -1

    # -- the queue -----------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Many have left at once: let go of their descriptors without waiting."""
        if self._park and not self._departing:
            self.queue.sweep(self._living)

    def _living(self, message: Sequence[Record]) -> tuple[list[Record], list[int]]:
        records, fds = [], []
        for record in message:
            if record.kind is Kind.PIPE:
                own = self._pipes.living(record)
                if not own:
                    continue
                fds += own
            else:
                conn = self._connections.get(record.slot)
                if conn is None or conn.number != record.number:
                    continue
                fds.append(conn.client.fd)
                if record.kind is Kind.BOTH:
                    assert conn.server is not None
                    fds.append(conn.server.fd)
            records.append(record)
        return records, fds

    # -- the end -------------------------------------------------------------------------------------------------------

    def freeze(self) -> tuple[int, dict[str, int]]:
        """Park all, in whatever state they are: this worker serves nobody any more and ends. Returns how many were
        parked, and how many were reset for which reason."""
        worker = self._worker
        parked = 0
        loose: list[Connection] = []
        for conn in worker.connections:
            conn.account()
            if conn.slot >= 0 and isinstance(conn, HttpState):
                if conn.exchange is None and conn.parkable() and not conn.tunnel:
                    parked += 1  # as if we died
                    continue
                if not conn.tunnel:
                    self._forget(conn, for_another=True)  # its record may lack the server
            if conn.slot >= 0 and conn.state is State.ESTABLISHED and conn.dead is None:
                parked += 1  # as if we died
            elif conn.slot >= 0:
                self._refill(conn)
                parked += 1
            else:
                loose.append(conn)
        if self._park:
            self._rest_until = 0.0
            if len(loose) > len(self._free_slots) + self._slots - self._next_slot and not self._departing:
                self.queue.renew(self._living)
            for conn in loose:
                for side in (conn.client, conn.server):
                    if side is not None and side.pipe is not None and side.pipe.place < 0:
                        self._park_pipe(side.pipe)
                self.left(conn)
            parked += self._park_all(loose, SlotState.FROZEN)
            self._park.book.beat()
        rejected = [conn for conn in loose if conn.slot < 0]
        for conn in rejected:
            # A clean end might be taken for the end of the data.
            reset(conn.client.sock)
            if conn.server is not None:
                reset(conn.server.sock)
        return parked, {"they could not be parked": len(rejected)} if rejected else {}

    def _refill(self, conn: Connection) -> None:
        """Its text tells more than the kernel does: one side is dead."""
        assert self._park
        for side in (conn.client, conn.server):
            if side is not None and side.out is not None:
                side.out = self.keep(side, bytes(side.out))
        self._fill(conn, conn.slot, SlotState.FROZEN, self._lane(conn))


def _shifts(conn: Connection) -> tuple[int, int]:
    return conn.client.shift, conn.server.shift if conn.server is not None else 0


def _piped(side: Side) -> int:
    return side.pipe.fill if side.pipe is not None else 0


def _held(side: Side) -> int:
    """Bytes from this side that were not yet written to the other one."""
    out = side.peer.out
    return _piped(side) + (len(out) if out is not None else 0)
