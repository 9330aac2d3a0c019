"""Reloads and who waits for them: requests during one become the next, and every caller is answered once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from hitlessd.loop import Loop
from hitlessd.runtime.control import ReloadOutcome

__all__ = ["Reloads"]

Done = Callable[[ReloadOutcome], None]

#: Outcomes that are remembered.
_HISTORY = 50


class Reloads:
    """Numbers reloads over all generations, from 1. `begin(number)` starts one; finished() must follow."""

    def __init__(self, loop: Loop, begin: Callable[[int], object]) -> None:
        self._loop = loop
        self._begin = begin
        self._callers: dict[int, list[Done]] = {}
        self.number = 0
        self.running = False
        self.completed = 0
        self.refused = 0
        self.history: deque[ReloadOutcome] = deque(maxlen=_HISTORY)

    @property
    def last(self) -> ReloadOutcome | None:
        """The latest that ended."""
        return self.history[-1] if self.history else None

    def request(self, done: Done) -> int:
        """Join the next reload; its configuration will be read after this call. Returns its number."""
        number = self.number + 1
        self._callers.setdefault(number, []).append(done)
        if not self.running:
            self._loop.call_soon(self._start)
        return number

    def resume(self, number: int, done: Done) -> int:
        """A caller that an earlier generation has promised the outcome of reload `number`."""
        if self.running and number == self.number:
            self._callers.setdefault(number, []).append(done)
            return number
        last = self.last
        if last is not None and number <= last.number:
            outcome = last
            self._loop.call_soon(lambda: done(outcome))
            return number
        return self.request(done)

    def finished(self, outcome: ReloadOutcome) -> None:
        """The running reload has ended: answer its callers, and start the next one if somebody waits for it."""
        self.running = False
        self.note(outcome)
        callers = self._callers.pop(outcome.number, [])
        # First, so that a caller that fails cannot keep the next reload from starting.
        if self._callers:
            self._loop.call_soon(self._start)
        for done in callers:
            done(outcome)

    def note(self, outcome: ReloadOutcome) -> None:
        """Count an outcome."""
        self.history.append(outcome)
        if outcome.ok:
            self.completed += 1
        else:
            self.refused += 1

    def export(self) -> dict[str, Any]:
        """What the successor must know to go on counting; the running reload is told separately."""
        return {
            "number": self.number,
            "completed": self.completed,
            "refused": self.refused,
            "history": [asdict(outcome) for outcome in self.history],
        }

    def restore(self, record: dict[str, Any]) -> None:
        self.number = int(record.get("number", 0))
        self.completed = int(record.get("completed", 0))
        self.refused = int(record.get("refused", 0))
        for each in record.get("history", ()):
            if outcome := _remembered(each):
                self.history.append(outcome)

    def _start(self) -> None:
        if self.running or not self._callers:
            return
        self.running = True
        self.number += 1
        try:
            self._begin(self.number)
        except Exception as error:
            # One reload that fails, even through a bug of ours, must not block all later ones.
            if self.running:
                reason = f"cannot start the reload: {error}"
                self.finished(ReloadOutcome(self.number, False, reason, 0.0, time.time()))
            raise


def _remembered(record: Any) -> ReloadOutcome | None:
    """An outcome as export() has written it; who is older or younger than we may know other fields."""
    try:
        fields = {name: value for name, value in record.items() if name in ReloadOutcome.__dataclass_fields__}
        fields["phases"] = tuple((str(what), float(took)) for what, took in fields.get("phases", ()))
        return ReloadOutcome(**fields)
    except (AttributeError, TypeError, ValueError):
        return None
