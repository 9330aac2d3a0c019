"""Idle connections to one server, kept for the requests to come.

The latest is taken first, so that a few do the work and the others show that they are not needed. An idle one stays
registered: whatever it says, or its end, makes it useless.

As with HAProxy, no more are kept than were lately in use at once, those in use included, but one at least: an idle
client needs no connection to a server until it asks again. What there is no use for is closed as soon as its exchange
is over, while caches still know it; the idle ones are not touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hitlessd.parking.park import farewell
from hitlessd.worker.relay import ignore
from hitlessd.worker.timers import NEVER

if TYPE_CHECKING:
    from hitlessd.worker.backend import LiveServer
    from hitlessd.worker.http.side import HttpSide
    from hitlessd.worker.loop import Worker

__all__ = ["Pool"]


class Pool:
    """One worker's idle connections to one server."""

    __slots__ = (
        "_delay",
        "_due",
        "_limit",
        "_worker",
        "bucket",
        "fresh",
        "idle",
        "lately",
        "most",
        "need",
        "server",
        "unneeded",
    )

    def __init__(self, worker: Worker, server: LiveServer) -> None:
        self._worker = worker
        self.server = server
        self.idle: dict[HttpSide, None] = {}  # the latest at the end
        most = server.config.pool_max_conn
        # The configured limit is for all workers together.
        self._limit = self.most = -(-most // worker.table.workers) if most >= 0 else 1 << 60
        self._delay = server.config.pool_purge_delay
        self.fresh = 0  # of the idle ones: have served one exchange only, see http-reuse aggressive
        self.need = 0  # so many were in use at once, in this period of pool-purge-delay or the one before
        self.lately = 0  # ... in this one; see LiveServer.collect()
        self.unneeded = 0  # so many were idle all the time since the last purge
        self.bucket = 0
        self._due = NEVER

    def __len__(self) -> int:
        return len(self.idle)

    def __contains__(self, side: HttpSide) -> bool:
        return side in self.idle

    def sides(self) -> list[HttpSide]:
        return list(self.idle)

    def take(self, proven: bool) -> HttpSide | None:
        """One that is idle, or None. `proven`: only one that was reused before (http-reuse aggressive)."""
        sides = self.idle
        if not sides:
            return None
        if proven:
            side = next((side for side in reversed(sides) if side.uses > 1), None)
            if side is None:
                return None
            del sides[side]
        else:
            side, _ = sides.popitem()
        if len(sides) < self.unneeded:
            self.unneeded = len(sides)
        if side.uses == 1:
            self.fresh -= 1
        self._worker.idle -= 1
        return side

    def open(self, wanted: bool) -> None:
        """Whether there will be requests for its server; if not, none of its connections is kept."""
        self.most = self._limit if wanted else 0
        if not wanted:
            self.clear()

    def give(self, side: HttpSide) -> None:
        """It has no exchange any more, and is fit for another. Too many: the oldest is closed."""
        if not self.most or not self._delay:
            self._close(side)
            return
        self.idle[side] = None
        side.pool = self
        if side.uses == 1:
            self.fresh += 1
        worker = self._worker
        worker.idle += 1
        if len(self.idle) > self.most:
            self.drop(next(iter(self.idle)))
        if not self.bucket:
            self.unneeded = len(self.idle)
            self._due = worker.now + self._delay
            worker.wheel.add(self, self._due)

    def give_back(self, side: HttpSide) -> None:
        """As give(), behind an exchange that was counted off its server; if there are enough, it is closed."""
        kept, server = len(self.idle), self.server
        # What was needed since the last collection is not in `need` yet.
        if kept and kept + server.sessions >= max(self.need, server.peak):
            self._close(side)
        else:
            self.give(side)

    def expect(self) -> None:
        """Another worker has brought one, idle or in use, and found as many as there are now worth keeping."""
        self.need = max(self.need, len(self.idle) + self.server.sessions)

    def drop(self, side: HttpSide) -> None:
        """It is useless: its server has ended it, or there is no room."""
        if side in self.idle:
            self.take_out(side)
            self._close(side)

    def take_out(self, side: HttpSide) -> None:
        """It is somebody else's."""
        del self.idle[side]
        if side.uses == 1:
            self.fresh -= 1
        self._worker.idle -= 1
        self.server.touch()  # for the gauges; whoever takes or gives one counts anyway
        self.unneeded = min(self.unneeded, len(self.idle))

    def drop_oldest(self) -> bool:
        """Make room; False when there is none to drop."""
        for side in self.idle:
            self.drop(side)
            return True
        return False

    def clear(self) -> None:
        while self.drop_oldest():
            pass

    def _close(self, side: HttpSide) -> None:
        worker = self._worker
        if side.shared:
            farewell(side.sock)
        if side.copied:
            worker.epoll.unregister(side.fd)
        worker.handlers[side.fd] = ignore
        worker.closing.append(side.sock)

    def deadline(self) -> float:
        return self._due

    looked_at = deadline

    def expired(self) -> None:
        """As HAProxy's pool-purge-delay: half of those that nobody has needed are closed."""
        for _ in range((self.unneeded + 1) // 2):
            self.drop_oldest()
        self.unneeded = len(self.idle)
        self.need = max(self.lately, self.unneeded)
        self.lately = self.server.sessions
        if self.idle:
            self._due = self._worker.now + self._delay
            self._worker.wheel.add(self, self._due)
