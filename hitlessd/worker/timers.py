"""The timer wheel: coarse deadlines in buckets, so that arming and disarming cost one dictionary operation each.

A connection's activity moves no timer, it only stores the time; an expired bucket asks its members for their deadline
of now, and those that have moved on are put where they belong. Thus a member may be called early, never late by more
than a bucket.
"""

from __future__ import annotations

import heapq
from typing import Protocol

__all__ = ["GRAIN", "NEVER", "Timed", "Wheel"]

#: Seconds that a bucket spans; a power of two, so that no rounding happens at its edges.
GRAIN = 0.0625
NEVER = float("inf")


class Timed(Protocol):
    """What a wheel holds. `bucket` belongs to the wheel and is 0 when the object is in none.

    looked_at() is deadline(), called when the time of the bucket has come; it may do more.
    """

    bucket: int

    def deadline(self) -> float: ...

    def looked_at(self) -> float: ...

    def expired(self) -> None: ...


class Wheel:
    """Buckets of objects keyed by when they are due, on whatever clock the caller uses."""

    __slots__ = ("_buckets", "_keys")

    def __init__(self) -> None:
        self._buckets: dict[int, dict[Timed, None]] = {}
        self._keys: list[int] = []

    def bucket(self, deadline: float) -> tuple[int, dict[Timed, None]]:
        """The bucket of a deadline, and the key that its members must have; key 0 for NEVER.

        Good until next() or run(), which throw empty buckets away.
        """
        if deadline == NEVER:
            return 0, {}
        key = int(deadline / GRAIN) + 1
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = {}
            heapq.heappush(self._keys, key)
        return key, bucket

    def add(self, member: Timed, deadline: float) -> None:
        """Have it called at `deadline` or up to GRAIN later. It must be in no bucket; NEVER arms nothing."""
        key, bucket = self.bucket(deadline)
        member.bucket = key
        if key:
            bucket[member] = None

    def remove(self, member: Timed) -> None:
        """Forget it; it may be in no bucket."""
        key = member.bucket
        if key:
            member.bucket = 0
            del self._buckets[key][member]

    def tighten(self, member: Timed) -> None:
        """Its deadline may have become nearer: see to it that it is called in time."""
        deadline = member.deadline()
        key = member.bucket
        if key:
            if deadline / GRAIN >= key:
                return
            self.remove(member)
        self.add(member, deadline)

    def next(self) -> float:
        """When run() has something to do, or NEVER."""
        keys, buckets = self._keys, self._buckets
        while keys:
            if buckets[keys[0]]:
                return keys[0] * GRAIN
            del buckets[heapq.heappop(keys)]
        return NEVER

    def run(self, now: float) -> None:
        """Call expired() of all whose deadline has come. If one raises, the others are called at the next run."""
        keys, buckets = self._keys, self._buckets
        while keys and keys[0] * GRAIN <= now:
            bucket = buckets[keys[0]]
            while bucket:
                member, _ = bucket.popitem()
                member.bucket = 0
                deadline = member.looked_at()
                if deadline <= now:
                    member.expired()
                else:
                    self.add(member, deadline)
            del buckets[heapq.heappop(keys)]

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))
