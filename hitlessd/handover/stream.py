"""The takeover exchange on a real socket: frames and descriptors in and out of a non-blocking stream, on a Loop."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from hitlessd.descriptors import close_all, receive_with_descriptors, send_with_descriptors
from hitlessd.errors import PeerError
from hitlessd.handover.wire import FrameReader, Message, encode
from hitlessd.loop import READ, WRITE, Loop

__all__ = ["FrameStream"]

#: Seconds until descriptors that the kernel did not let pass are sent again, and how often.
_AGAIN, _MOST_REFUSALS = 0.05, 100


class FrameStream:
    """Owns the socket. Calls `on_message(message)` for each, and `on_trouble(lost, why)` at most once: lost is True
    when the other side closed, False when it broke the protocol or cannot be sent what it must have."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_message: Callable[[Message], object],
        on_trouble: Callable[[bool, str], object],
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._on_message = on_message
        self._on_trouble = on_trouble
        self._reader = FrameReader()
        self._out: deque[tuple[memoryview, list[int], bool]] = deque()
        self._open = True
        self._refusals = 0  # in a row, of the kernel, to let descriptors pass
        loop.add(sock.fileno(), READ, self._ready)

    def feed(self, data: bytes) -> None:
        """Handle bytes that somebody else has already read from the socket."""
        if data:
            self._received(data, [])

    def send(self, text: dict[str, Any], fds: Sequence[int] = (), give: bool = False) -> None:
        """Send now or as soon as there is room; the descriptors must stay open until then. `give`: they are ours, and
        are closed once they are sent, or cannot be."""
        if not self._open:
            if give:
                close_all(fds)
            return
        self._out.append((memoryview(encode(text, fds)), list(fds), give))
        self._flush()

    def close(self) -> None:
        """Let go of the socket and of descriptors that no message has taken. Idempotent."""
        if self._open:
            self._stop()
            self._sock.close()

    def _stop(self) -> None:
        self._open = False
        self._loop.remove(self._sock.fileno())
        self._reader.close()
        self._drop_output()

    def _drop_output(self) -> None:
        for _, fds, given in self._out:
            if given:
                close_all(fds)
        self._out.clear()

    def _trouble(self, lost: bool, why: str) -> None:
        if self._open:
            self._stop()
            try:
                self._on_trouble(lost, why)
            finally:
                # Not earlier: who sees our end takes us for dead, or sees to it, unless it has been killed by now.
                self._sock.close()

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if not self._open or not events & ~WRITE:
            return
        try:
            data, fds = receive_with_descriptors(self._sock, 1 << 18)
        except BlockingIOError:
            return
        except PeerError as error:
            return self._trouble(False, str(error))
        except OSError as error:
            return self._trouble(True, f"the connection to the other side broke: {error.strerror}")
        if not data:
            return self._trouble(True, "the other side went away")
        self._received(data, fds)

    def _received(self, data: bytes, fds: list[int]) -> None:
        while True:
            try:
                messages = deque(self._reader.feed(data, fds))
            except PeerError as error:
                return self._trouble(False, str(error))
            if not messages:
                return
            try:
                while messages and self._open:
                    self._on_message(messages.popleft())
            finally:
                for message in messages:
                    for fd in message.fds:
                        os.close(fd)
            if not self._open:
                return
            # Garbage behind good messages is told now.
            data, fds = b"", []

    def _flush_again(self) -> None:
        if self._open:
            self._flush()

    def _flush(self) -> None:
        while self._out:
            data, fds, given = self._out[0]
            try:
                sent = send_with_descriptors(self._sock, data, fds)
            except BlockingIOError:
                break
            except (BrokenPipeError, ConnectionResetError):
                # It has closed; what it said before, perhaps why, is still to be read, and the end after that.
                self._drop_output()
                break
            except OSError as error:
                # Too many descriptors of this user are in flight: a state of the system, which passes.
                passing = error.errno == errno.ETOOMANYREFS
                self._refusals += passing
                if not passing or self._refusals > _MOST_REFUSALS:
                    hint = "; raise the limit on open files (LimitNOFILE=)" if passing else ""
                    return self._trouble(False, f"cannot send to the other side: {error.strerror}{hint}")
                self._loop.modify(self._sock.fileno(), READ)
                self._loop.call_later(_AGAIN, self._flush_again)
                return
            self._refusals = 0
            if given:
                close_all(fds)
            if sent == len(data):
                self._out.popleft()
            else:
                self._out[0] = (data[sent:], [], False)
        self._loop.modify(self._sock.fileno(), READ | WRITE if self._out else READ)
