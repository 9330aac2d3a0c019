"""What balancing among many servers needs, so that one choice among thousands costs what one among ten does.

Pure, as balance.py, whose algorithms use these from MANY servers on; below, looking at each is cheaper.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Sequence

__all__ = ["MANY", "Ranking", "turn_of_many"]

#: Servers from which on a heap is cheaper than looking at each.
MANY = 16


def turn_of_many(weights: Sequence[int]) -> Iterator[int]:
    """One turn, in which each server has exactly its weight, as evenly as may be: the k-th time of a server with weight
    w is due at (k - 1/2) / w of the turn, of several that are due at once the first in the file comes first."""
    # Weights are small enough for float division to keep equal fractions equal and others apart.
    due = [(0.5 / weight, position, 1) for position, weight in enumerate(weights)]
    heapq.heapify(due)
    while due:
        _, position, served = due[0]
        if served < weights[position]:
            heapq.heapreplace(due, ((served + 0.5) / weights[position], position, served + 1))
        else:
            heapq.heappop(due)
        yield position


class Ranking:
    """Servers by what each would have with one connection more, for its weight; who has waited longest is the first of
    equals. A rank is as it was when last looked at: who takes a server finds out that it has more than that; that it
    has less is known only by look()."""

    def __init__(self, weights: Sequence[int], start: int) -> None:
        count = len(weights)
        self._weights = weights
        self._heap = [
            (1 / weights[at % count], step, at % count) for step, at in enumerate(range(start, start + count))
        ]
        heapq.heapify(self._heap)
        # Of the entries of a server only the one with its rank and turn holds.
        self._current = [0.0] * count
        self._turns = [0] * count
        for rank, turn, position in self._heap:
            self._current[position], self._turns[position] = rank, turn
        self._turn = count
        self._next = 0

    def look(self, position: int, loads: Callable[[int], int]) -> None:
        """It may have fewer connections than when it was ranked."""
        rank = (loads(position) + 1) / self._weights[position]
        if rank != self._current[position]:
            heapq.heappush(self._heap, self._entry(position, rank))
            if len(self._heap) > 4 * len(self._weights):
                turns = self._turns
                self._heap = [entry for entry in self._heap if entry[1] == turns[entry[2]]]
                heapq.heapify(self._heap)

    def look_on(self, count: int, loads: Callable[[int], int]) -> None:
        """look() at the next few: others may have ended connections without our knowing."""
        at, servers = self._next, len(self._weights)
        for _ in range(count):
            self.look(at, loads)
            at = at + 1 if at + 1 < servers else 0
        self._next = at

    def take(self, loads: Callable[[int], int], full: Collection[int]) -> int | None:
        """The first who is not in `full`, which is to get one more; None if there is nobody."""
        heap, turns, weights = self._heap, self._turns, self._weights
        aside = []
        found = None
        while heap:
            rank, turn, position = heap[0]
            if turn != turns[position]:
                heapq.heappop(heap)
                continue
            if position in full:
                aside.append(heapq.heappop(heap))
                continue
            load, weight = loads(position), weights[position]
            if (load + 1) / weight > rank:
                heapq.heapreplace(heap, self._entry(position, (load + 1) / weight))
                continue
            found = position
            heapq.heapreplace(heap, self._entry(position, (load + 2) / weight))
            break
        for entry in aside:
            heapq.heappush(heap, entry)
        return found

    def _entry(self, position: int, rank: float) -> tuple[float, int, int]:
        turn = self._turn
        self._turn = turn + 1
        self._turns[position] = turn
        self._current[position] = rank
        return rank, turn, position
