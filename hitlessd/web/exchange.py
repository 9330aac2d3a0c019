"""HTTP/1 as main's little server speaks it: requests out of bytes, answers into bytes. No I/O.

Only whole requests are handed on, so what a client may send has limits, and whoever exceeds them is refused.
"""

from __future__ import annotations

import time

from hitlessd.dataclass import dataclass
from hitlessd.http import heads
from hitlessd.http.body import Body
from hitlessd.http.grammar import CHUNKED, LENGTH, MAX_HEAD, NONE, Refused
from hitlessd.web.message import Reply, Request

__all__ = ["BODY_LIMIT", "CONTINUE", "INPUT_LIMIT", "Asked", "Inbox", "chunk", "feed_head", "refusal", "rendered"]

BODY_LIMIT = 64 << 10  # bytes, with the framing of chunks
INPUT_LIMIT = MAX_HEAD + BODY_LIMIT  # bytes that wait to become a request, at most
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_REASONS = {
    200: "OK",
    204: "No Content",
    301: "Moved Permanently",
    302: "Found",
    303: "See Other",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
#: Statuses whose answers have no body (RFC 9110 section 6.4.1).
_BODILESS = (204, 304)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and what decides about the form of its answer. HEAD is a GET whose answer loses its body here."""

    request: Request
    bodiless: bool  # it was HEAD
    version: int  # 10 or 11
    keep_alive: bool  # the client wants to go on


class Inbox:
    """What a client has sent and nobody has taken yet."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.expects = False  # the client waits for 100 (Continue)
        self._head: heads.Request | None = None
        self._at = 0  # where its body begins
        self._body = Body(NONE)
        self._taken = 0  # bytes of the body that are there

    def next(self) -> Asked | None:
        """Take the next request, None if it is not whole yet. Raises Refused, after which nothing can be read."""
        if self._head is None and not self._begin():
            return None
        self._taken += self._body.take(self.data[self._at + self._taken :])
        if self._taken > BODY_LIMIT:
            raise Refused(413, f"a body of more than {BODY_LIMIT} bytes")
        if not self._body.done:
            return None
        head, self._head = self._head, None
        assert head is not None
        body = bytes(self.data[self._at : self._at + self._taken])
        del self.data[: self._at + self._taken]
        self.expects = False
        return _asked(head, _dechunked(body) if head.framing == CHUNKED else body)

    def _begin(self) -> bool:
        self._at = heads.head_end(self.data, 0) if self.data else 0
        if not self._at:
            return False
        head = heads.fresh_request(bytes(self.data[: self._at]))
        if head.framing == LENGTH and head.length > BODY_LIMIT:
            raise Refused(413, f"a body of more than {BODY_LIMIT} bytes")
        self._head, self._body, self._taken = head, Body(head.framing, head.length), 0
        self.expects = head.expect and len(self.data) == self._at
        return True


def _asked(head: heads.Request, body: bytes) -> Asked:
    headers = tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in head.fields)
    method = head.method.decode("latin-1")
    # An absolute target names us; what is asked for is behind that (RFC 9112 section 3.2.2).
    target = head.target if head.target.startswith(b"/") else head.path + (b"?" + head.query if head.query else b"")
    request = Request("GET" if method == "HEAD" else method, target.decode("latin-1"), headers, body)
    return Asked(request, method == "HEAD", head.version, head.keep_alive)


def _dechunked(data: bytes) -> bytes:
    """The content of chunks that were found sound."""
    pieces: list[bytes] = []
    at = 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end].partition(b";")[0], 16)
        if not size:
            return b"".join(pieces)
        pieces.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


def _date() -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())


def rendered(reply: Reply, asked: Asked | None, keep: bool) -> tuple[bytes, bytes]:
    """Head and body of an answer. `keep`: the connection goes on. `asked` None: to what was no request."""
    lines = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Unknown')}", f"date: {_date()}"]
    body = reply.body
    if reply.status in _BODILESS:
        body = b""
    else:
        lines += [f"content-type: {reply.content_type}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in reply.headers]
    if not keep:
        lines.append("connection: close")
    elif asked and asked.version == 10:
        lines.append("connection: keep-alive")
    head = _head(lines)
    return head, b"" if asked and asked.bodiless else body


def feed_head(asked: Asked) -> bytes:
    """What stands before the events. A client of HTTP/1.0 knows no chunks."""
    lines = [f"HTTP/1.1 200 {_REASONS[200]}", f"date: {_date()}"]
    lines += ["content-type: text/event-stream; charset=utf-8", "cache-control: no-store", "connection: close"]
    if asked.version == 11:
        lines.append("transfer-encoding: chunked")
    return _head(lines)


def chunk(text: str, asked: Asked) -> bytes:
    """Some events, as they are sent."""
    data = text.encode("utf-8", "replace")
    return b"%x\r\n%b\r\n" % (len(data), data) if asked.version == 11 else data


def refusal(status: int, why: str) -> Reply:
    """An answer that is a sentence."""
    return Reply(status, f"{why}\n".encode("utf-8", "replace"))


def _head(lines: list[str]) -> bytes:
    # Nothing that somebody quotes in a header may end its line.
    safe = [line.replace("\r", " ").replace("\n", " ") for line in lines]
    return "\r\n".join([*safe, "", ""]).encode("latin-1", "replace")
