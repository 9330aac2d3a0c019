"""`observe`: a server's traffic counts as a check. Whoever sees the last of enough errors in a row tells main.

"In a row" is over all workers. Yet each word of the table has one writer: a worker counts its successes, and its errors
since anybody's latest success, together with how many successes there were by then. Errors of others count as long as
they were seen at the same number of successes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hitlessd.table import Column, RowKey

if TYPE_CHECKING:
    from hitlessd.model import Server
    from hitlessd.worker.loop import Worker

__all__ = ["L4_ERROR", "Observation"]

#: HAProxy's words for what the last error was (health_adjust() in its sources).
L4_ERROR = "L4 unsuccessful connection"


class Observation:
    """Of one server, by one worker."""

    __slots__ = ("_at", "_backend", "_limit", "_name", "_ok", "_row", "_slot", "_worker")

    def __init__(self, worker: Worker, backend: str, server: Server) -> None:
        self._worker = worker
        self._backend = backend
        self._name = server.name
        self._limit = server.error_limit
        self._row = worker.table.index.get(RowKey("server", backend, server.name), -1)
        self._slot = worker.slots[worker.index]
        self._at = self._row * worker.table.columns
        self._ok = self._slot[self._at + Column.OBSERVED_OK] if self._row >= 0 else 0

    def passed(self) -> None:
        """A success: everybody's errors count no more."""
        if self._row >= 0:
            self._ok += 1
            self._slot[self._at + Column.OBSERVED_OK] = self._ok

    def failed(self, what: str) -> None:
        """An error; `what` is for a person."""
        if self._row < 0:
            return
        table, slot, at = self._worker.table, self._slot, self._at
        successes = table.value(self._row, Column.OBSERVED_OK)
        if slot[at + Column.OBSERVED_AT] != successes:
            slot[at + Column.OBSERVED_AT] = successes
            slot[at + Column.OBSERVED_RUN] = 0
        slot[at + Column.OBSERVED_RUN] += 1
        run = sum(
            each[at + Column.OBSERVED_RUN] for each in self._worker.slots if each[at + Column.OBSERVED_AT] == successes
        )
        if run >= self._limit:
            self.passed()  # it begins anew
            text = f"Detected {run} consecutive errors, last one was: {what}"
            self._worker.orders.tell("observed", backend=self._backend, server=self._name, text=text)
