"""One HTTP/1 message as three programs read it: hitlessd, h11, and llhttp through httptools.

Each reader is given bytes that begin with a message, and says where it ends and what it is, so that pipelined messages
are compared one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import h11
import httptools

from hitlessd.http.body import Body
from hitlessd.http.grammar import CHUNKED, CLOSE, LENGTH, NONE, Refused
from hitlessd.http.heads import head_end, parse_request, parse_response

__all__ = ["Outcome", "by_h11", "by_httptools", "by_us", "in_pieces", "plain"]

_ROOM = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """What a reader makes of some bytes. `end`: where the message ends; -1: with the connection."""

    verdict: str  # "message", "refused", "incomplete"
    start: tuple[bytes | int, ...] = ()  # method, target, version; or status, version
    fields: tuple[tuple[bytes, bytes], ...] = ()  # names in lower case
    body: bytes = b""
    end: int = 0
    status: int = 0  # of a refusal
    last: bool = False  # nothing may follow on this connection
    tunnel: bool = False


REFUSED = Outcome("refused")
INCOMPLETE = Outcome("incomplete")


def plain(raw: bytes) -> bytes:
    """What sound chunks hold."""
    parts: list[bytes] = []
    at = 0
    while True:
        line = raw.index(b"\r\n", at)
        size = int(raw[at:line].partition(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(raw[line + 2 : line + 2 + size])
        at = line + 4 + size


def by_us(data: bytes, response: bool, method: bytes = b"GET") -> Outcome:
    """As hitlessd reads it, whole."""
    try:
        end = head_end(data, 0, response)
        if not end:
            return INCOMPLETE
        start: tuple[bytes | int, ...]
        if response:
            answer = parse_response(data[:end])
            start = (answer.status, answer.version)
            kind, length = answer.body_for(method)
            fields, last, tunnel = answer.fields, not answer.keep_alive or kind == CLOSE, answer.status == 101
        else:
            request = parse_request(data[:end])
            start = (request.method, request.target, request.version)
            kind, length = request.framing, request.length
            fields, last, tunnel = request.fields, not request.keep_alive, request.connect
        body = Body(kind, length)
        size = body.take(data[end:])
        if not body.done and kind != CLOSE:
            return INCOMPLETE
    except Refused as refused:
        return Outcome("refused", status=refused.status)
    raw = data[end : end + size]
    assert kind != NONE or not raw
    assert kind != LENGTH or len(raw) == length
    content = plain(raw) if kind == CHUNKED else raw
    assert body.payload == len(content)
    lower = tuple((name.lower(), value) for name, value in fields)
    return Outcome("message", start, lower, content, -1 if kind == CLOSE else end + size, 0, last, tunnel)


def in_pieces(pieces: Iterable[bytes], response: bool) -> Outcome:
    """As hitlessd reads it when it arrives in pieces; between two of them the body moves to another process."""
    buffer = bytearray()
    whole = b"".join(pieces := list(pieces))
    try:
        end = 0
        while not end:
            if not pieces:
                return INCOMPLETE
            buffer += pieces.pop(0)
            end = head_end(buffer, 0, response)
        head = bytes(buffer[:end])
        kind, length = parse_response(head).body_for(b"GET") if response else _framing(head)
        body = Body(kind, length)
        position = end
        pieces.insert(0, bytes(buffer[end:]))
        for piece in pieces:
            body = Body.of(body.words())
            if body.done:
                break
            if 0 < len(piece) <= body.raw:
                body.skip(len(piece))
                position += len(piece)
            else:
                position += body.take(piece)
    except Refused as refused:
        return Outcome("refused", status=refused.status)
    if not body.done and kind != CLOSE:
        return INCOMPLETE
    outcome = by_us(whole[:position], response)
    assert outcome.verdict == "message" and outcome.end in (-1, position) and body.payload == len(outcome.body)
    return outcome


def _framing(head: bytes) -> tuple[int, int]:
    request = parse_request(head)
    return request.framing, request.length


def by_h11(data: bytes, response: bool) -> Outcome:
    """As h11 reads it."""
    conn = h11.Connection(h11.CLIENT if response else h11.SERVER, max_incomplete_event_size=_ROOM)
    if response:
        conn.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
        conn.send(h11.EndOfMessage())
    start: tuple[bytes | int, ...] = ()
    fields: tuple[tuple[bytes, bytes], ...] = ()
    body = b""
    closing = False
    try:
        conn.receive_data(data)
        while True:
            event = conn.next_event()
            if event is h11.NEED_DATA:
                if response and start and not closing:
                    conn.receive_data(b"")  # it may end with the connection
                    closing = True
                    continue
                return INCOMPLETE
            if isinstance(event, h11.InformationalResponse):
                start = (event.status_code, _version(event.http_version))
                fields = _pairs(event.headers)
                end = data.index(b"\r\n\r\n") + 4
                return Outcome("message", start, fields, b"", end)
            if isinstance(event, h11.Request):
                start = (event.method, event.target, _version(event.http_version))
                fields = _pairs(event.headers)
            elif isinstance(event, h11.Response):
                start = (event.status_code, _version(event.http_version))
                fields = _pairs(event.headers)
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                rest = len(conn.trailing_data[0])
                return Outcome("message", start, fields, body, -1 if closing else len(data) - rest)
            else:
                return INCOMPLETE
    except h11.RemoteProtocolError:
        return INCOMPLETE if closing else REFUSED


class _Calls:
    """What llhttp calls back."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.headers = self.done = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.headers:  # trailers come this way, too
            self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.headers = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.done = True


def by_httptools(data: bytes, response: bool) -> Outcome:
    """As llhttp reads it, a byte at a time, for it does not tell where a message ends."""
    calls = _Calls()
    parser = httptools.HttpResponseParser(calls) if response else httptools.HttpRequestParser(calls)
    end = 0
    try:
        for at in range(len(data)):
            try:
                parser.feed_data(data[at : at + 1])
            except httptools.HttpParserUpgrade:
                calls.done = True
            if calls.done:
                end = at + 1
                break
    except httptools.HttpParserError:
        return REFUSED
    if not calls.headers:
        return INCOMPLETE
    start: tuple[bytes | int, ...] = (_version(parser.get_http_version().encode()),)
    if isinstance(parser, httptools.HttpRequestParser):
        start = (parser.get_method(), calls.url, *start)
    else:
        start = (parser.get_status_code(), *start)
    if not end:
        framed = any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in calls.fields)
        if not response or framed:
            return INCOMPLETE
        end = -1
    return Outcome("message", start, _pairs(calls.fields), calls.body, end)


def _version(text: bytes) -> int:
    return int(text.replace(b".", b""))


def _pairs(fields: object) -> tuple[tuple[bytes, bytes], ...]:
    assert hasattr(fields, "__iter__")
    return tuple((bytes(name).lower(), bytes(value).strip(b" \t")) for name, value in fields)
