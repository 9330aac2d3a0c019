"""Messages with descriptors over unix sockets (SCM_RIGHTS, unix(7)).

socket.send_fds() and recv_fds() ignore their flags, hence sendmsg and recvmsg.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Sequence

from hitlessd.errors import PeerError

__all__ = [
    "MOST",
    "ShortOfDescriptors",
    "close_all",
    "open_descriptors",
    "receive_with_descriptors",
    "send_with_descriptors",
]


class ShortOfDescriptors(PeerError):
    """We have too few left to receive those that came."""


#: Descriptors that the kernel takes in one message (SCM_MAX_FD).
MOST = 253
_FD = array.array("i").itemsize


def send_with_descriptors(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int] = ()) -> int:
    """sendmsg(2) without SIGPIPE; returns the bytes that went out, and the descriptors with the first. Raises OSError.

    ETOOMANYREFS means that too many descriptors of this user are on their way already, in all processes together.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive_with_descriptors(
    sock: socket.socket, size: int, most: int = MOST, flags: int = 0
) -> tuple[bytes, list[int]]:
    """recvmsg(2) with room for `most` descriptors, which arrive close-on-exec. Raises OSError; PeerError when the
    kernel had to drop some, which it does when we are out of descriptors."""
    data, ancillary, result, _ = sock.recvmsg(size, socket.CMSG_SPACE(most * _FD), flags | socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % _FD])
    if result & socket.MSG_CTRUNC:
        close_all(fds)
        raise ShortOfDescriptors(
            "cannot receive descriptors: too few left; raise the limit on open files (LimitNOFILE=)"
        )
    return data, list(fds)


def close_all(fds: Iterable[int]) -> None:
    """Close each."""
    for fd in fds:
        os.close(fd)


def open_descriptors() -> list[int]:
    """The numbers of this process's descriptors, and that of the listing itself, which is closed by now (proc(5))."""
    with os.scandir("/proc/self/fd") as entries:
        return [int(entry.name) for entry in entries]
