"""Heads of requests and responses, read strictly (RFC 9110, RFC 9112).

A head is checked by one regular expression as a whole, and a second one finds the fields that say something about the
connection or the body. What was read is remembered: clients and servers say the same things again and again, so a
Request or Response is shared and must not be changed.
"""

from __future__ import annotations

import re
from functools import cached_property, lru_cache

from hitlessd.http.grammar import (
    CHUNKED,
    CLOSE,
    LENGTH,
    MAX_FIELDS,
    MAX_HEAD,
    MAX_LENGTH,
    NONE,
    TOKEN,
    VALUE,
    Refused,
)

__all__ = [
    "CHUNKED",
    "CLOSE",
    "LENGTH",
    "MAX_HEAD",
    "NONE",
    "Fields",
    "Refused",
    "Request",
    "Response",
    "head_end",
    "parse_request",
    "parse_response",
]

#: Heads that are remembered, of each kind, and the longest such.
_REMEMBERED, _LONGEST = 1024, 2048

_REQUEST = re.compile(rb"(%b+) ([\x21-\x7e]+) HTTP/1\.([01])\r\n((?:%b+:%b*\r\n)*)\r\n" % (TOKEN, TOKEN, VALUE))
_RESPONSE = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: (%b*))?\r\n((?:%b+:%b*\r\n)*)\r\n" % (VALUE, TOKEN, VALUE)
)
_VERSION = re.compile(rb"(?:%b+ [\x21-\x7e]+ )?HTTP/([0-9])\.([0-9])[ \r]" % TOKEN)
_FIELD = re.compile(rb"(%b+):[ \t]*(%b*?)[ \t]*\r\n" % (TOKEN, VALUE))
#: The fields that matter here, wherever they stand.
_OURS = re.compile(
    rb"\r\n(connection|keep-alive|proxy-connection|te|upgrade|http2-settings|content-length|transfer-encoding|host|expect)"
    rb":[ \t]*(%b*)" % VALUE,
    re.IGNORECASE,
)
#: What no head may have, even if the rest is still to come.
_UNSOUND = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n)(?!\Z)")
_DIGITS = re.compile(rb"[0-9]{1,19}")
_TOKENS = re.compile(rb"%b+(?:[ \t]*,[ \t]*%b+)*" % (TOKEN, TOKEN))
_NAME = rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})"
_HOST = re.compile(rb"(?:%b*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?" % _NAME)
_AUTHORITY = re.compile(rb"(?:%b+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}" % _NAME)
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)(?:[/?].*)?", re.IGNORECASE)
#: Connection may not nominate these: removing them would change what the message is, or where it goes.
_NEVER_NOMINATED = frozenset({b"host", b"content-length", b"transfer-encoding", b"trailer", b"expect"})
#: Nor these, which say who the client is or what it may: they are passed on, whatever Connection says.
_END_TO_END = frozenset({b"cookie", b"set-cookie", b"authorization", b"www-authenticate", b"cache-control", b"date",
                         b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-real-ip",
                         b"location", b"content-type", b"content-encoding", b"content-range", b"range"})  # fmt: skip
_OPTIONS = frozenset({b"close", b"keep-alive", b"upgrade", b"te", b"http2-settings"})


def head_end(buffer: bytes, start: int = 0) -> int:
    """Where the head ends, behind its empty line; 0: more of it is needed. `start`: bytes that were looked at before.

    Raises Refused when it can be none, however it goes on.
    """
    at = buffer.find(b"\r\n\r\n", max(0, start - 3))
    if 0 <= at <= MAX_HEAD - 4:
        return at + 4
    if len(buffer) >= MAX_HEAD:
        raise Refused(431, f"its head has more than {MAX_HEAD} bytes")
    if _UNSOUND.search(buffer, max(0, start - 1)):
        raise Refused(400, "a control character, or CR or LF alone, in its head")
    return 0


class Fields:
    """What requests and responses have in common."""

    raw: bytes  # the head as it came
    version: int  # 10 or 11
    framing: int
    length: int  # of a body whose framing is LENGTH
    keep_alive: bool  # its sender goes on with the connection afterwards, unless the other side closes
    upgrade: bool
    forward: bytes  # the head as it is passed on: without what concerns the connection that it came on
    _lines: bytes

    @cached_property
    def fields(self) -> tuple[tuple[bytes, bytes], ...]:
        """Names as they were sent, and values, in order."""
        return tuple(_FIELD.findall(self._lines))

    def values(self, name: bytes) -> list[bytes]:
        """Of all fields of that name, which is in lower case."""
        return [value for field, value in self.fields if field.lower() == name]


class Request(Fields):
    """A request's head. Not to be changed."""

    def __init__(self, raw: bytes, method: bytes, target: bytes, version: int, lines: bytes) -> None:
        self.raw = raw
        self.method = method
        self.target = target
        self.version = version
        self._lines = lines
        self.connect = method == b"CONNECT"
        self.host = b""
        self.expect = False
        self.framing, self.length = NONE, 0
        self.upgrade = False
        self.keep_alive = version > 10
        self.forward = raw
        #: It has no body, and nothing else that must be thought about: passing `forward` on is all.
        self.direct = version > 10 and method != b"HEAD" and not self.connect

    @property
    def path(self) -> bytes:
        """Of the target, without the query; "" for a target that has none."""
        target = self.target
        if not target.startswith(b"/"):
            _, mark, rest = target.partition(b"://")
            at = rest.find(b"/")
            if not mark or at < 0:
                return b""
            target = rest[at:]
        return target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        return self.target.partition(b"?")[2]


class Response(Fields):
    """A response's head. Not to be changed."""

    def __init__(self, raw: bytes, status: int, reason: bytes, version: int, lines: bytes) -> None:
        self.raw = raw
        self.status = status
        self.reason = reason
        self.version = version
        self._lines = lines
        self.framing, self.length = CLOSE, 0
        self.upgrade = False
        self.keep_alive = version > 10
        self.forward = raw
        #: Its length is known, and passing `forward` on is all, unless it answers HEAD.
        self.direct = False

    def body_for(self, method: bytes) -> tuple[int, int]:
        """Framing and length of the body when it answers that method (RFC 9112, 6.3)."""
        status = self.status
        if method == b"HEAD" or status < 200 or status in (204, 304):
            return NONE, 0
        if method == b"CONNECT" and status < 300:
            return NONE, 0
        return self.framing, self.length


def parse_request(head: bytes) -> Request:
    """Raises Refused for what is not exactly a request's head."""
    return (_remembered_request if len(head) <= _LONGEST else _request)(head)


def parse_response(head: bytes) -> Response:
    """Raises Refused, with the status 502, for what is not exactly a response's head."""
    return (_remembered_response if len(head) <= _LONGEST else _response)(head)


def _request(head: bytes) -> Request:
    match = _REQUEST.fullmatch(head)
    if match is None:
        raise _why(head, 400)
    method, target, minor, lines = match.groups()
    if lines.count(b"\n") > MAX_FIELDS:
        raise Refused(431, f"more than {MAX_FIELDS} fields")
    request = Request(head, method, target, 11 if minor == b"1" else 10, lines)
    ours = _OURS.findall(head)
    hosts, lengths, codings, options, hop = [], [], [], [], False
    upgrade = b""
    for name, value in ours:
        name = name.lower()
        if name == b"host":
            hosts.append(value.rstrip(b" \t"))
        elif name == b"content-length":
            lengths.append(value.rstrip(b" \t"))
        elif name == b"transfer-encoding":
            codings.append(value.rstrip(b" \t"))
        elif name == b"expect":
            request.expect = value.rstrip(b" \t").lower() == b"100-continue"
            request.direct = False
        else:
            hop = True
            if name == b"connection":
                options.append(value.rstrip(b" \t"))
            elif name == b"upgrade":
                upgrade = value
    _target(request, hosts)
    _request_body(request, lengths, codings)
    if hop:
        nominated = _nominated(options)
        if request.version > 10:
            request.keep_alive = b"close" not in nominated
        else:
            request.keep_alive = b"keep-alive" in nominated and b"close" not in nominated
        # HTTP/2 without TLS would be a way around all that is decided by looking at requests.
        tokens = upgrade.lower().split(b",")
        request.upgrade = (
            b"upgrade" in nominated
            and bool(upgrade.strip())
            and request.version > 10
            and not request.framing
            and not any(token.strip().startswith(b"h2") for token in tokens)
        )
        request.forward = _forward(head, nominated, request.upgrade)
    request.direct = request.direct and not request.framing and not request.upgrade and request.keep_alive
    return request


def _response(head: bytes) -> Response:
    match = _RESPONSE.fullmatch(head)
    if match is None:
        raise _why(head, 502)
    minor, code, reason, lines = match.groups()
    if lines.count(b"\n") > MAX_FIELDS:
        raise Refused(502, f"more than {MAX_FIELDS} fields")
    response = Response(head, int(code), reason or b"", 11 if minor == b"1" else 10, lines)
    lengths, codings, options, hop = [], [], [], False
    for name, value in _OURS.findall(head):
        name = name.lower()
        if name == b"content-length":
            lengths.append(value.rstrip(b" \t"))
        elif name == b"transfer-encoding":
            codings.append(value.rstrip(b" \t"))
        elif name not in (b"host", b"expect", b"te"):
            hop = True
            if name == b"connection":
                options.append(value.rstrip(b" \t"))
    _response_body(response, lengths, codings)
    if hop:
        nominated = _nominated(options, 502)
        if response.version > 10:
            response.keep_alive = b"close" not in nominated
        else:
            response.keep_alive = b"keep-alive" in nominated and b"close" not in nominated
        response.upgrade = response.status == 101
        response.forward = _forward(head, nominated, response.upgrade)
    # A client of HTTP/1.1 takes an answer of HTTP/1.0 for the end of the connection.
    response.direct = (
        response.framing in (LENGTH, NONE)
        and response.version > 10
        and response.keep_alive
        and response.status >= 200
        and response.status not in (204, 304)
        and response.status < 600
    )
    return response


_remembered_request = lru_cache(_REMEMBERED)(_request)
_remembered_response = lru_cache(_REMEMBERED)(_response)


def _why(head: bytes, status: int) -> Refused:
    """What is wrong with a head that does not match."""
    version = _VERSION.match(head)
    if version is not None and (version[1] != b"1" or version[2] > b"1"):
        return Refused(505 if status == 400 else status, "another version than HTTP/1.0 and HTTP/1.1")
    line, _, _ = head.partition(b"\r\n")
    if _UNSOUND.search(head):
        return Refused(status, "a control character, or CR or LF alone, in its head")
    whole = _REQUEST if status == 400 else _RESPONSE
    if whole.fullmatch(line + b"\r\n\r\n") is None:
        return Refused(status, "its first line is none")
    return Refused(status, "a line of its head is no field")


def _target(request: Request, hosts: list[bytes]) -> None:
    """RFC 9112, 3.2. Raises Refused."""
    target = request.target
    if len(hosts) > 1 or (not hosts and request.version > 10):
        raise Refused(400, "not exactly one Host field")
    host = hosts[0] if hosts else b""
    if _HOST.fullmatch(host) is None:
        raise Refused(400, "its Host is none")
    request.host = host
    if target.startswith(b"/") and not request.connect:
        if b"#" in target:
            raise Refused(400, "a fragment in its target")
    elif request.connect:
        if _AUTHORITY.fullmatch(target) is None:
            raise Refused(400, "CONNECT without HOST:PORT")
    elif target == b"*":
        if request.method != b"OPTIONS":
            raise Refused(400, "its target is * and its method is not OPTIONS")
    else:
        match = _ABSOLUTE.fullmatch(target)
        if match is None or _HOST.fullmatch(match[1]) is None or b"#" in target:
            raise Refused(400, "its target is none")
        if hosts and match[1].lower() != host.lower():
            raise Refused(400, "its Host is not that of its target")
        request.host = match[1]


def _length(lengths: list[bytes], status: int) -> int:
    if len(lengths) > 1:
        raise Refused(status, "more than one Content-Length")
    if _DIGITS.fullmatch(lengths[0]) is None or int(lengths[0]) >= MAX_LENGTH:
        raise Refused(status, "its Content-Length is no number")
    return int(lengths[0])


def _request_body(request: Request, lengths: list[bytes], codings: list[bytes]) -> None:
    if codings:
        if lengths:
            raise Refused(400, "Content-Length and Transfer-Encoding")
        if request.version < 11:
            raise Refused(400, "Transfer-Encoding in HTTP/1.0")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            known = b"chunked" in b",".join(codings).lower()
            raise Refused(400 if known else 501, "a Transfer-Encoding that is not just chunked")
        request.framing = CHUNKED
    elif lengths:
        request.length = _length(lengths, 400)
        request.framing = LENGTH if request.length else NONE


def _response_body(response: Response, lengths: list[bytes], codings: list[bytes]) -> None:
    if codings:
        if lengths:
            raise Refused(502, "Content-Length and Transfer-Encoding")
        if response.version < 11:
            raise Refused(502, "Transfer-Encoding in HTTP/1.0")
        if response.status < 200 or response.status == 204:
            raise Refused(502, "Transfer-Encoding in a response without a body")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise Refused(502, "a Transfer-Encoding that is not just chunked")
        response.framing = CHUNKED
    elif lengths:
        response.length = _length(lengths, 502)
        response.framing = LENGTH if response.length else NONE


def _nominated(options: list[bytes], status: int = 400) -> frozenset[bytes]:
    """The options of all Connection fields, in lower case (RFC 9110, 7.6.1)."""
    found: set[bytes] = set()
    for value in options:
        if value and _TOKENS.fullmatch(value) is None:
            raise Refused(status, "its Connection field is no list of names")
        found |= {option.strip(b" \t") for option in value.lower().split(b",")}
    if found & _NEVER_NOMINATED:
        raise Refused(status, "Connection names a field that cannot be left out")
    return frozenset(found)


def _forward(head: bytes, nominated: frozenset[bytes], upgrade: bool) -> bytes:
    """The head without what concerns one connection only; an upgrade's own fields stay."""
    dropped = {b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"http2-settings", b"te"}
    dropped |= nominated - _OPTIONS - _END_TO_END
    if upgrade:
        dropped.discard(b"upgrade")
    first, *lines = head[:-4].split(b"\r\n")
    kept = [first]
    for line in lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name == b"te" and value.strip(b" \t").lower() == b"trailers":
            kept.append(line)
        elif name == b"connection" and upgrade:
            if b"upgrade" in value.lower():
                kept.append(line if value.strip(b" \t").lower() == b"upgrade" else line[:10] + b": Upgrade")
        elif name not in dropped:
            kept.append(line)
    return b"\r\n".join(kept) + b"\r\n\r\n"
