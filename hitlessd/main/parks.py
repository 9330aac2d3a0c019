"""The parks of a generation's workers, in our hands and in systemd's store; which of two counts for a connection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hitlessd.errors import PeerError
from hitlessd.events import Event
from hitlessd.log import Logger
from hitlessd.main.store import Store
from hitlessd.parking.book import SlotState
from hitlessd.parking.park import Park

__all__ = ["Parks", "settle"]

#: States of connections that go on; the first is the better claim.
_HELD = (SlotState.LIVE, SlotState.FROZEN, SlotState.MOVING)


class Parks:
    """Makes a park for each worker process, and keeps those whose worker is dead until somebody has taken them over."""

    def __init__(self, log: Logger, store: Store, generation: int, slots: int, limit: int, exact: bool) -> None:
        """`slots`: connections of a park. `limit`: descriptors of a park. `exact`: the kernel's counters add up."""
        self._log = log
        self._store = store
        self._generation = generation
        self._slots = slots
        self._parks: dict[str, Park] = {}
        self._serial = 0
        self._storing = False
        self.limit = limit
        self.exact = exact

    def __iter__(self) -> Iterator[Park]:
        return iter(list(self._parks.values()))

    def create(self) -> Park | None:
        """One for a worker that is about to be forked; None if the system has no room for it."""
        if not self._slots:
            return None
        name = f"{self._generation}-{self._serial}"
        self._serial += 1
        try:
            park = Park.create(name, self._slots, self._generation)
        except OSError as error:
            text = f"cannot park connections: {error.strerror}; they will not outlive their worker"
            self._log("err", text, event=Event.PARKING_FAILED)
            return None
        self._parks[name] = park
        if self._storing:
            self._keep(park)
        return park

    def store(self) -> None:
        """We are the main process: systemd takes what we want kept, from now on."""
        self._storing = True
        for park in self:
            self._keep(park)

    def _keep(self, park: Park) -> None:
        self._store.keep_park(park)
        if self._store.open and not park.stored:
            text = "cannot have systemd keep parked connections: too many descriptors are in flight (LimitNOFILE=)"
            self._log("err", text, event=Event.PARKING_FAILED)

    def adopt(self, parks: Sequence[Park]) -> None:
        """Those of workers of another generation that is dead."""
        for park in parks:
            self._parks[park.name] = park

    def drop(self, park: Park) -> None:
        """Nobody needs it any more."""
        if self._parks.pop(park.name, None) is not None:
            self._store.forget_park(park.name)
            park.close()


def settle(parks: Sequence[Park], log: Logger) -> None:
    """Let each connection count once, where several slots of dead workers have it: its heir died while it parked it.

    The youngest park counts whose queue has the descriptors. What does not count is marked as free.
    """
    entries: dict[int, list[tuple[Park, int, int]]] = {}
    for park in parks:
        states, numbers = park.book.states(), park.book.numbers()
        for slot, state in enumerate(states):
            if state in _HELD:
                entries.setdefault(numbers[slot], []).append((park, slot, state))
    twice = {number: found for number, found in entries.items() if len(found) > 1}
    if not twice:
        return
    queued: dict[str, set[tuple[int, int]]] = {}
    for park in parks:
        try:
            queued[park.name] = {(r.number, r.slot) for _, records in park.messages(_ignore) for r in records}
        except PeerError as error:
            log("warning", str(error), event=Event.PARK_UNUSABLE)
            queued[park.name] = set()
    order = {park.name: place for place, park in enumerate(sorted(parks, key=_age))}
    for number, found in twice.items():
        best = max(
            found,
            key=lambda entry: (
                (number, entry[1]) in queued[entry[0].name],
                entry[2] != SlotState.MOVING,
                order[entry[0].name],
            ),
        )
        for entry in found:
            if entry is not best:
                entry[0].book.set_state(entry[1], SlotState.FREE)


def _ignore(_complaint: str) -> None:
    """Whoever resumes them complains."""


def _age(park: Park) -> tuple[int, ...]:
    """Sorts the older ones first."""
    return tuple(int(part) if part.isdecimal() else 0 for part in park.name.split("-"))
