"""What balancing among many servers needs, so that one choice among thousands costs what one among ten does.

Pure, as balance.py, whose algorithms use these from MANY servers on; below, looking at each is cheaper.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence

__all__ = ["MANY", "Ranking", "turn_of_many"]

#: Servers from which on a heap is cheaper than looking at each.
MANY = 16


def turn_of_many(weights: Sequence[int]) -> Iterator[int]:
    """One turn, in which each server has exactly its weight, as evenly as may be: those of one weight w take turns with
    one another, in the order of the file, at even distances: the j-th of m of them for the k-th time at
    (k - 1 + (j - 1/2) / m) / w of the turn."""
    alike, phases = Counter(weights), []
    seen: Counter[int] = Counter()
    for weight in weights:
        phases.append((seen[weight] + 0.5) / alike[weight])
        seen[weight] += 1
    due = [(phase / weight, position, 1) for position, (weight, phase) in enumerate(zip(weights, phases, strict=True))]
    heapq.heapify(due)
    while due:
        _, position, served = due[0]
        if served < weights[position]:
            heapq.heapreplace(due, ((served + phases[position]) / weights[position], position, served + 1))
        else:
            heapq.heappop(due)
        yield position


class Ranking:
    """Servers by what each would have with one connection more, for its weight; who has waited longest is the first of
    equals. A rank is as it was when last looked at: who takes a server finds out that it has more than that; that it
    has less is known only by look().

    There are few ranks, however many servers: so each is a queue, in which what no longer holds is passed over.
    """

    def __init__(self, weights: Sequence[int], start: int) -> None:
        count = len(weights)
        self._weights = weights
        self._queues: dict[float, deque[tuple[int, int]]] = {}  # of turns and positions
        self._ranks: list[float] = []  # a heap of the queues' keys
        # Of the entries of a server only the one with its rank and turn holds.
        self._current = [0.0] * count
        self._turns = [0] * count
        self._turn = self._entries = self._next = 0
        for at in range(start, start + count):
            self._enter(at % count, 1 / weights[at % count])

    def look(self, position: int, loads: Callable[[int], int]) -> None:
        """It may have fewer connections than when it was ranked."""
        rank = (loads(position) + 1) / self._weights[position]
        if rank != self._current[position]:
            self._enter(position, rank)
            if self._entries > 4 * len(self._weights):
                self._forget()

    def look_on(self, count: int, loads: Callable[[int], int]) -> None:
        """look() at the next few: others may have ended connections without our knowing."""
        at, servers = self._next, len(self._weights)
        for _ in range(count):
            self.look(at, loads)
            at = at + 1 if at + 1 < servers else 0
        self._next = at

    def take(self, loads: Callable[[int], int], full: Collection[int]) -> int | None:
        """The first who is not in `full`, which is to get one more; None if there is nobody."""
        ranks, queues, turns, weights = self._ranks, self._queues, self._turns, self._weights
        aside: list[tuple[float, tuple[int, int]]] = []
        found = None
        while ranks:
            rank = ranks[0]
            queue = queues[rank]
            if not queue:
                del queues[heapq.heappop(ranks)]
                continue
            entry = queue.popleft()
            turn, position = entry
            self._entries -= 1
            if turn != turns[position]:
                continue
            if position in full:
                aside.append((rank, entry))
                continue
            load, weight = loads(position) + 1, weights[position]
            if load / weight > rank:
                self._enter(position, load / weight)
                continue
            found = position
            self._enter(position, (load + 1) / weight)
            break
        # To the front again, where they were.
        for rank, entry in reversed(aside):
            self._queue(rank).appendleft(entry)
            self._entries += 1
        return found

    def _enter(self, position: int, rank: float) -> None:
        """At the end of that rank."""
        turn = self._turn = self._turn + 1
        self._turns[position] = turn
        self._current[position] = rank
        self._entries += 1
        queue = self._queues.get(rank)
        (self._queue(rank) if queue is None else queue).append((turn, position))

    def _queue(self, rank: float) -> deque[tuple[int, int]]:
        queue = self._queues.get(rank)
        if queue is None:
            queue = self._queues[rank] = deque()
            heapq.heappush(self._ranks, rank)
        return queue

    def _forget(self) -> None:
        """Drop what no longer holds."""
        turns = self._turns
        for rank, queue in self._queues.items():
            self._queues[rank] = deque(entry for entry in queue if entry[0] == turns[entry[1]])
        self._entries = len(turns)
