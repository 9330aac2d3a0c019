"""Who is let in at all: `tcp-request connection` rules and `rate-limit sessions` of one frontend."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hitlessd.conditions import Test, compile_condition
from hitlessd.model import TcpRule
from hitlessd.table import Column
from hitlessd.worker.routing import plain
from hitlessd.worker.timers import NEVER

if TYPE_CHECKING:
    from hitlessd.worker.counters import Row
    from hitlessd.worker.frontend import LiveFrontend
    from hitlessd.worker.loop import Worker

__all__ = ["Rate", "Rules", "pause"]

_RATE, _DCON = int(Column.RATE), int(Column.DCON)
#: A word of the table: the second, the sessions of the one before, and those of this one, so that all workers' add up.
_BITS = 20
_MOST = (1 << _BITS) - 1
_SECONDS = (1 << 64 - 2 * _BITS) - 1
#: Seconds behind the moment from which on one more may begin.
_GRAIN = 0.001


class _Arrival:
    """Somebody who was just accepted, as conditions see it (hitlessd/samples.py)."""

    request = response = None
    sni = backend_name = server_name = ""

    def __init__(self, sock: socket.SocketType, address: Any, frontend_name: str) -> None:
        self._sock = sock
        self.client = plain(address)
        self.frontend_name = frontend_name

    @property
    def local(self) -> tuple[str, int] | None:
        try:
            return plain(self._sock.getsockname())
        except OSError:
            return None


class Rules:
    """The rules about a connection that was just accepted, by the addresses that it has itself."""

    def __init__(self, rules: Sequence[TcpRule], name: str, row: Row) -> None:
        """`name` is the frontend's, `row` where those are counted that are turned away."""
        self._name = name
        self._rules: list[tuple[Test, bool]] = [
            (compile_condition(rule.condition), rule.action == "accept") for rule in rules
        ]
        self._row = row

    def admit(self, sock: socket.SocketType, address: Any) -> bool:
        """Whether whom accept(2) gave may stay; counted if not. As with HAProxy, whom no rule names may.

        It is no connection of ours yet and has no number, for those tell how many sessions there were.
        """
        sample = _Arrival(sock, address, self._name)
        for test, accept in self._rules:
            if test(sample):
                if not accept:
                    row = self._row
                    row.slot[row.start + _DCON] += 1
                return accept
        return True


def pause(limit: int, before: int, now: int, part: float) -> float:
    """Seconds until one more session may begin, 0 for at once, in HAProxy's sliding second: `part` of it has passed,
    `now` sessions have come in it, and `before` in the one before, which count less and less."""
    if now + int(before * (1.0 - part)) < limit:
        return 0.0
    if now < limit:
        return max(1.0 - (limit - now) / before - part, 0.0) + _GRAIN
    return 1.0 - part + max(1.0 - limit / now, 0.0) + _GRAIN


class Rate:
    """At most `limit` new sessions a second, over all workers. While there are too many, listeners are let be: whoever
    connects waits in the backlog. A member of the worker's wheel."""

    def __init__(self, worker: Worker, row: Row, limit: int, frontend: LiveFrontend) -> None:
        self._worker = worker
        self._row = row
        self._frontend = frontend
        self.limit = limit
        self._at = row.start + _RATE
        self.bucket = 0
        #: Until when nobody is accepted, by our clock.
        self.until = -NEVER

    def _words(self) -> list[int]:
        return [slot[self._at] for slot in self._worker.slots] if self._row.number >= 0 else [self._row.slot[self._at]]

    def count(self) -> None:
        """One more has been let in."""
        second = int(self._worker.now) & _SECONDS
        before, now = _at(self._row.slot[self._at], second)
        self._row.slot[self._at] = second << 2 * _BITS | before << _BITS | min(now + 1, _MOST)

    def full(self) -> bool:
        """Whether nobody may be let in now; if so, the worker is woken when that is over."""
        worker = self._worker
        if worker.now < self.until:
            return True
        second = int(worker.now)
        part = worker.now - second
        counts = [_at(word, second & _SECONDS) for word in self._words()]
        before, now = sum(count for count, _ in counts), sum(count for _, count in counts)
        wait = pause(self.limit, before, now, part)
        if not wait:
            return False
        self.until = worker.now + wait
        worker.wheel.remove(self)
        worker.wheel.add(self, self.until)
        return True

    def deadline(self) -> float:
        return self.until

    looked_at = deadline

    def expired(self) -> None:
        """Look again: the others may have used up what is free now."""
        if not self.full():
            self._worker.arm_at(self._frontend)


def _at(word: int, second: int) -> tuple[int, int]:
    """What a word says of the second before, and of this one."""
    of, before, now = word >> 2 * _BITS, word >> _BITS & _MOST, word & _MOST
    if of == second:
        return before, now
    return (now, 0) if (of + 1) & _SECONDS == second else (0, 0)
