"""The queue of a worker's park as the worker knows it: what it has sent there, and how that stays short.

A queue gives back nothing but its first message. So when much of it is of connections that have ended, the first
message is rolled: what still lives in it is sent again to the end, then it is dropped.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence

from hitlessd.parking.park import ROOM, Park, Record, records_of

__all__ = ["Living", "Queue"]

#: The records of a message that are still of use, and their descriptors.
Living = Callable[[Sequence[Record]], tuple[list[Record], list[int]]]

#: Descriptors in the queue that may be of no use, beside as many as are.
_SLACK = 4 * ROOM
#: Messages rolled at once; dropping one of which nothing lives costs next to nothing.
_ROLLS, _DROPS = 4, 50
_WHY = {
    int(errno.EAGAIN): "the queue is full (net.core.wmem_max)",
    int(errno.ETOOMANYREFS): "too many descriptors of this user are in flight (LimitNOFILE=)",
}


class Queue:
    """Of one park; `limit` descriptors may be in it. `dropped` is told of what is in it no more."""

    def __init__(self, park: Park, limit: int, dropped: Callable[[Sequence[Record]], object]) -> None:
        self._park = park
        self._dropped = dropped
        self._limit = limit
        self._slack = min(_SLACK, limit // 8)
        self._messages: deque[bytes] = deque()  # a seventh of what their records would take
        self.in_flight = 0  # descriptors

    def full(self, more: int) -> str:
        """Why there is no room for so many more descriptors, or ""."""
        if self.in_flight + more <= self._limit:
            return ""
        return f"at most {self._limit} descriptors of a worker may be parked (LimitNOFILE=)"

    def send(self, records: Sequence[Record], fds: Sequence[int]) -> str:
        """Put a message at the end. Why it could not be done, or ""."""
        try:
            self._messages.append(self._park.send(records, fds))
        except OSError as error:
            return _WHY.get(error.errno or 0, str(error.strerror))
        self.in_flight += len(fds)
        return ""

    def roll(self, living: Living, useful: int, pressed: bool = False) -> bool:
        """Let go of what is of no use, a bounded amount of work; whether there is more. `useful`: descriptors that
        are of use; `pressed`: even if it is not much, for there are no slots left."""
        rolls = 0
        for _ in range(_DROPS):
            if not self._messages:
                return False
            if not pressed and self.in_flight <= 2 * useful + (self._slack if useful else 0):
                return False
            records, fds = living(records_of(self._messages[0]))
            if records:
                rolls += 1
                if rolls > _ROLLS or self.send(records, fds):
                    return True
            self._drop()
        return True

    def renew(self, living: Living) -> None:
        """Let go of all that is of no use, at once."""
        for _ in range(len(self._messages)):
            records, fds = living(records_of(self._messages[0]))
            if records and self.send(records, fds):
                return
            self._drop()

    def sweep(self, living: Living) -> None:
        """Drop all messages at the front of which nothing lives."""
        while self._messages and not living(records_of(self._messages[0]))[0]:
            self._drop()

    def _drop(self) -> None:
        self._park.drop()
        records = records_of(self._messages.popleft())
        self.in_flight -= sum(record.kind.descriptors for record in records)
        self._dropped(records)
