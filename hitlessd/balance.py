"""Server selection: pure algorithms without I/O, rebuilt whenever the set of usable servers or a weight changes.

Each knows its servers by their positions 0..n-1 and their weights (at least 1), and answers
`choose(key, loads, full)` with a position, or None when all are full.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Sequence
from functools import reduce
from typing import Protocol

from hitlessd.model import Balance

__all__ = ["NOBODY", "Chooser", "LeastConn", "Loads", "RoundRobin", "Source", "chooser"]

NOBODY: frozenset[int] = frozenset()
#: Connections of the server at a position, over all workers.
Loads = Callable[[int], int]

_LONGEST_CYCLE = 8192
_MOST_REMEMBERED = 65536
_MASK = (1 << 64) - 1


class Chooser(Protocol):
    """One `balance` algorithm over a fixed set of servers."""

    def choose(self, key: bytes, loads: Loads, full: Collection[int] = NOBODY) -> int | None:
        """The position for a client of that address (packed, see inet_pton(3)), or None if all are in `full`."""


class RoundRobin:
    """Each in turn by weight, smoothly: weights 2 and 1 give A B A, not A A B."""

    def __init__(self, weights: Sequence[int], start: int = 0) -> None:
        """`start` shifts the turn, so that several workers do not all begin with the same server."""
        divisor = reduce(math.gcd, weights)
        self._weights = [weight // divisor for weight in weights]
        self._current = [0] * len(weights)
        self._total = sum(self._weights)
        # A turn is remembered as it is computed, unless the weights make it very long. Not beforehand: with a hundred
        # servers that takes a tenth of a second, in which the worker that notes a change of state serves nobody.
        self._remember = self._total <= _LONGEST_CYCLE
        self._cycle: list[int] = []
        self._at = 0
        for _ in range(start % (self._total if self._remember else len(weights))):
            self._next()

    def _step(self) -> int:
        current = self._current
        best = 0
        for position, weight in enumerate(self._weights):
            current[position] += weight
            if current[position] > current[best]:
                best = position
        current[best] -= self._total
        return best

    def _next(self) -> int:
        cycle, at = self._cycle, self._at
        if at < len(cycle):
            position = cycle[at]
        else:
            position = self._step()
            if not self._remember:
                return position
            cycle.append(position)
        self._at = at + 1 if at + 1 < self._total else 0
        return position

    def choose(self, key: bytes, loads: Loads, full: Collection[int] = NOBODY) -> int | None:
        if full and len(full) >= len(self._weights):
            return None
        while True:
            position = self._next()
            if position not in full:
                return position


class LeastConn:
    """The fewest connections for its weight; among equals each in turn."""

    def __init__(self, weights: Sequence[int], start: int = 0) -> None:
        self._weights = list(weights)
        self._next = start % len(weights)

    def choose(self, key: bytes, loads: Loads, full: Collection[int] = NOBODY) -> int | None:
        weights, best, best_load, best_weight = self._weights, None, 0, 1
        count = len(weights)
        for step in range(count):
            position = (self._next + step) % count
            if position in full:
                continue
            # What it would have with one more: an idle server of weight 2 goes before an idle one of weight 1.
            load, weight = loads(position) + 1, weights[position]
            if best is None or load * best_weight < best_load * weight:
                best, best_load, best_weight = position, load, weight
        if best is not None:
            self._next = (best + 1) % count
        return best


class Source:
    """By the client's address: the same server as long as it is usable, and only clients of a lost server move.

    Weighted rendezvous hashing (Thaler and Ravishankar 1998; logarithmic weighting). A client whose server is full
    waits for it.
    """

    def __init__(self, weights: Sequence[int], names: Sequence[str]) -> None:
        self._servers = [
            (weight, zlib.crc32(name.encode()) * 0x9E3779B97F4A7C15 & _MASK)
            for weight, name in zip(weights, names, strict=True)
        ]
        self._known: dict[bytes, int] = {}

    def choose(self, key: bytes, loads: Loads, full: Collection[int] = NOBODY) -> int | None:
        position = self._known.get(key)
        if position is None:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            position = self._known[key] = self._search(key)
        return None if position in full else position

    def _search(self, key: bytes) -> int:
        base = _mix(zlib.crc32(key) << 32 | zlib.adler32(key))
        best, best_score = 0, -1.0
        for position, (weight, seed) in enumerate(self._servers):
            score = weight / -math.log((_mix(base ^ seed) + 0.5) / (_MASK + 1))
            if score > best_score:
                best, best_score = position, score
        return best


def _mix(value: int) -> int:
    """Spread 64 bits so that each depends on all (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def chooser(balance: Balance, weights: Sequence[int], names: Sequence[str], start: int) -> Chooser:
    """The algorithm of that name; `start` is the worker's index."""
    if balance == "leastconn":
        return LeastConn(weights, start)
    if balance == "source":
        return Source(weights, names)
    return RoundRobin(weights, start)
