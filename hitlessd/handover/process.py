"""A process of the other side: known by a pidfd, so that a signal can never reach a stranger that got its number."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable

from hitlessd.errors import PeerError
from hitlessd.loop import READ, Loop

__all__ = ["PeerProcess"]


class PeerProcess:
    """Another process that must be alive, or be proved dead. close() only lets go of it."""

    def __init__(self, pid: int) -> None:
        """Raises PeerError when there is no such process."""
        try:
            self._pidfd = os.pidfd_open(pid)
        except OverflowError:
            raise PeerError(f"cannot watch process {pid}: no process has such a number") from None
        except OSError as error:
            raise PeerError(f"cannot watch process {pid}: {error.strerror}") from None
        self.pid = pid

    @property
    def dead(self) -> bool:
        return self.wait(0)

    def wait(self, seconds: float) -> bool:
        """Whether it is dead, waiting for that at most so long (pidfd_open(2): readable at its end)."""
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def signal(self, number: signal.Signals) -> None:
        """Raises PeerError when we may not."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return
        except OSError as error:
            raise PeerError(f"cannot send {number.name} to process {self.pid}: {error.strerror}") from None

    def kill(self, seconds: float = 5.0) -> None:
        """SIGKILL, which ends a stopped process too, and wait until it is gone. Raises PeerError if it does not go."""
        self.signal(signal.SIGKILL)
        if not self.wait(seconds):
            raise PeerError(f"cannot end process {self.pid}: it is still there {seconds:g} s after SIGKILL")

    def when_dead(self, loop: Loop, callback: Callable[[], object]) -> None:
        """Call back once from the loop, and let go of it."""

        def gone(_events: int) -> None:
            self.forget(loop)
            callback()

        loop.add(self._pidfd, READ, gone)

    def forget(self, loop: Loop) -> None:
        """Undo when_dead() and close()."""
        if self._pidfd >= 0:
            loop.remove(self._pidfd)
            self.close()

    def close(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._pidfd)
            self._pidfd = -1
