"""What an HTTP connection has besides what every connection has, as a serial form, and back (see serial.py).

Heads travel as they came and are read again; of a body it is the counter that travels. Times are ages in seconds.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from hitlessd.errors import PeerError
from hitlessd.http.body import NOTHING, Body
from hitlessd.http.heads import Refused, parse_request, parse_response
from hitlessd.worker.connection import State
from hitlessd.worker.exchange import Exchange
from hitlessd.worker.http import HttpConnection

__all__ = ["check_http", "http_form", "restore_http"]

_TIMES = ("began_at", "requested_at", "answered_at")
_FIELDS = ("status", "first", "keep", "sent", "reused", "surplus", "up_at", "down_at", "cookie_letters")
_BYTES = ("buffer", "reply", "outgoing")


def http_form(conn: HttpConnection, data: bool = True) -> dict[str, Any]:
    """The form; `data` False leaves out what is buffered, and the heads."""
    now = conn.worker.now
    form: dict[str, Any] = {"exchanges": conn.exchanges, "given": conn.given, "began": now - conn.began_at}
    if data:
        for name in _BYTES:
            if value := getattr(conn, name):
                form[name] = _text(value)
    if conn.tunnel:
        form["tunnel"] = True
    if conn.server is not None:
        form["uses"] = conn.server.uses
    exchange = conn.exchange
    if exchange is None:
        return form
    told: dict[str, Any] = {name: getattr(exchange, name) for name in _FIELDS}
    for name in _TIMES:
        at = getattr(exchange, name)
        told[name] = now - at if at >= 0 else None
    if data and exchange.request is not None:
        told["request"] = _text(exchange.request.raw)
        if exchange.response is not None:
            told["response"] = _text(exchange.response.raw)
    form["exchange"] = told
    form["up"] = conn.client.body.words()
    if conn.server is not None:
        form["down"] = conn.server.body.words()
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
    client, server = conn.client, conn.server
    client.body = _body(form.get("up"))
    client.tunnel = bool(form.get("tunnel"))
    if server is not None:
        server.body = _body(form.get("down"))
        server.tunnel = client.tunnel
        server.uses = int(form.get("uses", 1))
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
            server.held = client.blocked or over
    elif conn.state is State.TARRYING and conn.dead is None:
        conn.worker.handlers[client.fd] = conn.on_lingering


def _exchange(form: dict[str, Any], now: float) -> Exchange | None:
    told = form.get("exchange")
    if told is None:
        return None
    request = parse_request(_bytes(told["request"])) if "request" in told else None
    exchange = Exchange(request, 0.0, 0.0, False, 0, 0)
    if "response" in told:
        exchange.response = parse_response(_bytes(told["response"]))
    for name in _FIELDS:
        if name in told:
            setattr(exchange, name, type(getattr(exchange, name))(told[name]))
    for name in _TIMES:
        age = told.get(name)
        setattr(exchange, name, -1.0 if age is None else now - float(age))
    return exchange


def _body(words: Any) -> Body:
    return NOTHING if words is None else Body.of(tuple(int(word) for word in words))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
