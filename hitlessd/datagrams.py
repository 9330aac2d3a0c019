"""A connected datagram socket that never waits, and outlives its receiver.

To a connected one, the kernel need not look the receiver up again for each datagram, and Python need not read its
address: that halves what sending costs.
"""

from __future__ import annotations

import array
import contextlib
import errno
import socket
from typing import Any

__all__ = ["Datagrams"]

#: There is no room for it now, or never will be: whoever receives is there.
_NO_ROOM = frozenset({errno.EMSGSIZE, errno.ENOBUFS})


class Datagrams:
    """Opened by the first send(), or before."""

    def __init__(self, family: int, address: Any, buffer: int = 0) -> None:
        """`buffer`: bytes of SO_SNDBUF to ask for, 0 for the system's default."""
        self._family = family
        self._address = address
        self._buffer = buffer
        self.socket: socket.socket | None = None

    def open(self) -> None:
        """Raises OSError for want of descriptors; not when nobody is there."""
        if self.socket is None:
            self.socket = self._made()

    def renew(self) -> None:
        """Look again who is at the path of a unix socket: another one may be, while the old one's socket is open still,
        in a process that its receiver left behind, and takes what nobody will read."""
        if self.socket is not None and self._family == socket.AF_UNIX:
            with contextlib.suppress(OSError):  # the old one is better than none
                self.socket.connect(self._address)

    def send(self, data: bytes) -> int:
        """0, or errno. Raises OSError only for want of descriptors."""
        try:
            self.socket.send(data)  # type: ignore[union-attr]
        except (OSError, AttributeError):
            return self._send_again(data)
        return 0

    def _send_again(self, data: bytes) -> int:
        """What has failed may have met a receiver that is no more, while another one is there."""
        if self.socket is None:
            self.open()
        assert self.socket is not None
        try:
            # A refusal is of an earlier datagram (udp(7)).
            self.socket.send(data)
            return 0
        except OSError as error:
            why = error.errno or errno.EIO
            if why in _NO_ROOM or (self._family != socket.AF_UNIX and why == errno.EAGAIN):
                return why
        try:
            if self._family == socket.AF_UNIX:
                # Another one may be at that path, even if the old one is there still and takes nothing.
                self.socket.connect(self._address)
            else:
                # A new one, because the address of the old one's end may be no more.
                made = self._made()
                self.socket.close()
                self.socket = made
            self.socket.send(data)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def send_descriptor(self, fd: int) -> int:
        """An empty datagram with a descriptor, over a unix socket that send() has opened; 0, or errno."""
        assert self.socket is not None
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            self.socket.sendmsg([], rights)
            return 0
        except OSError:
            pass
        try:
            # What is too large is refused before the kernel looks whether anybody is there, so that send() did not.
            self.socket.connect(self._address)
            self.socket.sendmsg([], rights)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _made(self) -> socket.socket:
        made = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        if self._buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer)
        try:
            made.connect(self._address)
        except OSError:
            pass  # nobody is there yet, or no way leads there: that shows with each datagram
        return made

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None
