"""Going on with the connections that another worker had parked when it died, exactly or not at all.

The dead worker's queue is read without emptying it, a message a turn, and what was resumed is parked anew in our own
before the old slot is freed. So whoever dies in the midst of it, the next one finds every connection once, or twice
with the same number, of which main lets one count (main/parks.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import termios
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hitlessd.dataclass import dataclass, field
from hitlessd.descriptors import ShortOfDescriptors, close_all
from hitlessd.errors import PeerError
from hitlessd.events import Event
from hitlessd.handover.faults import striker
from hitlessd.parking import counters
from hitlessd.parking.arithmetic import Buffers, Fate, Hole, fate, rest
from hitlessd.parking.book import LABEL_AT, LABEL_MARK, SlotState, mark_of
from hitlessd.parking.park import PARTS, Kind, Park, Record, farewell, reset
from hitlessd.worker.connection import Connection
from hitlessd.worker.form import SerialConnection, SerialSide, encode
from hitlessd.worker.http.serial import count_on
from hitlessd.worker.lanes import Places, Proxies
from hitlessd.worker.pipes import Pipe
from hitlessd.worker.serial import Frozen, resume
from hitlessd.worker.timers import NEVER

if TYPE_CHECKING:
    from hitlessd.worker.loop import Worker

__all__ = ["Resumption"]

_DIED = "bytes that were on their way died with the process"

#: Processes that may die over one message; then something in it kills them, and what is left is given up.
_ATTEMPTS = 20
#: Seconds between two looks whether the one before us is dead at last, or descriptors are free again; and how long.
_AGAIN, _PATIENCE = 0.02, 5.0
#: Turns of the worker in a row in which nobody is resumed because more happens than a turn takes. A batch makes two
#: turns' events by itself; without a pause everything else, main's pings too, would wait until the last batch is here.
_HELD = 3


@dataclass
class _Report:
    resumed: int = 0
    ended: int = 0  # they were being closed, or had been by their peers
    lost: dict[str, int] = field(default_factory=dict)

    def lose(self, why: str, number: int = 1) -> None:
        if number:
            self.lost[why] = self.lost.get(why, 0) + number


class Resumption:
    """Takes one park over, message by message. It is among the worker's `ready` until it is done."""

    @classmethod
    def of(
        cls,
        worker: Worker,
        name: str,
        fds: Sequence[int],
        cold: bool,
        order: dict[str, Any],
        answer: Callable[..., object],
    ) -> None:
        """Follow main's order: `fds` are the PARTS. `cold`: nobody who could have a moving connection lives."""
        try:
            park = Park.adopt(name, dict(zip(PARTS, fds, strict=True)))
        except (PeerError, ValueError) as error:
            answer(order, resumed=0, ended=0, lost={}, why=str(error))
            return
        cls(worker, park, cold, lambda report: answer(order, **report))

    def __init__(self, worker: Worker, park: Park, cold: bool, done: Callable[[dict[str, Any]], object]) -> None:
        """Owns the park."""
        self._worker = worker
        self._park = park
        self._book = park.book
        self._cold = cold
        self._done = done
        self._report = _Report()
        self._unchecked = os.environ.get("HITLESSD_UNCHECKED_RESUME") == "1"
        self._strike = striker("resumption", os.environ)
        self._batches = 0
        self._attempt = 0  # the how-manieth process we are that tries
        self._give_up = ""  # why nothing of it goes on
        self._seen: set[int] = set()  # slots
        self._messages: list[tuple[int, list[Record]]] | None = None
        self._pipes: dict[int, Pipe] = {}  # by mark, those that hold bytes
        self._kept: dict[int, tuple[int, bytes]] = {}
        self._label = (0, 0)
        self._lanes: list[tuple[str, str, str]] = []
        self._http: dict[int, dict[str, Any]] = {}  # forms that are too long for a slot, by number
        self._frontends: Proxies = {}
        self._backends: Proxies = {}
        self._deadline = time.monotonic() + _PATIENCE
        self._held = 0
        self.bucket = 0
        self._due = NEVER
        worker.resumptions.add(self)
        worker.ready.append(self)

    # -- turns -------------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """One turn's work."""
        try:
            if self._messages is None:
                if not self._book.lock():
                    # Killed, its process takes a moment to let go.
                    return self._later("its worker is still there")
                try:
                    self._open()
                except ShortOfDescriptors as error:
                    return self._later(str(error))
            assert self._messages is not None
            if self._worker.behind and self._held < _HELD:
                self._held += 1
                self._worker.ready.append(self)
                return
            self._held = 0
            if self._messages:
                at, records = self._messages[0]
                if self._wanted(records):
                    try:
                        fds = self._park.peek(at)
                    except ShortOfDescriptors as error:
                        return self._later(str(error))
                    self._take(records, fds)
                    self._deadline = time.monotonic() + _PATIENCE
                self._messages.pop(0)
            if self._messages:
                self._worker.ready.append(self)
            else:
                self._finish()
        except Exception as error:
            # A connection that cannot be read must not cost the others.
            self._worker.log("err", f"cannot go on with parked connections: {error}", event=Event.PARK_UNUSABLE)
            self._report.lose("what was parked makes no sense", self._left())
            self._end()

    def _later(self, why: str) -> None:
        if time.monotonic() < self._deadline:
            self._due = self._worker.now + _AGAIN
            self._worker.wheel.add(self, self._due)
            return
        self._report.lose(why, self._left())
        self._end()

    def deadline(self) -> float:
        return self._due

    looked_at = deadline

    def expired(self) -> None:
        self._worker.ready.append(self)

    def _open(self) -> None:
        """Read what is not of a single connection. Raises ShortOfDescriptors."""
        book = self._book
        self._attempt = self._attempt or book.attempt()
        limit = self._worker.setup.config.global_.park_timeout
        if book.silence > limit:
            self._give_up = f"nobody went on with them within park-timeout ({limit:g} s)"
        elif self._attempt > _ATTEMPTS:
            self._give_up = f"{_ATTEMPTS} processes died over them"
        self._lanes.clear()
        self._report = _Report(*book.dealt_with)
        for note in book.notes():
            if "http" in note:
                self._http[int(note["http"])] = note["form"]
                continue
            if "lost" in note:
                self._report.lose(str(note["lost"]))
                continue
            frontend, backend, server = note["lane"]
            self._lanes.append((str(frontend), str(backend), str(server)))
            if "frontend" in note:
                self._frontends[frontend] = note["frontend"]
            if "backend" in note:
                self._backends[backend] = note["backend"]
            if "server" in note:
                self._backends[backend]["servers"].append(note["server"])
        self._kept = book.kept()
        self._label = (book.words[LABEL_MARK], book.words[LABEL_AT])
        messages = self._park.messages(lambda text: self._worker.complain(text, event=Event.PARK_UNUSABLE))
        self._open_pipes(messages)
        self._messages = messages

    def _open_pipes(self, messages: Sequence[tuple[int, list[Record]]]) -> None:
        owners = self._book.owners()
        for at, records in messages:
            owned = [
                record
                for record in records
                if record.kind is Kind.PIPE and record.slot < len(owners) and owners[record.slot][0] == record.number
            ]
            if not owned:
                continue
            fds = iter(self._park.peek(at))
            for record in records:
                mine = [next(fds) for _ in range(record.kind.descriptors)]
                mark = owners[record.slot][1] if record in owned else 0
                pipe = Pipe.of(*mine) if mark else None
                if pipe is not None:
                    (pipe.fill,) = struct.unpack("i", fcntl.ioctl(pipe.reader, termios.FIONREAD, b"\0\0\0\0"))
                if pipe is None or not pipe.fill or mark in self._pipes:
                    close_all(mine)
                else:
                    self._pipes[mark] = pipe

    # -- connections -------------------------------------------------------------------------------------------------

    def _wanted(self, records: Sequence[Record]) -> bool:
        return any(self._slot_state(record) != SlotState.FREE for record in records)

    def _slot_state(self, record: Record) -> int:
        """Of the connection that the record is of; FREE when that one has ended, or was dealt with."""
        book, slot = self._book, record.slot
        if record.kind is Kind.PIPE or slot >= book.slots or slot in self._seen or book.number(slot) != record.number:
            return SlotState.FREE
        state = book.state(slot)
        return SlotState.FREE if state == SlotState.MOVING and not self._cold else state

    def _take(self, records: Sequence[Record], fds: Sequence[int]) -> None:
        rest_of = iter(fds)
        places = Places(self._worker.lanes, self._frontends, self._backends)
        resumed: list[tuple[int, Connection]] = []
        for record in records:
            own = [fd for _, fd in zip(range(record.kind.descriptors), rest_of, strict=False)]
            state = self._slot_state(record)
            if state == SlotState.FREE or len(own) != record.kind.descriptors:
                close_all(own)
                continue
            self._seen.add(record.slot)
            socks = [socket.SocketType(fileno=fd) for fd in own]
            if state == SlotState.ENDING:
                self._report.ended += 1
                self._say_farewell(record.slot, socks)
                continue
            conn = self._try(record.slot, SlotState(state), socks, places)
            if conn is not None:
                resumed.append((record.slot, conn))
        self._batches += 1
        self._strike(f"claim-{self._batches}")
        came = [conn for _, conn in resumed]
        self._worker.welcome(came)
        self._worker.parking.admit(came)
        for slot, _ in resumed:
            self._book.set_state(slot, SlotState.FREE)
        self._report.resumed += len(resumed)
        self._book.progress(self._report.resumed, self._report.ended)
        self._strike(f"batch-{self._batches}")

    def _try(self, slot: int, state: SlotState, socks: list[socket.SocketType], places: Places) -> Connection | None:
        try:
            if self._give_up:
                raise Hole(self._give_up)
            serial = self._form(slot)
            how, to_server, to_client = self._check(serial, state, slot, socks)
            if how is Fate.GOES_ON:
                frozen = Frozen(serial, socks[0], socks[1] if len(socks) > 1 else None, to_server, to_client)
                elapsed = self._book.age(slot)
                conn = resume(self._worker, frozen, places, elapsed)
                for from_server in (False, True):
                    self._pipes.pop(mark_of(slot, from_server), None)  # it is the connection's now
                return conn
        except Hole as hole:
            self._lose(str(hole))
        except (PeerError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            text = f"cannot go on with a parked connection: {error}"
            self._worker.complain(text, event=Event.PARK_UNUSABLE)
            self._lose("what was parked of them makes no sense")
        else:
            self._report.ended += 1
            if how is Fate.ENDING:
                self._say_farewell(slot, socks)
                return None
        for sock in socks:
            reset(sock)
            sock.close()
        self._book.set_state(slot, SlotState.FREE)
        return None

    def _lose(self, why: str) -> None:
        """Should we die, the next one tells."""
        self._report.lose(why)
        self._book.add_note({"lost": why})

    def _say_farewell(self, slot: int, socks: Sequence[socket.SocketType]) -> None:
        for sock in socks:
            farewell(sock)
            sock.close()
        self._book.set_state(slot, SlotState.FREE)

    def _form(self, slot: int) -> SerialConnection:
        form = json.loads(self._book.text(slot))
        if form.get("http") == {}:
            form["http"] = self._http[self._book.number(slot)]
        form["frontend"], form["backend"], form["server"] = self._lanes[form.pop("lane")]
        serial = SerialConnection.from_dict(form)
        serial.number = self._book.number(slot)
        serial.accounted_in, serial.accounted_out = self._book.accounted(slot)
        for side, from_server in ((serial.client, False), (serial.server_side, True)):
            if side is not None:
                side.shift = self._book.shift_of(mark_of(slot, from_server))
        serial.shared = True
        return serial

    def _check(
        self, serial: SerialConnection, state: SlotState, slot: int, socks: Sequence[socket.SocketType]
    ) -> tuple[Fate, Pipe | None, Pipe | None]:
        """Complete the form by what the kernel and the book tell; the pipes to the server and to the client.

        Raises Hole when bytes are missing."""
        client, server = serial.client, serial.server_side
        up, down = mark_of(slot, False), mark_of(slot, True)
        if len(socks) != 1 + (server is not None):
            raise Hole("its descriptors are not all there")
        if server is None:
            if serial.http is not None and state != SlotState.FROZEN:
                self._check_alone(serial, slot, socks[0])
            return Fate.GOES_ON, None, None
        if state == SlotState.FROZEN:
            # Its worker had stopped serving it before it ended: nothing has changed since, but what the peers did.
            to_server, to_client = self._pipe(up), self._pipe(down)
            for side, mark in ((client, down), (server, up)):
                kept = self._kept.get(mark, (0, b""))[1]
                if len(kept) != side.held:
                    raise Hole(_DIED)
                side.kept = encode(kept)
            if _fill(to_server) != client.piped or _fill(to_client) != server.piped:
                raise Hole(_DIED)
            return Fate.GOES_ON, to_server, to_client
        one, other = counters.read_last(socks[0], False), counters.read_last(socks[1], True)
        how = fate(one, other)
        if how is not Fate.GOES_ON:
            return how, None, None
        elapsed = self._book.age(slot)
        to_server, to_client = self._pipe(up), self._pipe(down)
        came, went = client.received, server.received
        try:
            ahead_up = self._rest(one, other, up, to_server, client.shift)
            ahead_down = self._rest(other, one, down, to_client, server.shift)
        except Hole:
            if one.closed or other.closed:
                return Fate.CUT, None, None  # it was reset, and its worker had been told
            raise
        # Age is counted from when the form was written, idleness from now.
        _complete(client, one, other.shut, ahead_down, to_server, elapsed)
        _complete(server, other, one.shut, ahead_up, to_client, elapsed)
        serial.counted = serial.http is None
        if serial.http is not None:
            try:
                count_on(serial.http, client.received - came, server.received - went)
            except ValueError:
                # Its answer began, or ended, after it was parked.
                raise Hole("a request died with the process") from None
        return how, to_server, to_client

    def _check_alone(self, serial: SerialConnection, slot: int, sock: socket.SocketType) -> None:
        """An HTTP client that was parked between two exchanges. Raises Hole when a new one had begun."""
        known = counters.read(sock, False)
        given = self._book.shift_of(mark_of(slot, True))
        if known.consumed != self._book.shift_of(mark_of(slot, False)) or known.written != given:
            raise Hole("a request died with the process")
        assert serial.http is not None
        serial.http |= {"given": given, "exchanges": max(1, int(serial.http.get("exchanges", 1))), "began": 0.0}
        serial.client.received, serial.client.shift = known.consumed, 0
        serial.client.idle = known.idle - self._book.age(slot)

    def _rest(
        self, source: counters.Counters, target: counters.Counters, mark: int, pipe: Pipe | None, shift: int
    ) -> bytes:
        if self._unchecked:
            return b""
        label = self._label[1] if self._label[0] == mark else None
        return rest(source, target, Buffers(_fill(pipe), self._kept.get(mark), label, self._book.scratch), shift)

    def _pipe(self, mark: int) -> Pipe | None:
        return self._pipes.get(mark)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _left(self) -> int:
        """Connections that nobody has dealt with."""
        wanted = {SlotState.LIVE, SlotState.FROZEN} | ({SlotState.MOVING} if self._cold else set())
        return sum(1 for slot, state in enumerate(self._book.states()) if state in wanted and slot not in self._seen)

    def _finish(self) -> None:
        self._report.lose("their descriptors were not yet parked", self._left())
        self._end()

    def _end(self) -> None:
        for pipe in self._pipes.values():
            pipe.close()
        self._pipes.clear()
        self._worker.resumptions.discard(self)
        self._park.writer.close()
        self._park.reader.close()
        report = self._report
        self._done({"resumed": report.resumed, "ended": report.ended, "lost": report.lost})
        self._book.close()


def _fill(pipe: Pipe | None) -> int:
    return pipe.fill if pipe is not None else 0


def _complete(
    side: SerialSide, known: counters.Counters, passed_on: bool, ahead: bytes, pipe: Pipe | None, elapsed: float
) -> None:
    """What the kernel knows better than the form. A FIN that has come, and was not `passed_on`, is read again."""
    side.received = known.consumed
    side.idle = known.idle - elapsed
    side.eof = passed_on
    side.shut = known.shut
    side.kept = encode(ahead)
    side.piped = _fill(pipe)
