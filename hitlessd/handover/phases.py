"""What of a handover took how long. No I/O; times are CLOCK_MONOTONIC seconds, which both sides share."""

from __future__ import annotations

from collections.abc import Callable

from hitlessd.handover.states import State

__all__ = ["PHASES", "Phases"]

#: In their order: start the process; read the configuration; open listeners and fork workers; workers begin to accept,
#: the old ones stop; systemd and the runtime API change sides; the ways are made, and connections move on them.
PHASES = ("start", "configuration", "prepare", "accept", "stop", "commit", "migrate", "move")

#: Each as the predecessor sees it: how long it was in a state.
_STATES = {
    State.HELLO: "start",
    State.OFFER: "prepare",
    State.ACCEPT: "accept",
    State.STOP: "stop",
    State.COMMIT: "commit",
    State.MIGRATE: "migrate",
    State.MOVE: "move",
}


class Phases:
    """A sequence of phases without gaps."""

    def __init__(self, clock: Callable[[], float], began: float | None = None) -> None:
        self.began = self._since = clock() if began is None else began
        self._clock = clock
        self._ended: list[tuple[str, float]] = []

    def __len__(self) -> int:
        return len(self._ended)

    def end(self, name: str) -> None:
        """The running phase has ended, and the next begins."""
        now = self._clock()
        self._ended.append((name, max(0.0, now - self._since)))
        self._since = now

    def leave(self, state: State, started: object) -> None:
        """The predecessor leaves a state; `started` is when the successor says that its own code began to run."""
        if state is State.HELLO and isinstance(started, int | float) and self._since <= started <= self._clock():
            self._ended.append(("start", started - self._since))
            self._since = float(started)
            self.end("configuration")
        elif state in _STATES:
            self.end(_STATES[state])

    def all(self, began: object = None) -> tuple[tuple[str, float], ...]:
        """Those that have ended; with what came before the first, since `began`."""
        if not isinstance(began, int | float):
            return tuple(self._ended)
        return (("start", max(0.0, self.began - began)), *self._ended)
