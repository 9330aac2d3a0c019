"""How busy proxies were in the latest five minutes: a point every five seconds, carried over by reloads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from hitlessd.table import RowKey

__all__ = ["POINTS", "STEP", "Trends"]

#: Seconds that a point covers, and how many there are.
STEP, POINTS = 5, 60
#: Rows that are kept; those of a configuration with more have none.
_MOST = 300


class Trends:
    """Of each row, sums of what it had in `STEP` seconds, the oldest first."""

    def __init__(self) -> None:
        self._points: dict[RowKey, deque[int]] = {}
        self._sums: dict[RowKey, int] = {}
        self._ticks = 0

    def tick(self, rates: Iterable[tuple[RowKey, int]]) -> None:
        """What each row had in the last second; called once a second. Rows that are missing are forgotten."""
        sums = self._sums
        seen = list(islice(rates, _MOST))
        for key, rate in seen:
            sums[key] = sums.get(key, 0) + rate
        self._ticks += 1
        if self._ticks % STEP:
            return
        self._points = {key: self._points.get(key, deque(maxlen=POINTS)) for key, _ in seen}
        for key, points in self._points.items():
            points.append(sums[key])
        sums.clear()

    def of(self, key: RowKey) -> Sequence[int]:
        """Its points, POINTS at most; none if it is not known."""
        return tuple(self._points.get(key, ()))

    def export(self) -> list[list[Any]]:
        """As JSON has it."""
        return [[key.kind, key.proxy, list(points)] for key, points in self._points.items()]

    def restore(self, record: Iterable[Any]) -> None:
        """Go on where a predecessor's export() stopped. Raises TypeError, ValueError for what makes no sense."""
        found: dict[RowKey, deque[int]] = {}
        for kind, proxy, points in record:
            found[RowKey(str(kind), str(proxy))] = deque((max(0, int(each)) for each in points), POINTS)
        self._points = found
