"""At most one line a second: what is logged so, a hostile client can make happen as often as it likes."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["LimitedLog"]


class LimitedLog:
    """Counts the others. `log(severity, message)`, `clock()` in seconds."""

    def __init__(self, log: Callable[..., None], clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._logged = float("-inf")
        self._unlogged = 0

    def __call__(self, severity: str, message: str) -> None:
        now = self._clock()
        if now - self._logged < 1.0:
            self._unlogged += 1
            return
        suffix = f" ({self._unlogged} similar messages suppressed)" if self._unlogged else ""
        self._logged, self._unlogged = now, 0
        self._log(severity, message + suffix)
