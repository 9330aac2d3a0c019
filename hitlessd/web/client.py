"""A client of main's web server: its buffers, what it waits for, and the form in which it moves to a successor."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Callable
from typing import Any

from hitlessd.model import StatsPage
from hitlessd.web.exchange import INPUT_LIMIT, Asked, Inbox
from hitlessd.web.message import Feed, Grant, Request

__all__ = ["KIND", "OUTPUT_KIND", "Client", "read_output", "restored", "write_output"]

#: What a state says it is, beside those of other servers: a client, and the unsent part of its answer.
KIND, OUTPUT_KIND = "web", "web-output"
_FORMAT = 1
#: Bytes of an answer that a predecessor may leave unsent.
_OUTPUT_LIMIT = 64 << 20

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
    def size(self) -> int:
        """Bytes that state() has to carry, about."""
        headers = sum(len(name) + len(value) + 8 for name, value in self.asked.request.headers) if self.asked else 0
        body = len(self.asked.request.target) + len(self.asked.request.body) if self.asked else 0
        return len(self.inbox.data) + headers + body + 1024

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

    def state(self, now: float) -> dict[str, Any]:
        """What restored() needs to go on in another process (JSON), but for `output`."""
        asked = self.asked
        return {
            "kind": KIND,
            "format": _FORMAT,
            "service": self.grant.service,
            "proxy": self.grant.proxy,
            "admin": self.grant.admin,
            "peer": self.grant.peer,
            "input": _text(self.inbox.data),
            "asked": None
            if asked is None
            else {
                "method": asked.request.method,
                "target": asked.request.target,
                "headers": [list(pair) for pair in asked.request.headers],
                "body": _text(asked.request.body),
                "bodiless": asked.bodiless,
                "version": asked.version,
                "keep_alive": asked.keep_alive,
            },
            "feeding": self.feed is not None,
            "once": self.once,
            "used": self.used,
            "ended": self.ended,
            "closing": self.closing,
            "waited": max(0.0, now - self.since),
        }


def _text(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: Any) -> bytes:
    data = base64.b64decode(text, validate=True)
    if len(data) > INPUT_LIMIT:
        raise ValueError(f"{len(data)} bytes where {INPUT_LIMIT} are allowed")
    return data


def restored(
    sock: socket.socket, state: dict[str, Any], now: float, page_of: Callable[[str], StatsPage | None]
) -> tuple[Client, bool]:
    """A client from its exported state, and whether it was being fed. Raises KeyError, TypeError, ValueError."""
    if state["format"] != _FORMAT or state["service"] not in ("metrics", "page"):
        raise ValueError(f"unknown format {state['format']!r}, or service")
    proxy = str(state["proxy"])
    page = page_of(proxy) if state["service"] == "page" else None
    grant = Grant(state["service"], page, proxy, state["admin"] is True, str(state["peer"]))
    client = Client(sock, grant, now - float(state["waited"]), _bytes(state["input"]), state["once"] is True)
    client.used, client.ended, client.closing = (state[name] is True for name in ("used", "ended", "closing"))
    if asked := state["asked"]:
        headers = tuple((str(name), str(value)) for name, value in asked["headers"])
        request = Request(str(asked["method"]), str(asked["target"]), headers, _bytes(asked["body"]))
        version = int(asked["version"])
        client.asked = Asked(request, asked["bodiless"] is True, version, asked["keep_alive"] is True)
    return client, state["feeding"] is True


def write_output(data: memoryview) -> int:
    """A descriptor with the unsent part of an answer, which may be larger than what a message between mains holds."""
    fd = os.memfd_create("hitlessd-answer", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_output(fd: int) -> bytes:
    """Takes the descriptor over. Raises OSError, ValueError."""
    with open(fd, "rb") as file:
        if os.fstat(fd).st_size > _OUTPUT_LIMIT:
            raise ValueError("an answer is too large")
        file.seek(0)  # whoever read it before shares the position
        return file.read()
