"""How often the same is said: what clients and servers can make happen as often as they like must not flood the log."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from hitlessd.dataclass import dataclass, field
from hitlessd.events import Event
from hitlessd.log import Logger

if TYPE_CHECKING:
    from hitlessd.runtime.control import LoopLike

__all__ = ["Quota"]

#: Matters that are told apart; beyond, all of one event are one.
_MOST = 100


@dataclass(slots=True)
class _Period:
    until: float
    said: int = 1
    suppressed: int = 0
    severity: str = ""
    message: str = ""
    event: Event | None = None
    fields: dict[str, object] = field(default_factory=dict)


class Quota:
    """At most `burst` messages on one matter in `period` seconds are logged as they come. When the period is over, the
    last of the others is, with their number: the latest state of a matter is always said."""

    def __init__(
        self,
        log: Logger,
        clock: Callable[[], float],
        wake: Callable[[float], object],
        burst: int = 5,
        period: float = 10.0,
    ) -> None:
        """`clock` is in seconds; `wake(when)` asks for a call of settle() at that time, or later."""
        self._log = log
        self._clock = clock
        self._wake = wake
        self._burst = burst
        self._length = period
        self._periods: dict[Hashable, _Period] = {}
        self._due: float | None = None

    @classmethod
    def on(cls, loop: LoopLike, log: Logger, burst: int = 5, period: float = 10.0) -> Quota:
        """One that an event loop wakes."""
        quota = cls(log, loop.time, lambda when: loop.call_later(when - loop.time(), quota.settle), burst, period)
        return quota

    def __call__(
        self, severity: str, message: str, /, *, event: Event | None, about: Hashable = None, **fields: object
    ) -> None:
        """`about`: the matter, if it is not simply the event. Not to be chosen by whoever is complained of."""
        now = self._clock()
        key: Hashable = event if about is None else about
        period = self._periods.get(key)
        if period is None and len(self._periods) >= _MOST:
            self.settle()
            key = key if len(self._periods) < _MOST else event
            period = self._periods.get(key)
        if period is None or (period.until <= now and not period.suppressed):
            self._periods[key] = _Period(now + self._length)
        elif period.said < self._burst:
            period.said += 1
        else:
            period.suppressed += 1
            period.severity, period.message, period.event, period.fields = severity, message, event, fields
            if self._due is None:
                self._due = period.until
                self._wake(self._due)
            return
        self._log(severity, message, event=event, **fields)

    def settle(self) -> None:
        """Say what was held back in periods that are over."""
        self._due = None
        now = self._clock()
        for key, period in list(self._periods.items()):
            if period.until > now:
                continue
            if period.suppressed:
                self._periods[key] = _Period(now + self._length)
                self._tell(period)
            else:
                del self._periods[key]
        waiting = [period.until for period in self._periods.values() if period.suppressed]
        if waiting:
            self._due = min(waiting)
            self._wake(self._due)

    def close(self) -> None:
        """Say now what was held back."""
        periods, self._periods = self._periods, {}
        for period in periods.values():
            if period.suppressed:
                self._tell(period)

    def _tell(self, period: _Period) -> None:
        others = period.suppressed - 1
        text = f"{period.message} ({others} similar messages suppressed)" if others else period.message
        more: dict[str, object] = {"suppressed": others} if others else {}
        self._log(period.severity, text, event=period.event, **period.fields, **more)
