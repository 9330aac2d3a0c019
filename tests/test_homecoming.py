"""What is lost with a dead worker is told at once, even if those who come home take their time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hitlessd.main.homecoming import Homecoming
from hitlessd.parking.book import SlotState
from hitlessd.table import PROCESS, Column, Table


class Park:
    """With one connection."""

    name = "1-0"
    book = SimpleNamespace(empty=lambda: False, states=lambda: [SlotState.LIVE], numbers=lambda: [7], held=lambda: 1)


class Pool:
    """Takes no park over until told to."""

    def __init__(self) -> None:
        self.answer: Any = None

    def resume_parked(self, park: Any, index: int | None, cold: bool, answer: Any) -> bool:
        self.answer = answer
        return True


def test_those_of_whom_nothing_was_parked_are_told_of_first() -> None:
    said: list[str] = []
    dropped: list[Any] = []
    table, pool, done = Table.create([PROCESS], 1, 1), Pool(), list[bool]()
    park: Any = Park()
    parks: Any = SimpleNamespace(adopt=lambda parks: None, drop=dropped.append)
    home: Any = Homecoming
    home = home(SimpleNamespace(time=lambda: 0.0), lambda _level, text, **_: said.append(text), pool, parks, table)
    home.begin([park], 0, lost=2, spoilt=3, done=lambda: done.append(True))
    assert said == ["5 connections are lost (2: they were not parked, 3: their park cannot be used)"]
    assert (table.value(0, Column.LOST), done) == (5, [])
    pool.answer({"resumed": 1, "lost": {"why": 1}})
    assert said[1:] == ["resumed 1 connections in 0 ms", "1 connections are lost (1: why)"]
    assert (table.value(0, Column.LOST), done, dropped) == (6, [True], [park])
    table.close()
