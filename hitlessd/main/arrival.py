"""The connections of a predecessor on their way to us, and what a reload's callers learn of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from hitlessd.descriptors import close_all
from hitlessd.log import Logger
from hitlessd.loop import Loop
from hitlessd.main.inheritance import Ancestor
from hitlessd.main.workers import Pool

__all__ = ["Arrival"]


class Arrival:
    """`done()` is called once: when all have come that will, or when that takes longer than somebody should wait."""

    def __init__(
        self,
        loop: Loop,
        log: Logger,
        pool: Pool,
        ancestor: Ancestor | None,
        patience: float,
        done: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._log = log
        self._pool = pool
        self._ancestor = ancestor
        self._done: Callable[[], object] | None = done
        self._began = loop.time()
        self._took = 0.0
        self.over = False
        self.moved = self.lost = 0
        self.kept: dict[str, int] = {}
        self._clock = loop.call_later(patience, self.finish)

    def adopt(self, fds: list[int]) -> None:
        """The predecessor's line, and the ways on which connections come; owns them."""
        line, *ways = fds
        if self._ancestor and self._ancestor.process:
            self._ancestor.line = socket.socket(fileno=line)
            self._ancestor.line.setblocking(False)
        else:
            close_all([line])
        self._pool.adopt(ways)

    def ended(self, report: dict[str, Any]) -> None:
        """The predecessor's report; empty when it is dead or cannot move connections."""
        self.over = True
        self._took = self._loop.time() - self._began
        try:
            self.moved, self.lost = int(report.get("moved", 0)), int(report.get("lost", 0))
            self.kept = {str(why): int(number) for why, number in dict(report.get("kept", {})).items()}
        except (TypeError, ValueError, ArithmeticError):
            self._log("warning", "cannot understand what the predecessor says of its connections")
        if self._ancestor:
            self._ancestor.moved, self._ancestor.kept = self.moved, self.kept
        if not self._done and self.summary:
            self._log("notice", f"late: {self.summary}", moved=self.moved, lost=self.lost)
        self.finish()

    def finish(self) -> None:
        """Wait no longer."""
        self._clock.cancel()
        done, self._done = self._done, None
        if done:
            done()

    @property
    def summary(self) -> str:
        """For a person; empty when there was nothing to move."""
        if not self.over:
            return "connections are still moving"
        parts = []
        if self.moved:
            parts.append(f"{self.moved} connections moved in {self._took * 1000:.0f} ms")
        parts += [f"{number} stay with the old generation: {why}" for why, number in self.kept.items()]
        if self.lost:
            parts.append(f"{self.lost} connections lost")
        return "; ".join(parts)
