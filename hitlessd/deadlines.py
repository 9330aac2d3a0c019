"""One timer for all clients: it rings when the first of them has waited for too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from hitlessd.runtime.control import LoopLike, TimerLike

__all__ = ["Deadlines"]


class _Patient(Protocol):
    @property
    def due(self) -> float:
        """Loop time at which it has waited for too long; infinity for never."""
        ...


T = TypeVar("T", bound=_Patient)


class Deadlines(Generic[T]):
    """Calls `late(client)` for each of `clients()` that is due."""

    def __init__(self, loop: LoopLike, clients: Callable[[], Sequence[T]], late: Callable[[T], object]) -> None:
        self._loop = loop
        self._clients = clients
        self._late = late
        self._timer: TimerLike | None = None
        self._rings = 0.0  # loop time at which it does

    def arm(self, client: T) -> None:
        """Ring when this client may be late, if it would ring later."""
        due = client.due
        if due == float("inf") or (self._timer is not None and self._rings <= due):
            return
        self.stop()
        self._rings = due
        self._timer = self._loop.call_later(max(0.0, due - self._loop.time()), self._ring)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        now = self._loop.time()
        for client in self._clients():
            if client.due <= now:
                self._late(client)
        for client in self._clients():
            self.arm(client)
