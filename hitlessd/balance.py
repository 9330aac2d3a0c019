"""Server selection: pure algorithms without I/O, rebuilt whenever the set of usable servers or a weight changes.

Each knows its servers by their positions 0..n-1 and their weights (at least 1), and answers
`choose(key, loads, full)` with a position, or None when all are full. docs/balancing.md has the rules in words.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import reduce
from itertools import accumulate, cycle
from typing import Protocol

from hitlessd.hashing import Hash, MapBased, Rendezvous, mix, server_map, source_hash, text_hash
from hitlessd.model import Backend
from hitlessd.ranking import MANY, Ranking, turn_of_many

__all__ = [
    "NOBODY",
    "Chooser",
    "First",
    "Hashed",
    "LeastConn",
    "Loads",
    "Random",
    "RankedLeastConn",
    "RoundRobin",
    "StaticRoundRobin",
    "chooser",
    "is_hashed",
    "is_static",
    "unscaled",
]

NOBODY: frozenset[int] = frozenset()
#: Connections of the server at a position, over all workers.
Loads = Callable[[int], int]

_LONGEST_CYCLE = 8192
#: Servers looked at beside each choice, in turn.
_LOOKS = 4
#: Among many, so many full ones in a row for each server, and the turn is left.
_MISSES = 2
_MASK = (1 << 64) - 1


class Chooser(Protocol):
    """One `balance` algorithm over a fixed set of servers."""

    def choose(self, key: bytes, loads: Loads, full: Collection[int] = NOBODY) -> int | None:
        """The position for that key, or None if all who could take it are in `full`."""


class RoundRobin:
    """Each in turn by weight, smoothly: weights 2 and 1 give A B A, not A A B."""

    def __init__(self, weights: Sequence[int], start: int = 0) -> None:
        """`start` shifts the turn, so that several workers do not all begin with the same server."""
        divisor = reduce(math.gcd, weights)
        self._weights = [weight // divisor for weight in weights]
        self._current = [0] * len(weights)
        self._total = sum(self._weights)
        self._many: Iterator[int] | None = None
        if len(weights) >= MANY:
            # As long as the first turn lasts, each choice would look at all servers.
            self._many = cycle(range(len(weights))) if self._total == len(weights) else self._turns()
        # A turn is remembered as it is computed, unless the weights make it very long. Not beforehand: with a hundred
        # servers that takes a tenth of a second, in which the worker that notes a change of state serves nobody.
        self._remember = self._total <= _LONGEST_CYCLE
        self._cycle: list[int] = []
        self._at = 0
        #: The next position, whoever is full.
        self.turn: Callable[[], int] = self._next if self._many is None else self._many.__next__
        for _ in range(start % (self._total if self._remember else len(weights))):
            self.turn()

    def _turns(self) -> Iterator[int]:
        while True:
            yield from turn_of_many(self._weights)

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
        known, at = self._cycle, self._at
        if at < len(known):
            position = known[at]
        else:
            position = self._step()
            if not self._remember:
                return position
            known.append(position)
        self._at = at + 1 if at + 1 < self._total else 0
        return position

    def choose(self, key: bytes, loads: Loads, full: Collection[int] = NOBODY) -> int | None:
        if full and len(full) >= len(self._weights):
            return None
        missed = 0
        while True:
            position = self.turn()
            if position not in full:
                return position
            missed += 1
            if self._many is not None and missed == _MISSES * len(self._weights):
                return self._among_free(full)

    def _among_free(self, full: Collection[int]) -> int:
        """One of the few light ones that are not full, without waiting for its turn among the heavy ones."""
        free = [position for position in range(len(self._weights)) if position not in full]
        for position in free:
            self._current[position] += self._weights[position]
        best = max(free, key=self._current.__getitem__)
        self._current[best] -= sum(self._weights[position] for position in free)
        return best


class StaticRoundRobin:
    """Each in turn by weight, along HAProxy's table of its static algorithms."""

    def __init__(self, entries: Sequence[int], start: int = 0) -> None:
        """`entries`: see server_map()."""
        self._entries = entries
        self._at = start % len(entries)

    def choose(self, key: bytes, loads: Loads, full: Collection[int] = NOBODY) -> int | None:
        entries, at = self._entries, self._at
        for _ in entries:
            position = entries[at]
            at = at + 1 if at + 1 < len(entries) else 0
            if position not in full:
                self._at = at
                return position
        return None


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


class RankedLeastConn:
    """The same among many, by a Ranking. With several workers it learns of connections that another one has ended only
    when it comes to look at their server, _LOOKS servers with each choice."""

    def __init__(self, weights: Sequence[int], start: int = 0, alone: bool = False) -> None:
        """`alone`: whoever counts connections says look() when there are fewer."""
        self._ranking = Ranking(list(weights), start % len(weights))
        self._looks = 0 if alone else _LOOKS
        self.look = self._ranking.look

    def choose(self, key: bytes, loads: Loads, full: Collection[int] = NOBODY) -> int | None:
        if self._looks:
            self._ranking.look_on(self._looks, loads)
        return self._ranking.take(loads, full)


class First:
    """The first that is not full, whatever the weights: as few servers as possible are busy."""

    def __init__(self, count: int) -> None:
        self._count = count

    def choose(self, key: bytes, loads: Loads, full: Collection[int] = NOBODY) -> int | None:
        for position in range(self._count):
            if position not in full:
                return position
        return None


class Random:
    """Some drawn by weight, and of these the one with the fewest connections for its weight (Mitzenmacher 2001, "The
    Power of Two Choices in Randomized Load Balancing"). Full ones are not drawn."""

    def __init__(self, weights: Sequence[int], draws: int, seed: int) -> None:
        self._weights = list(weights)
        self._draws = draws
        self._state = mix(seed)
        self._spare = -1  # 32 random bits, or none
        # Where all weigh the same, the bits say which one; else they are looked up among the sums.
        self._sums = list(accumulate(weights)) if len(set(weights)) > 1 else None

    def choose(self, key: bytes, loads: Loads, full: Collection[int] = NOBODY) -> int | None:
        weights, sums, positions = self._weights, self._sums, None
        total = sums[-1] if sums is not None else len(weights)
        if full:
            positions = [position for position in range(len(weights)) if position not in full]
            if not positions:
                return None
            sums = list(accumulate([weights[position] for position in positions]))
            total = sums[-1]
        best = best_load = -1
        draws = self._draws
        for _ in range(draws):
            bits = self._spare
            if bits < 0:
                # SplitMix64. 32 bits suffice for a draw: a remainder of all 64 would cost a long division.
                self._state = state = self._state + 0x9E3779B97F4A7C15 & _MASK
                bits = mix(state)
                self._spare = bits & 0xFFFFFFFF
                bits >>= 32
            else:
                self._spare = -1
            position = bits * total >> 32
            if sums is not None:
                position = bisect_right(sums, position)
                if positions is not None:
                    position = positions[position]
            if draws == 1:
                return position
            if position != best:
                load = loads(position)
                if best < 0 or load * weights[best] < best_load * weights[position]:
                    best, best_load = position, load
        return best


class Hashed:
    """By a hash of the key; without a key, in turn. One whose server is full waits for it."""

    def __init__(self, mapping: MapBased | Rendezvous, others: Chooser) -> None:
        self.home = mapping.position
        self._others = others

    def choose(self, key: bytes, loads: Loads, full: Collection[int] = NOBODY) -> int | None:
        if not key:
            return self._others.choose(key, loads, full)
        position = self.home(key)
        return None if position in full else position


def is_hashed(backend: Backend) -> bool:
    """Whether a key decides."""
    return backend.balance in ("source", "uri", "hdr")


def is_static(backend: Backend) -> bool:
    """Whether the weights are those of the configuration, whatever is said at run time: neither slowstart nor a
    `set weight` changes them (HAProxy configuration manual, "balance")."""
    return backend.balance == "static-rr" or (is_hashed(backend) and not backend.hash_consistent)


def unscaled(backend: Backend, weights: Sequence[int]) -> list[int]:
    """Weights of some of its servers as HAProxy's static algorithms count them: without the divisor of all."""
    divisor = reduce(math.gcd, [server.initial_weight for server in backend.servers], 0)
    return [-(-weight // divisor) if divisor else weight for weight in weights]


def chooser(
    backend: Backend, weights: Sequence[int], names: Sequence[str], start: int, seed: int = 0, alone: bool = False
) -> Chooser:
    """The algorithm of a backend for these of its servers; `start` is the worker's index, `seed` any number, and
    `alone` says that no other worker makes connections to them."""
    if is_hashed(backend):
        if backend.hash_consistent:
            return Hashed(Rendezvous(weights, names), RoundRobin(weights, start))
        hashed: Hash = source_hash if backend.balance == "source" else text_hash
        mapping = MapBased(weights, hashed)
        return Hashed(mapping, StaticRoundRobin(mapping.entries, start))
    match backend.balance:
        case "static-rr":
            return StaticRoundRobin(server_map(weights), start)
        case "leastconn":
            return LeastConn(weights, start) if len(weights) < MANY else RankedLeastConn(weights, start, alone)
        case "first":
            return First(len(weights))
        case "random":
            return Random(weights, backend.balance_draws, seed)
        case _:
            return RoundRobin(weights, start)
