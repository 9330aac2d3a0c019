"""What lies in systemd's descriptor store for us, and the record that makes sense of it at the next start.

hitlessd.listener-*   listeners that we bound ourselves (those of .socket units come back anyway)
hitlessd.runtime-*    listeners of the runtime API
hitlessd.table-N      the shared table of generation N
hitlessd.state-N      a memfd: the text of the running configuration and what else generation N knew
hitlessd.state-N-K    the same, stored for the Kth time, when a reload had ended
hitlessd.changes-N-M  a memfd: what operators have changed at run time, for the Mth time in generation N
hitlessd.park-N-M-*   the parts of a park: connections of a worker of generation N
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from hitlessd.dataclass import dataclass, field, replace
from hitlessd.errors import HitlessdError, PeerError, SystemRefused
from hitlessd.events import Event
from hitlessd.listeners import Listener
from hitlessd.log import Logger
from hitlessd.model import SourceFile
from hitlessd.parking.park import PARTS, Park
from hitlessd.systemd import STORE_PREFIX, Manager
from hitlessd.table import Table

__all__ = ["State", "Store", "Stored"]

_LISTENER, _RUNTIME = "listener", "runtime"
_TABLE, _STATE, _PARK, _CHANGES = "table-", "state-", "park-", "changes-"
#: A socket unit hitlessd.socket that does not say FileDescriptorName= passes its own name, which begins as ours do.
_OURS = (f"{_LISTENER}-", f"{_RUNTIME}-", _TABLE, _STATE, _PARK, _CHANGES)
#: Far above any configuration that the reader accepts.
_LARGEST_STATE = 64 << 20
#: JSON that is nested too deeply, numbers that are too large.
_TOO_MUCH = (RecursionError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class State:
    """What a generation leaves for a start without a predecessor. Unknown fields are ignored, missing ones empty."""

    generation: int = 0
    files: tuple[SourceFile, ...] = ()
    resolved: dict[str, tuple[str, ...]] = field(default_factory=dict)
    listeners: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name in the store
    reloads: dict[str, Any] = field(default_factory=dict)  # what Reloads exports

    def dump(self) -> bytes:
        return json.dumps(
            {
                "generation": self.generation,
                "files": [[file.name, file.text] for file in self.files],
                "resolved": self.resolved,
                "listeners": self.listeners,
                # A version that knows no history, which somebody may go back to, wants numbers only.
                "reloads": {name: value for name, value in self.reloads.items() if isinstance(value, int)},
                "past": {name: value for name, value in self.reloads.items() if not isinstance(value, int)},
            }
        ).encode()

    @classmethod
    def load(cls, data: bytes) -> State:
        """Raises an error of Python's for what no generation of ours has written."""
        text = json.loads(data)
        return cls(
            int(text.get("generation", 0)),
            tuple(SourceFile(str(name), str(body)) for name, body in text.get("files", ())),
            {str(name): tuple(map(str, found)) for name, found in text.get("resolved", {}).items()},
            {str(name): dict(record) for name, record in text.get("listeners", {}).items()},
            {
                **{str(name): value for name, value in dict(text.get("past", {})).items()},
                **{str(name): int(value) for name, value in text.get("reloads", {}).items()},
            },
        )


@dataclass(slots=True)
class Stored:
    """What came back: listeners by kind, tables, the youngest state, and the names that are of no use any more."""

    listeners: list[Listener] = field(default_factory=list)
    runtime: list[Listener] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    parks: list[Park] = field(default_factory=list)
    spoilt: int = 0  # parks that cannot be used
    state: State | None = None
    state_name: str = ""
    changes: list[Any] = field(default_factory=list)  # of operators, see Changes.export()
    changes_name: str = ""  # of their entry
    useless: list[str] = field(default_factory=list)


class Store:
    """Our part of systemd's descriptor store; does nothing where there is none."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._state = State()
        self._serial = 0
        self.state = ""  # the name of what is stored

    @property
    def open(self) -> bool:
        """There is one, as far as one can know."""
        return self._manager.has_store and not self._manager.replaced

    def recover(self, inherited: Iterable[tuple[int, str]], log: Logger) -> Stored:
        """Sort what systemd passed. Something unsound is reported, closed and left out; it never stops a start."""
        stored = Stored()
        loose: list[tuple[int, str]] = []
        states: list[tuple[str, State]] = []
        parks: dict[str, dict[str, int]] = {}
        changes: list[tuple[tuple[int, ...], str, list[Any]]] = []
        for fd, name in inherited:
            short = name.removeprefix(STORE_PREFIX)
            try:
                if short == name or not short.startswith(_OURS):
                    stored.listeners.append(Listener.adopt(fd, {"origin": "systemd", "name": name}))
                elif short.startswith(_TABLE):
                    stored.tables.append(Table.attach(fd))
                elif short.startswith(_STATE):
                    states.append((short, State.load(_read(fd))))
                elif short.startswith(_CHANGES):
                    data = _read(fd)
                    order = tuple(int(part) for part in short.removeprefix(_CHANGES).split("-"))
                    changes.append((order, short, list(json.loads(data))))
                elif short.startswith(_PARK):
                    park, _, part = short.removeprefix(_PARK).rpartition("-")
                    if parks.setdefault(park, {}).setdefault(part, fd) != fd:
                        os.close(fd)  # twice under one name
                else:
                    loose.append((fd, short))
            except (HitlessdError, OSError, ValueError, TypeError, LookupError, AttributeError, *_TOO_MUCH) as error:
                log("warning", f"cannot use what systemd passed as '{name}': {error}", event=Event.PASSED_UNUSABLE)
                stored.useless.append(short)
        # A successor that died in the commit may have left a state of the number that the next one got. Dropping goes
        # by name, so what shares the name of the one that counts stays beside it.
        states.sort(key=lambda item: (item[1].generation, item[1].reloads.get("number", 0)))
        stored.useless += [short for short, _ in states[:-1] if short != states[-1][0]]
        stored.state_name, stored.state = states[-1] if states else ("", None)
        changes.sort(key=lambda each: each[0])
        for _, stored.changes_name, stored.changes in changes[-1:]:
            stored.useless += [short for _, short, _ in changes[:-1] if short != stored.changes_name]
        records = stored.state.listeners if stored.state else {}
        for fd, short in loose:
            try:
                listener = Listener.adopt(fd, {**records.get(short, {}), "name": short, "stored": True}, idle=True)
            except SystemRefused as error:
                log("warning", f"cannot use what systemd stored as '{short}': {error}", event=Event.PASSED_UNUSABLE)
                stored.useless.append(short)
                continue
            (stored.runtime if short.startswith(_RUNTIME) else stored.listeners).append(listener)
        for park, parts in parks.items():
            try:
                stored.parks.append(Park.adopt(park, parts))
                stored.parks[-1].stored = True
            except PeerError as error:
                log("err", f"{error}; its connections are lost", event=Event.PARK_UNUSABLE)
                stored.spoilt += 1
                stored.useless += [f"{_PARK}{park}-{part}" for part in parts]
        stored.tables.sort(key=lambda table: table.generation)
        return stored

    def keep(
        self,
        state: State,
        table: Table,
        listeners: Sequence[Listener],
        runtime: Sequence[Listener],
    ) -> None:
        """Store what a restart needs. The new state goes in before the old one is dropped."""
        if not self._manager.has_store:
            return
        records: dict[str, dict[str, Any]] = {}
        for kind, each in ((_LISTENER, listeners), (_RUNTIME, runtime)):
            for listener in each:
                if listener.origin == "systemd":
                    continue
                listener.name = f"{kind}-{listener.name.partition('-')[2] or listener.name}"
                if not listener.stored:
                    self._manager.store(STORE_PREFIX + listener.name, [listener.sock.fileno()])
                    listener.stored = True
                records[listener.name] = listener.record()
        self._manager.store(f"{STORE_PREFIX}{_TABLE}{table.generation}", [table.fd])
        self._state = replace(state, listeners=records)
        self._put_state(f"{_STATE}{state.generation}")

    def keep_reloads(self, reloads: dict[str, Any]) -> None:
        """Store the state once more, with what is known of reloads now."""
        if not self.open or not self.state:
            return
        before = self.state
        self._state = replace(self._state, reloads=reloads)
        self._serial += 1
        self._put_state(f"{_STATE}{self._state.generation}-{self._serial}")
        self._drop(before)

    def keep_changes(self, generation: int, serial: int, record: list[Any]) -> str:
        """Store what operators have changed, for the `serial`th time in this generation; returns the entry's name."""
        name = f"{_CHANGES}{generation}-{serial}"
        if self.open:
            self._put(name, json.dumps(record).encode())
        return name

    def _put_state(self, short: str) -> None:
        self._put(short, self._state.dump())
        self.state = short

    def _put(self, short: str, data: bytes) -> None:
        fd = os.memfd_create(f"hitlessd-{short}", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            self._manager.store(STORE_PREFIX + short, [fd])
        finally:
            os.close(fd)

    def keep_park(self, park: Park) -> None:
        """Store the parts of a park, once; `park.stored` tells whether that could be done."""
        if self._manager.has_store and not park.stored:
            park.stored = all(
                [
                    self._manager.store(f"{STORE_PREFIX}{_PARK}{park.name}-{part}", [fd])
                    for part, fd in park.parts().items()
                ]
            )

    def forget_park(self, name: str) -> None:
        for part in PARTS:
            self._drop(f"{_PARK}{name}-{part}")

    def forget_state(self, generation: int, name: str = "") -> None:
        """The state of a generation; `name` is what it was stored as last, if that is known."""
        first = f"{_STATE}{generation}"
        self._drop(first)
        if name.startswith(f"{first}-"):
            self._drop(name)

    def forget_table(self, generation: int) -> None:
        self._drop(f"{_TABLE}{generation}")

    def forget(self, names: Iterable[str]) -> None:
        """Drop listeners, or useless entries, by the names that Stored and Listener carry."""
        for name in names:
            self._drop(name)

    def _drop(self, short: str) -> None:
        if self._manager.has_store:
            self._manager.unstore(STORE_PREFIX + short)


def _read(fd: int) -> bytes:
    """What a memfd of ours holds; takes the descriptor over."""
    try:
        file = open(fd, "rb")
    except OSError:
        os.close(fd)
        raise
    with file:
        if os.fstat(fd).st_size > _LARGEST_STATE:
            raise ValueError("it is too large")
        file.seek(0)  # whoever read it before shares the position
        return file.read()
