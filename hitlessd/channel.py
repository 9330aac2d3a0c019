"""The codec of the channel between main and a worker: one JSON object a datagram on an AF_UNIX SOCK_SEQPACKET pair."""

from __future__ import annotations

import json
import socket
from typing import Any

from hitlessd.errors import PeerError

__all__ = ["LONGEST", "receive", "send"]

#: Bytes a message may have; well below the default SO_SNDBUF, so that several fit in flight.
LONGEST = 65536


def send(sock: socket.socket, message: dict[str, Any]) -> None:
    """Send one message. Raises BlockingIOError when the channel is full, ValueError when the message is too long."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > LONGEST:
        raise ValueError(f"cannot send a message of {len(data)} bytes: the limit is {LONGEST}")
    sock.send(data, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> dict[str, Any] | None:
    """The next message, None at the end of the channel.

    Raises BlockingIOError when there is none yet, PeerError when it is not one JSON object of a sound length.
    """
    try:
        data = sock.recv(LONGEST + 1)
    except ConnectionResetError:
        return None
    if not data:
        return None
    if len(data) > LONGEST:
        raise PeerError("cannot read the channel: the message is too long")
    try:
        message = json.loads(data)
    except ValueError as error:
        raise PeerError(f"cannot read the channel: {error}") from None
    if not isinstance(message, dict):
        raise PeerError("cannot read the channel: the message is not an object")
    return message
