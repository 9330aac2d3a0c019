"""How clients go from one main process to the next: descriptors, each with a state (JSON) that says what it is.

What is unsent of an answer travels as a descriptor of its own, before its client: it may be larger than what a message
between mains holds.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import socket
from collections.abc import Callable
from typing import Any

from hitlessd.errors import PeerError
from hitlessd.model import StatsPage
from hitlessd.web.client import Client
from hitlessd.web.exchange import INPUT_LIMIT, Asked
from hitlessd.web.message import Grant, Request

__all__ = ["KINDS", "Arrivals", "exported"]

_CLIENT, _OUTPUT = "web", "web-output"
#: What `kind` says in a state of ours.
KINDS = (_CLIENT, _OUTPUT)
_FORMAT = 1
#: Bytes of an answer that a predecessor may leave unsent.
_OUTPUT_LIMIT = 64 << 20


def exported(client: Client, now: float, room: int) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """Take a client's socket away from it; with how many bytes its state has as JSON text, which are `room` at most,
    else nothing is taken. `now` is the loop's time. Raises OSError, nothing being taken then."""
    state = _state(client, now)
    # What it is as text, not before: a byte of a header may become six.
    size = len(json.dumps(state))
    if size > room:
        return [], size
    found: list[tuple[int, dict[str, Any]]] = []
    if client.output:
        with memoryview(client.output) as view:
            found.append((_write(view[client.sent :]), {"kind": _OUTPUT}))
    return [*found, (client.sock.detach(), state)], size


class Arrivals:
    """Makes clients of what exported() gave, in its order. `page_of` finds the page of a proxy, None if it has none."""

    def __init__(self, page_of: Callable[[str], StatsPage | None]) -> None:
        self._page_of = page_of
        self._rest = b""  # what is unsent for the client that comes next

    def take(self, fd: int, state: dict[str, Any], now: float) -> tuple[Client, bool] | None:
        """A client and whether it was being fed; None for a part of one. Owns `fd`. Raises PeerError, `fd` closed."""
        try:
            if state.get("kind") == _OUTPUT:
                self._rest = _read(fd)
                return None
            rest, self._rest = self._rest, b""
            sock = socket.socket(fileno=fd)
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise PeerError(f"cannot take over a web client: {error}") from None
        try:
            sock.setblocking(False)
            client = _restored(sock, state, now, self._page_of)
            client.output += rest
            return client, state["feeding"] is True
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            sock.close()
            raise PeerError(f"cannot take over a web client: {type(error).__name__}: {error}") from None


def _state(client: Client, now: float) -> dict[str, Any]:
    asked, grant = client.asked, client.grant
    return {
        "kind": _CLIENT,
        "format": _FORMAT,
        "service": grant.service,
        "proxy": grant.proxy,
        "admin": grant.admin,
        "peer": grant.peer,
        "input": _text(client.inbox.data),
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
        "feeding": client.feed is not None,
        "once": client.once,
        "used": client.used,
        "ended": client.ended,
        "closing": client.closing,
        "waited": max(0.0, now - client.since),
    }


def _restored(
    sock: socket.socket, state: dict[str, Any], now: float, page_of: Callable[[str], StatsPage | None]
) -> Client:
    """Raises KeyError, TypeError, ValueError."""
    if state["format"] != _FORMAT or state["service"] not in ("metrics", "page"):
        raise ValueError(f"unknown format {state['format']!r}, or service")
    proxy = str(state["proxy"])
    page = page_of(proxy) if state["service"] == "page" else None
    # As where a worker passes one on: what the configuration grants no more is not granted.
    admin = state["admin"] is True and page is not None and page.admin is not None
    grant = Grant(state["service"], page, proxy, admin, str(state["peer"]))
    client = Client(sock, grant, now - float(state["waited"]), _bytes(state["input"]), state["once"] is True)
    client.used, client.ended, client.closing = (state[name] is True for name in ("used", "ended", "closing"))
    if asked := state["asked"]:
        headers = tuple((str(name), str(value)) for name, value in asked["headers"])
        request = Request(str(asked["method"]), str(asked["target"]), headers, _bytes(asked["body"]))
        version = int(asked["version"])
        client.asked = Asked(request, asked["bodiless"] is True, version, asked["keep_alive"] is True)
    return client


def _text(data: bytes | bytearray) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _bytes(text: Any) -> bytes:
    data = binascii.a2b_base64(text, strict_mode=True)
    if len(data) > INPUT_LIMIT:
        raise ValueError(f"{len(data)} bytes where {INPUT_LIMIT} are allowed")
    return data


def _write(data: memoryview) -> int:
    fd = os.memfd_create("hitlessd-answer", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read(fd: int) -> bytes:
    """Takes the descriptor over, where it is one."""
    with open(fd, "rb") as file:
        if os.fstat(fd).st_size > _OUTPUT_LIMIT:
            raise ValueError("an answer is too large")
        file.seek(0)  # whoever read it before shares the position
        return file.read()
