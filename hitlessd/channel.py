"""The codec of the channel between main and a worker: one JSON object a datagram on an AF_UNIX SOCK_SEQPACKET pair."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

from hitlessd.descriptors import close_all, receive_with_descriptors, send_with_descriptors
from hitlessd.errors import PeerError

__all__ = ["LONGEST", "receive", "receive_with", "send"]

#: Bytes a message may have; well below the default SO_SNDBUF, so that several fit in flight.
LONGEST = 65536


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message. Raises BlockingIOError when the channel is full, ValueError when the message is too long."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > LONGEST:
        raise ValueError(f"cannot send a message of {len(data)} bytes: the limit is {LONGEST}")
    send_with_descriptors(sock, data, fds)


def receive(sock: socket.socket) -> dict[str, Any] | None:
    """The next message, None at the end of the channel; descriptors that came with it are closed.

    Raises BlockingIOError when there is none yet, PeerError when it is not one JSON object of a sound length.
    """
    message, fds = receive_with(sock)
    close_all(fds)
    return message


def receive_with(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """As receive(), with the descriptors, which are the caller's."""
    try:
        data, fds = receive_with_descriptors(sock, LONGEST + 1)
    except ConnectionResetError:
        # It died with something of ours unread, which is told once, before what it had sent: that is still to be read.
        try:
            data, fds = receive_with_descriptors(sock, LONGEST + 1)
        except ConnectionResetError:
            return None, []
    if not data:
        return None, fds
    try:
        if len(data) > LONGEST:
            raise PeerError("cannot read the channel: the message is too long")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise PeerError("cannot read the channel: the message is not an object")
    except ValueError as error:
        close_all(fds)
        raise PeerError(f"cannot read the channel: {error}") from None
    except PeerError:
        close_all(fds)
        raise
    return message, fds
