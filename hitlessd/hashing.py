"""Hashes as HAProxy computes them, and two ways from a hash to a server (its configuration manual, "hash-type").

Pure and the same in every worker, generation and release: a client's server must not depend on which of them it meets.
"""

from __future__ import annotations

import heapq
import math
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["Hash", "MapBased", "Rendezvous", "mix", "server_map", "source_hash", "text_hash", "uri_key"]

#: 32 bits of a key.
Hash = Callable[[bytes], int]

_MASK = (1 << 64) - 1
_MOST_REMEMBERED = 65536


def mix(value: int) -> int:
    """Spread 64 bits so that each depends on all (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def source_hash(address: bytes) -> int:
    """HAProxy's of a packed address: its 32-bit words, added without carry."""
    value = 0
    for at in range(0, len(address), 4):
        value ^= int.from_bytes(address[at : at + 4], "big")
    return value


def text_hash(text: bytes) -> int:
    """HAProxy's default for anything but addresses: the one of sdbm, 32 bits."""
    value = 0
    for byte in text:
        value = byte + value * 65599 & 0xFFFFFFFF
    return value


def uri_key(target: bytes, length: int = 0, depth: int = 0, whole: bool = False) -> bytes:
    """What of a request's target `balance uri` hashes: at most `length` bytes and `depth` directories, where 0 means
    all of them, and nothing from the question mark on unless it is the `whole`."""
    if length:
        target = target[:length]
    if not whole:
        target = target.partition(b"?")[0]
    if depth:
        # As with HAProxy, each slash counts, those of "http://" too, and the first one too many is left out.
        at = -1
        for _ in range(depth + 1):
            at = target.find(b"/", at + 1)
            if at < 0:
                return target
        target = target[:at]
    return target


def server_map(weights: Sequence[int]) -> list[int]:
    """The table of HAProxy's static algorithms: as many entries as the weights' sum, each a server's position.

    A server is due once in every sum/weight steps. Each step takes whoever has most turns due, and of these the first.
    """
    total = sum(weights)
    due = sorted(
        (-(-turn * total // weight), position) for position, weight in enumerate(weights) for turn in range(weight)
    )
    owed = [0] * len(weights)
    ready: list[tuple[int, int]] = []  # (-turns owed, position); what no longer holds is passed over
    entries: list[int] = []
    at = 0
    for step in range(1, total + 1):
        while at < total and due[at][0] <= step:
            position = due[at][1]
            owed[position] += 1
            heapq.heappush(ready, (-owed[position], position))
            at += 1
        while True:
            count, position = heapq.heappop(ready)
            if owed[position] == -count:
                break
        entries.append(position)
        owed[position] -= 1
        if owed[position]:
            heapq.heappush(ready, (-owed[position], position))
    return entries


class MapBased:
    """`hash-type map-based`: the hash, modulo the sum of the weights, is a place in the server_map().

    Even, but when that sum changes, most keys move.
    """

    def __init__(self, weights: Sequence[int], hashed: Hash) -> None:
        self.entries = server_map(weights)
        self._hash = hashed
        self._known: dict[bytes, int] = {}

    def position(self, key: bytes) -> int:
        """The server of a key."""
        position = self._known.get(key)
        if position is None:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            position = self._known[key] = self.entries[self._hash(key) % len(self.entries)]
        return position


class _Seeded(NamedTuple):
    seed: int  # half mixed
    position: int


class Rendezvous:
    """`hash-type consistent`: the same server as long as it is usable, and only the keys of a lost server move.

    Weighted rendezvous hashing (Thaler and Ravishankar 1998; logarithmic weighting), which is smoother than HAProxy's
    tree and needs no memory for it. By the servers' names, so that their order does not matter.
    """

    def __init__(self, weights: Sequence[float], names: Sequence[str]) -> None:
        # By weight, since of servers of one weight the one with the highest hash has the highest score.
        self._groups: dict[float, list[_Seeded]] = {}
        for position, (weight, name) in enumerate(zip(weights, names, strict=True)):
            seed = zlib.crc32(name.encode()) * 0x9E3779B97F4A7C15 & _MASK
            self._groups.setdefault(weight, []).append(_Seeded(seed ^ seed >> 30, position))
        self._known: dict[bytes, int] = {}

    def position(self, key: bytes) -> int:
        """The server of a key."""
        position = self._known.get(key)
        if position is None:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            position = self._known[key] = self._search(key)
        return position

    def _search(self, key: bytes) -> int:
        # The longest of all ways to choose, and the only one that looks at each server. So mix(key ^ seed) is spelt
        # out, without its first step, which can be taken for both apart, and with its last one, which leaves the upper
        # 31 bits as they are, for those alone that may win: 0.4 ms among 2,000 servers of one weight instead of 3.9.
        base = mix(zlib.crc32(key) << 32 | zlib.adler32(key))
        base ^= base >> 30
        mask = _MASK
        best, best_score = -1, -1.0
        for weight, servers in self._groups.items():
            top = found = -1
            least = 0  # what may be more than `top` in the end
            for seed, position in servers:
                value = (base ^ seed) * 0xBF58476D1CE4E5B9 & mask
                value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
                if value >= least:
                    value ^= value >> 31
                    if value > top:
                        top, found = value, position
                        least = value >> 33 << 33
            score = weight / -math.log((top + 0.5) / (mask + 1))
            if score > best_score or (score == best_score and found < best):
                best, best_score = found, score
        return best
