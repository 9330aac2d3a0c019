"""The connections of a predecessor on their way to us, and what a reload's callers learn of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from hitlessd.descriptors import close_all
from hitlessd.events import Event
from hitlessd.log import Logger
from hitlessd.loop import Loop
from hitlessd.main.inheritance import Ancestor
from hitlessd.main.workers import Pool

__all__ = ["Arrival"]


class Arrival:
    """`done()` is called once: when all have come that will, or when that takes longer than somebody should wait; then
    `late()` is called when they have."""

    def __init__(
        self,
        loop: Loop,
        log: Logger,
        pool: Pool,
        ancestor: Ancestor | None,
        patience: float,
        done: Callable[[], object],
        late: Callable[[], object] = lambda: None,
    ) -> None:
        self._loop = loop
        self._log = log
        self._pool = pool
        self._ancestor = ancestor
        self._done: Callable[[], object] | None = done
        self._late = late
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
            text = "cannot understand what the predecessor says of its connections"
            self._log("warning", text, event=Event.PASSED_UNUSABLE)
        if self._ancestor:
            self._ancestor.moved, self._ancestor.kept = self.moved, self.kept
        self._tell()
        if not self._done:
            self._late()
        self.finish()

    def _tell(self) -> None:
        """The workers have told of those that are lost."""
        took = round(self._took * 1000)
        if self.moved:
            severity, late = ("info", "") if self._done else ("notice", "late: ")
            text = f"{late}{self.moved} connections moved in {took} ms"
            self._log(severity, text, event=Event.CONNECTIONS_MOVED, moved=self.moved, duration_ms=took)
        for why, number in self.kept.items():
            text = f"{number} connections stay with the old generation: {why}"
            self._log("notice", text, event=Event.CONNECTIONS_KEPT, kept=number, reason=why)

    def finish(self) -> None:
        """Wait no longer."""
        self._clock.cancel()
        done, self._done = self._done, None
        if done:
            done()

    def counts(self) -> dict[str, Any]:
        """How many connections came, stayed and were lost, under the names of a ReloadOutcome."""
        return {"moved": self.moved, "kept": sum(self.kept.values()), "lost": self.lost}

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
