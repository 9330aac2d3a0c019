"""Connections whose worker has died go on in another one, and the operator learns how many did not, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hitlessd.log import Logger
from hitlessd.loop import Loop
from hitlessd.main.parks import Parks, settle
from hitlessd.main.workers import Pool
from hitlessd.parking.park import Park
from hitlessd.table import PROCESS, Column, Table

__all__ = ["YOUNG", "Homecoming"]

#: Why a connection is lost of which nothing was parked.
YOUNG = "they were not parked"


@dataclass(eq=False)
class _Event:
    """A death, and what comes of it."""

    began: float
    cold: bool
    open: int = 0  # parks that somebody is still taking over
    resumed: int = 0
    ended: int = 0
    lost: Counter[str] = field(default_factory=Counter)


class Homecoming:
    """Gives parks of the dead to living workers."""

    def __init__(self, loop: Loop, log: Logger, pool: Pool, parks: Parks, table: Table) -> None:
        self._loop = loop
        self._log = log
        self._pool = pool
        self._parks = parks
        self._table = table
        self._waiting: dict[Park, tuple[_Event, int]] = {}  # nobody takes them over at the moment

    def begin(self, parks: Sequence[Park], index: int | None = None, lost: int = 0, cold: bool = False) -> None:
        """Have the connections of these parks go on, with worker `index` or spread over all.

        `lost`: connections that died with their worker since nothing of them was parked. `cold`: nobody lives who may
        have taken one that was on its way.
        """
        event = _Event(self._loop.time(), cold)
        if lost:
            event.lost[YOUNG] = lost
        self._parks.adopt(parks)
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
        if event.resumed or event.ended:
            ended = f", {event.ended} had ended meanwhile" if event.ended else ""
            self._log(
                "notice",
                f"resumed {event.resumed} connections in {took:.0f} ms{ended}",
                resumed=event.resumed,
                ended=event.ended,
            )
        tell_lost(self._log, +event.lost)
        self._table.add(PROCESS, Column.RESUMED, event.resumed)
        self._table.add(PROCESS, Column.LOST, event.lost.total())

    def lost(self, number: int) -> None:
        """Connections died of which nothing was parked, or nobody will go on with."""
        self._table.add(PROCESS, Column.LOST, number)
        tell_lost(self._log, Counter({YOUNG: number}))


def tell_lost(log: Logger, lost: Counter[str]) -> None:
    """One line that says how many connections are lost, and why; none if there are none."""
    if number := lost.total():
        reasons = ", ".join(f"{count}: {why}" for why, count in lost.items())
        log("err", f"{number} connections are lost ({reasons})", lost=number)
