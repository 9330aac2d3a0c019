"""Connections whose worker has died go on in another one, and the operator learns how many did not, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from hitlessd.dataclass import dataclass, field
from hitlessd.events import Event
from hitlessd.log import Logger
from hitlessd.loop import Loop
from hitlessd.main.parks import Parks, settle
from hitlessd.main.workers import Pool
from hitlessd.parking.book import SlotState
from hitlessd.parking.park import Park
from hitlessd.table import PROCESS, Column, Table

__all__ = ["YOUNG", "Homecoming"]

#: Why a connection is lost of which nothing was parked.
YOUNG = "they were not parked"
_SPOILT = "their park cannot be used"
#: Seconds until workers that are still taking connections over are asked again what they have, and how often.
_AGAIN, _TRIES = 0.02, 250
#: More are never on their way at once: two batches of 126 on each way, and of what may be asked in one message.
_MOST_MOVING = 2500


@dataclass(eq=False)
class _Event:
    """A death, and what comes of it."""

    began: float
    cold: bool
    open: int = 0  # parks that somebody is still taking over
    resumed: int = 0
    ended: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    done: Callable[[], object] | None = None


class Homecoming:
    """Gives parks of the dead to living workers."""

    def __init__(self, loop: Loop, log: Logger, pool: Pool, parks: Parks, table: Table) -> None:
        self._loop = loop
        self._log = log
        self._pool = pool
        self._parks = parks
        self._table = table
        self._waiting: dict[Park, tuple[_Event, int]] = {}  # nobody takes them over at the moment

    def begin(
        self,
        parks: Sequence[Park],
        index: int | None = None,
        lost: int = 0,
        spoilt: int = 0,
        cold: bool = False,
        done: Callable[[], object] | None = None,
    ) -> None:
        """Have the connections of these parks go on, with worker `index` or spread over all.

        `lost`: connections that died with their worker since nothing of them was parked, `spoilt`: those whose parks
        are of no use. `cold`: nobody lives who may have taken one that was on its way. `done` is called at the end.
        """
        event = _Event(self._loop.time(), cold, done=done)
        # Known already, and not to be held back by those who still come home.
        self.lose(Counter({YOUNG: lost, _SPOILT: spoilt}))
        self._parks.adopt(parks)
        moving = [] if cold else _moving(parks)
        if moving and index is None:
            # Of a generation that is dead: whoever was on the way has arrived here, or else nowhere.
            return self._find(moving, lambda: self._go_on(event, parks, index))
        self._go_on(event, parks, index)

    def _go_on(self, event: _Event, parks: Sequence[Park], index: int | None) -> None:
        for number, park in enumerate(parks):
            if park.book.empty():
                self._parks.drop(park)
                continue
            event.open += 1
            self._waiting[park] = (event, number if index is None else index)
        settle(list(self._waiting), self._log)
        if not event.open:
            return self._tell(event)
        self.give()

    def _find(self, moving: Sequence[tuple[Park, int]], then: Callable[[], object], tries: int = _TRIES) -> None:
        """Which of these our workers have; the others go on from their parks."""

        def answered(answers: list[dict[str, Any] | None]) -> None:
            if tries and any(answer and answer.get("arriving") for answer in answers):
                self._loop.call_later(_AGAIN, lambda: self._find(moving, then, tries - 1))
                return
            here = {number for answer in answers for number in (answer or {}).get("have", ())}
            for park, slot in moving:
                arrived = park.book.number(slot) in here
                park.book.set_state(slot, SlotState.FREE if arrived else SlotState.LIVE)
            then()

        self._pool.ask("have", answered, numbers=[park.book.number(slot) for park, slot in moving])

    def give(self) -> None:
        """Give what waits to whoever is there."""
        for park, (event, index) in list(self._waiting.items()):
            given = self._pool.resume_parked(
                park,
                index,
                event.cold,
                lambda answer, p=park, e=event, i=index: self._answered(p, e, i, answer),  # type: ignore[misc]
            )
            if given:
                del self._waiting[park]

    def _answered(self, park: Park, event: _Event, index: int, answer: dict[str, Any] | None) -> None:
        if answer is None:
            # The heir has died, too, with some of them in its own park, which comes here as well: settle() first.
            self._waiting[park] = (event, index)
            return
        event.resumed += int(answer.get("resumed", 0))
        event.ended += int(answer.get("ended", 0))
        event.lost.update({str(why): int(number) for why, number in dict(answer.get("lost", {})).items()})
        if why := answer.get("why"):
            event.lost[str(why)] += park.book.held()
        self._parks.drop(park)
        event.open -= 1
        if not event.open:
            self._tell(event)

    def _tell(self, event: _Event) -> None:
        took = (self._loop.time() - event.began) * 1000
        self._table.add(PROCESS, Column.RESUMED, event.resumed)
        if event.resumed or event.ended:
            ended = f", {event.ended} had ended meanwhile" if event.ended else ""
            self._log(
                "notice",
                f"resumed {event.resumed} connections in {took:.0f} ms{ended}",
                event=Event.CONNECTIONS_RESUMED,
                resumed=event.resumed,
                ended=event.ended,
            )
        self.lose(event.lost)
        if event.done:
            event.done()

    def lose(self, lost: Counter[str]) -> None:
        """Count connections that nobody will go on with, and log how many and why; nothing if there are none."""
        number = lost.total()
        if number:
            self._table.add(PROCESS, Column.LOST, number)
            reasons = ", ".join(f"{count}: {why}" for why, count in lost.items() if count)
            text = f"{number} connections are lost ({reasons})"
            self._log("err", text, event=Event.CONNECTIONS_LOST, lost=number, reason=reasons)


def _moving(parks: Sequence[Park]) -> list[tuple[Park, int]]:
    found = []
    for park in parks:
        found += [(park, slot) for slot, state in enumerate(park.book.states()) if state == SlotState.MOVING]
    return found[:_MOST_MOVING]
