"""Accepting on main's loop: any number of listening sockets, and a pause where descriptors are short."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

from hitlessd.runtime.control import LoopLike, TimerLike

__all__ = ["Acceptor"]

T = TypeVar("T")

_ACCEPTS = 32  # connections accepted in one go
_RETRY = 0.1  # seconds until accepting is tried again when descriptors are short
_CAPACITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor(Generic[T]):
    """Calls `accepted(sock, what)` with each new connection, and `short(reason)` where there is no room for one."""

    def __init__(
        self, loop: LoopLike, accepted: Callable[[socket.socket, T], object], short: Callable[[str], object]
    ) -> None:
        self._loop = loop
        self._accepted = accepted
        self._short = short
        self._listeners: dict[socket.socket, T] = {}
        self._retry: TimerLike | None = None

    def add(self, sock: socket.socket, what: T) -> None:
        """Accept on `sock`, a non-blocking listening socket that stays the caller's to close. Raises OSError."""
        if self._retry is None:
            self._watch(sock)
        self._listeners[sock] = what

    def remove(self, sock: socket.socket) -> None:
        """Stop accepting on `sock`, before it is closed or handed over; an unknown one is ignored."""
        if self._listeners.pop(sock, None) is not None:
            self._loop.remove(sock.fileno())

    @property
    def accepting(self) -> tuple[T, ...]:
        """What the listeners were added with."""
        return tuple(self._listeners.values())

    def close(self) -> None:
        """Leave all listeners."""
        for sock in list(self._listeners):
            self.remove(sock)
        if self._retry:
            self._retry.cancel()
            self._retry = None

    def _watch(self, sock: socket.socket) -> None:
        self._loop.add(sock.fileno(), select.EPOLLIN, lambda _events: self._accept(sock))

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            if listener not in self._listeners:
                return
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _CAPACITY:
                    # The kernel wants a descriptor before it looks whether somebody is waiting at all.
                    if _pending(listener):
                        self._pause(error.strerror or "no room")
                    return
                continue
            sock.setblocking(False)
            self._accepted(sock, self._listeners[listener])

    def _pause(self, reason: str) -> None:
        """Stay away from the listeners for a moment instead of spinning on them."""
        self._short(reason)
        if self._retry is None:
            for sock in self._listeners:
                self._loop.remove(sock.fileno())
            self._retry = self._loop.call_later(_RETRY, self._resume)

    def _resume(self) -> None:
        self._retry = None
        for sock in self._listeners:
            self._watch(sock)


def _pending(listener: socket.socket) -> bool:
    """Whether a connection waits to be accepted."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))
