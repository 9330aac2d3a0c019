"""Keeps what operators have changed in systemd's store, so that a restart and a crash find it."""

from __future__ import annotations

from hitlessd.changes import Changes
from hitlessd.loop import Loop
from hitlessd.main.store import Store

__all__ = ["Custody"]


class Custody:
    """Writes once a turn of the loop at most, and the new entry before it drops the old one. `entry` is its name."""

    def __init__(self, loop: Loop, store: Store, generation: int) -> None:
        self._loop = loop
        self._store = store
        self._generation = generation
        self._serial = 0
        self._unsaved: Changes | None = None
        self.entry = ""

    def begin(self, entry: str, changes: Changes) -> None:
        """We are the main process: what a generation before us has kept as `entry` is ours to keep."""
        self.entry = entry
        if entry or changes.items:
            self._unsaved = changes
            self.settle()

    def save(self, changes: Changes) -> None:
        """Keep these, before the loop's turn is over."""
        if self._unsaved is None:
            self._loop.call_soon(self.settle)
        self._unsaved = changes

    def settle(self) -> None:
        """Keep at once what is to be kept."""
        changes, self._unsaved = self._unsaved, None
        if changes is None:
            return
        before, self.entry = self.entry, ""
        if changes.items:
            self._serial += 1
            self.entry = self._store.keep_changes(self._generation, self._serial, changes.export())
        if before and before != self.entry:
            self._store.forget([before])
