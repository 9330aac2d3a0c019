"""Main's event loop: descriptors, timers and signals, nothing else.

Main handles a few events a second, so this favours plainness; asyncio would cost a reload 50 ms of imports. What main
may not do is die: a callback that raises anything is reported and the loop goes on.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["READ", "WRITE", "Loop", "Timer"]

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
#: epoll_wait(2) takes milliseconds in an int, which is 24 days; waking up now and then costs nothing.
_LONGEST_WAIT = 3600.0


class Timer:
    """A call due at `when` (seconds of Loop.time()); cancel() is idempotent."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """A level-triggered epoll loop. `report(what, error)` hears of callbacks that raised."""

    def __init__(
        self, report: Callable[[str, BaseException], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.time = clock
        self._report = report
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], object]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._signal_pipe: tuple[int, int] | None = None
        self._running = False

    def add(self, fd: int, events: int, callback: Callable[[int], object]) -> None:
        """Call `callback(events)` whenever `fd` is ready. Raises OSError."""
        self._epoll.register(fd, events)
        self._handlers[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events from now on."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget `fd`; before every close, since a duplicate elsewhere would keep the registration alive (epoll(7))."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        timer = Timer(self.time() + seconds, callback)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    def call_soon(self, callback: Callable[[], object]) -> Timer:
        return self.call_later(0.0, callback)

    def handle_signals(self, handlers: Mapping[signal.Signals, Callable[[], object]]) -> None:
        """Run a callback in the loop, never inside other code, when its signal arrives."""
        reader, writer = self._signal_pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in handlers:
            signal.signal(number, lambda *_: None)

        def arrived(_events: int) -> None:
            for number in set(os.read(reader, 4096)):
                if callback := handlers.get(signal.Signals(number)):
                    self._call("signal", callback)

        self.add(reader, READ, arrived)

    def run(self) -> None:
        """Serve until stop()."""
        self._running = True
        while self._running:
            self.turn()

    def stop(self) -> None:
        self._running = False

    def turn(self, longest: float | None = None) -> None:
        """Wait for the next event, at most `longest` seconds, and handle what is due."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if self._timers:
            due = max(0.0, self._timers[0][0] - self.time())
            longest = due if longest is None else min(due, longest)
        if longest is not None:
            longest = min(longest, _LONGEST_WAIT)
        for fd, events, handler in [(fd, events, self._handlers.get(fd)) for fd, events in self._epoll.poll(longest)]:
            # An earlier callback of this turn may have removed it, and even opened another file of that number.
            if handler and self._handlers.get(fd) is handler:
                self._call(f"descriptor {fd}", handler, events)
        now = self.time()
        due_timers = []
        while self._timers and self._timers[0][0] <= now:
            due_timers.append(heapq.heappop(self._timers)[2])
        # Those that these add have to wait for the next turn: descriptors must not starve.
        for timer in due_timers:
            if callback := timer.callback:
                timer.callback = None
                self._call("timer", callback)

    def close(self) -> None:
        """Release the descriptors; for a forked child, which must not share them."""
        self._epoll.close()
        if self._signal_pipe:
            signal.set_wakeup_fd(-1)
            for fd in self._signal_pipe:
                os.close(fd)
            self._signal_pipe = None
        self._handlers.clear()
        self._timers.clear()

    def _call(self, what: str, callback: Callable[..., Any], *args: object) -> None:
        try:
            callback(*args)
        except Exception as error:
            self._report(what, error)
