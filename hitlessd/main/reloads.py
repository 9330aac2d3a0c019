"""Reloads and who waits for them: requests during one become the next, and every caller is answered once."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from hitlessd.dataclass import replace
from hitlessd.loop import Loop
from hitlessd.runtime.control import RELOAD_BUCKETS, ReloadOutcome

__all__ = ["Reloads"]

Done = Callable[[ReloadOutcome], None]

#: Outcomes that are remembered.
_HISTORY = 50
_FIELDS = tuple(ReloadOutcome.__dataclass_fields__)  # asdict() would take 2 ms of each reload
#: Names of phases that are counted: more than there are, should a later version have others.
_MOST_PHASES = 32


class Reloads:
    """Numbers reloads over all generations, from 1. `begin(number)` starts one; finished() must follow.

    `changed()` is called when there is something new to be kept and told, before callers are answered.
    """

    def __init__(
        self, loop: Loop, begin: Callable[[int], object], changed: Callable[[], object] = lambda: None
    ) -> None:
        self._loop = loop
        self._begin = begin
        self._changed = changed
        self._callers: dict[int, list[Done]] = {}
        self.number = 0
        self.running = False
        self.completed = 0
        self.refused = 0
        self.history: deque[ReloadOutcome] = deque(maxlen=_HISTORY)
        self._phases: dict[str, tuple[list[int], float]] = {}  # in each bucket, and seconds in all

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
        self._changed()
        callers = self._callers.pop(outcome.number, [])
        # First, so that a caller that fails cannot keep the next reload from starting.
        if self._callers:
            self._loop.call_soon(self._start)
        for done in callers:
            done(outcome)

    def note(self, outcome: ReloadOutcome) -> None:
        """Count an outcome."""
        self.history.append(outcome)
        if not outcome.ok:
            self.refused += 1
            return
        self.completed += 1
        for name, seconds in (*outcome.phases, ("total", outcome.duration)):
            if name in self._phases or len(self._phases) < _MOST_PHASES:
                counts, total = self._phases.get(name) or ([0] * (len(RELOAD_BUCKETS) + 1), 0.0)
                counts[bisect_left(RELOAD_BUCKETS, seconds)] += 1
                self._phases[name] = counts, total + seconds

    def amend(self, number: int, **fields: Any) -> None:
        """Something about a reload became known only after its callers had been answered."""
        for index, outcome in enumerate(self.history):
            if outcome.number == number:
                self.history[index] = replace(outcome, **fields)
                self._changed()

    @property
    def histogram(self) -> Mapping[str, tuple[Sequence[int], float]]:
        """As Control.reload_histogram says."""
        return {name: (list(accumulate(counts)), total) for name, (counts, total) in self._phases.items()}

    def export(self) -> dict[str, Any]:
        """What the successor must know to go on counting; the running reload is told separately."""
        return {
            "number": self.number,
            "completed": self.completed,
            "refused": self.refused,
            "history": [{name: getattr(outcome, name) for name in _FIELDS} for outcome in self.history],
            "histogram": {"bounds": RELOAD_BUCKETS, "phases": self._phases},
        }

    def restore(self, record: dict[str, Any]) -> None:
        self.number = int(record.get("number", 0))
        self.completed = int(record.get("completed", 0))
        self.refused = int(record.get("refused", 0))
        for each in record.get("history", ()):
            if outcome := _remembered(each):
                self.history.append(outcome)
        self._phases = _counted(record.get("histogram"))

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


def _counted(record: Any) -> dict[str, tuple[list[int], float]]:
    """A histogram as export() has written it; one with other bounds, or that makes no sense, begins anew."""
    result: dict[str, tuple[list[int], float]] = {}
    try:
        if list(record["bounds"]) == list(RELOAD_BUCKETS):
            for name, (counts, total) in list(record["phases"].items())[:_MOST_PHASES]:
                numbers, seconds = [int(count) for count in counts], float(total)
                if len(numbers) != len(RELOAD_BUCKETS) + 1 or min(numbers) < 0 or not math.isfinite(seconds):
                    return {}
                result[str(name)] = numbers, seconds
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        return {}
    return result
