"""What an HTTP connection has besides what every connection has, as a serial form, and back (see serial.py).

Heads travel as they came and are read again; of a body it is the counter that travels. Times are ages in seconds.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

from hitlessd.errors import PeerError
from hitlessd.http.body import Body
from hitlessd.http.grammar import CHUNKED, LENGTH, Refused
from hitlessd.http.heads import parse_request, parse_response
from hitlessd.worker.connection import State
from hitlessd.worker.http.connection import HttpConnection
from hitlessd.worker.http.exchange import Exchange
from hitlessd.worker.http.side import NOTHING
from hitlessd.worker.http.state import HttpState

__all__ = ["check_http", "count_on", "http_form", "restore_http"]

_TIMES = ("since", "began_at", "requested_at", "answered_at")
#: Fields of an exchange and what they are when nothing is said of them: a slot of the book has little room.
_FIELDS: dict[str, Any] = {
    "status": -1, "first": False, "keep": True, "sent": True, "reused": False, "surplus": False, "up_at": 0,
    "down_at": 0, "cookie_state": "", "dated": False,
}  # fmt: skip
#: Bytes of a parked request's target that go on, for the log.
_LONGEST_TARGET = 100
_BYTES = ("buffer", "reply", "outgoing")


def http_form(conn: HttpState, data: bool = True, target: int = _LONGEST_TARGET) -> dict[str, Any]:
    """The form; `data` False leaves out what is buffered, and the heads but for so many bytes of the target."""
    now = conn.worker.now
    digits = 6 if data else 3
    form: dict[str, Any] = {
        "exchanges": conn.exchanges,
        "given": conn.given,
        "began": round(now - conn.began_at, digits),
    }
    if conn.idle_since != conn.began_at:
        form["idle"] = round(now - conn.idle_since, digits)
    if data:
        for name in _BYTES:
            if value := getattr(conn, name):
                form[name] = _text(value)
    if conn.tunnel:
        form["tunnel"] = True
    if conn.server is not None:
        form["uses"] = conn.server.uses
        if conn.server.shared:
            form["shared"] = True
    exchange = conn.exchange
    if exchange is None:
        return form
    told: dict[str, Any] = {n: getattr(exchange, n) for n, usual in _FIELDS.items() if getattr(exchange, n) != usual}
    for name in _TIMES:
        at = getattr(exchange, name)
        if at >= 0:
            told[name] = round(now - at, digits)
    request, response = exchange.request, exchange.response
    if request is not None and data:
        told["request"] = _text(request.raw)
        if response is not None:
            told["response"] = _text(response.raw)
    elif request is not None:
        # As much as is needed of those that are on their way.
        path = request.target[:target].decode() if request.target.startswith(b"/") else "/"
        told["asked"] = [request.method.decode(), path, request.version, int(request.keep_alive)]
        if response is not None:
            length = response.length if response.framing == LENGTH else -1
            told["answered"] = [response.status, length, int(response.keep_alive)]
    if exchange.pinned is not None:
        told["pinned"] = exchange.pinned.name
    if data and conn.server is None and conn.client.out is not None:
        form["last_words"] = _text(bytes(conn.client.out))
    form["exchange"] = told
    for name, side in (("up", conn.client), ("down", conn.server)):
        if side is not None and side.body is not NOTHING:
            form[name] = _words(side.body)
    return form


def check_http(form: dict[str, Any]) -> None:
    """Raises PeerError when it cannot be one."""
    try:
        exchange = _exchange(form, 0.0)
        for name in _BYTES:
            _bytes(form.get(name, ""))
        for name in ("up", "down"):
            _body(form.get(name))
        if "exchange" in form and exchange is None:
            raise ValueError("an exchange without a beginning")
        int(form.get("exchanges", 0)), int(form.get("given", 0)), float(form.get("began", 0))
    except (TypeError, ValueError, KeyError, AttributeError, Refused, binascii.Error) as error:
        raise PeerError(f"cannot read the serial form of an HTTP connection: {error}") from None


def restore_http(conn: HttpConnection, form: dict[str, Any], now: float) -> None:
    """Make the connection what the form says; its sides exist already."""
    conn.exchanges, conn.given = int(form.get("exchanges", 0)), int(form.get("given", 0))
    conn.began_at = now - float(form.get("began", 0.0))
    conn.buffer, conn.reply, conn.outgoing = (_bytes(form.get(name, "")) for name in _BYTES)
    conn.exchange = _exchange(form, now)
    conn.idle_since = now - float(form.get("idle", 0.0))
    if conn.exchange is not None and "pinned" in form["exchange"]:
        pinned = form["exchange"]["pinned"]
        conn.exchange.pinned = next((server for server in conn.backend.servers if server.name == pinned), None)
    client, server, target = conn.client, conn.server, conn.target
    if target is not None and target.pool is not None:
        target.pool.expect()
    if conn.frontend.retired and conn.exchange is not None:
        conn.exchange.keep = False
    client.body = _body(form.get("up"))
    client.tunnel = bool(form.get("tunnel"))
    if last_words := form.get("last_words"):
        client.out = _bytes(last_words)
    client.blocked = client.blocked or client.out is not None
    if server is not None:
        server.body = _body(form.get("down"))
        server.tunnel = client.tunnel
        server.uses = int(form.get("uses", 1))
        server.shared = conn.shared or bool(form.get("shared"))
    _go_on(conn)


def _go_on(conn: HttpConnection) -> None:
    """What is to be read, and what is to be done first. No I/O yet: that is the next turn's."""
    client, server = conn.client, conn.server
    if conn.state is State.WAITING:
        client.held = bool(conn.buffer)
        if client.held:
            conn.worker.ready.append(client)
    elif conn.state is State.EXCHANGING and conn.exchange is not None:
        client.held = client.body.done or server is None or server.blocked
        if server is not None:
            over = conn.exchange.response is not None and server.body.done
            if over and client.body.done and not (client.blocked or server.blocked):
                client.blocked = True  # its worker had died just then: the next look at it ends the exchange
            server.held = client.blocked or over
    elif conn.state is State.TARRYING and conn.dead is None:
        conn.worker.handlers[client.fd] = conn.on_lingering


def count_on(form: dict[str, Any], up: int, down: int) -> None:
    """Bring a form up to date that was written before so many more bytes came from the client and from the server.
    Raises ValueError when that is more than its bodies have."""
    if form.get("tunnel"):
        return
    for name, size in (("up", up), ("down", down)):
        body = _body(form.get(name))
        if size and (body.kind == CHUNKED or size > body.raw):
            raise ValueError("bytes that belong to no body")
        if size:
            body.skip(size)
        form[name] = _words(body)
    form["given"] = int(form.get("given", 0)) + down


def _exchange(form: dict[str, Any], now: float) -> Exchange | None:
    told = form.get("exchange")
    if told is None:
        return None
    head = _head(told, "request", "asked", _asked)
    request = parse_request(head) if head else None
    exchange = Exchange(request, 0.0, 0.0, 0.0, False, 0, 0)
    head = (
        _bytes(told["response"]) if "response" in told else _answered(*told["answered"]) if "answered" in told else b""
    )
    if head:
        exchange.response = parse_response(head)
    for name, usual in _FIELDS.items():
        setattr(exchange, name, type(usual)(told.get(name, usual)))
    for name in _TIMES:
        age = told.get(name)
        setattr(exchange, name, -1.0 if age is None else now - float(age))
    return exchange


def _words(body: Body) -> list[int]:
    """Without the zeros at its end."""
    words = list(body.words())
    while len(words) > 1 and not words[-1]:
        del words[-1]
    return words


def _body(words: Any) -> Body:
    if words is None:
        return NOTHING
    told = [int(word) for word in words]
    return Body.of((*told, *[0] * (len(NOTHING.words()) - len(told))))


def _head(told: dict[str, Any], whole: str, short: str, make: Callable[..., bytes]) -> bytes:
    if whole in told:
        return _bytes(told[whole])
    return make(*told[short]) if short in told else b""


def _asked(method: str, target: str, version: int, keep: int) -> bytes:
    """A head that stands for one that is on its way."""
    close = "" if keep or version < 11 else "Connection: close\r\n"
    host = "-:1" if method == "CONNECT" else "-"
    target = host if method == "CONNECT" else target
    return f"{method} {target} HTTP/1.{version % 10}\r\nHost: {host}\r\n{close}\r\n".encode()


def _answered(status: int, length: int, keep: int) -> bytes:
    """Likewise."""
    size = f"Content-Length: {length}\r\n" if length >= 0 else ""
    close = "Connection: Upgrade\r\nUpgrade: -\r\n" if status == 101 else "" if keep else "Connection: close\r\n"
    return f"HTTP/1.1 {status} -\r\n{size}{close}\r\n".encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
