"""A client of main's web server: its buffers, and what it waits for."""

from __future__ import annotations

import socket

from hitlessd.web.exchange import Asked, Inbox
from hitlessd.web.message import Feed, Grant

__all__ = ["Client"]

# Seconds
REQUEST_PATIENCE = 10.0  # for a whole request, from its first byte
IDLE_PATIENCE = 60.0  # between two requests
ANSWER_PATIENCE = 30.0  # for an answer that comes later
UNREAD_PATIENCE = 10.0  # for a client that does not read
LINGER_PATIENCE = 2.0  # for a client to see the end


class Client:
    """One connection. `since` is the loop time at which it began to wait for what it waits for now."""

    def __init__(self, sock: socket.socket, grant: Grant, now: float, already: bytes = b"", once: bool = False) -> None:
        """`once`: it gets one answer."""
        self.sock = sock
        self.grant = grant
        self.inbox = Inbox(already)
        self.once = once
        self.output = bytearray()
        self.sent = 0  # of `output`
        self.asked: Asked | None = None  # what is being answered
        self.feed: Feed | None = None
        self.heard = now  # when its feed has last said something
        self.used = False  # has had an answer
        self.ended = False  # has sent all that it will
        self.closing = False  # what is in `output` is the last
        self.lingering = False  # has been sent all, and is waited for
        self.alive = True
        self.since = now
        self.events = 0  # what the loop waits for

    def __str__(self) -> str:
        return f"web client {self.grant.peer or 'of a unix socket'}"

    @property
    def unsent(self) -> int:
        """Bytes."""
        return len(self.output) - self.sent

    @property
    def idle(self) -> bool:
        """Nothing is lost if it is sent away."""
        return self.lingering or not (self.output or self.asked or self.inbox.data)

    @property
    def engaged(self) -> bool:
        """It asks or hears something that has an end."""
        return not self.idle and self.feed is None

    @property
    def due(self) -> float:
        """Loop time at which it has waited for too long."""
        if self.output:
            return self.since + UNREAD_PATIENCE
        if self.feed:
            return float("inf")
        if self.lingering:
            return self.since + LINGER_PATIENCE
        if self.asked:
            return self.since + ANSWER_PATIENCE
        return self.since + (IDLE_PATIENCE if self.used and not self.inbox.data else REQUEST_PATIENCE)
