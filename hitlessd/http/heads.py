"""Heads of HTTP/1 messages: where one ends, what it says, and above all how long its body is (RFC 9112).

One possessive regular expression decides whether a head is sound, a second one finds the few fields that this program
itself obeys; all fields are listed only when somebody asks. Heads that come again and again are parsed once: results
are shared and must never be changed.
"""

from __future__ import annotations

import re
from functools import lru_cache

from hitlessd.http.fields import (
    check_coding,
    content_length,
    list_fields,
    offers_http2,
    persists,
    stripped,
    tokens,
    transfer_coding,
)
from hitlessd.http.grammar import CHUNKED, CLOSE, LENGTH, MAX_FIELDS, MAX_HEAD, NONE, TOKEN, Refused
from hitlessd.http.targets import ABSOLUTE, authority

__all__ = ["Request", "Response", "fresh_request", "fresh_response", "head_end", "parse_request", "parse_response"]

# Only sets of characters are repeated possessively, never a group: the Python of Debian 12, 3.11.2, then takes for
# matched what a failed last repetition had consumed (CPython's gh-106052).
_BLOCK = rb"((?:" + TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)*)\r\n"
#: `#` is the one visible character that no request target has (RFC 9112 section 3.2).
_REQUEST = re.compile(rb"(" + TOKEN + rb"++) ([!\"$-~]++) HTTP/1\.([01])\r\n" + _BLOCK)
#: The space before an empty reason is missing with some servers; there is only one way to read that.
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*+))?\r\n" + _BLOCK)
#: The fields that are obeyed here. The look-ahead alone makes it a third faster.
_OBEYED = re.compile(
    rb"\r\n(?=[chteuCHTEU])"
    rb"(connection|content-length|transfer-encoding|host|upgrade|expect):[\t ]*+([^\r]*+)",
    re.IGNORECASE,
)

#: Heads longer than this are parsed anew each time: they rarely come twice.
_SHARED = 1024
_SHARED_HEADS = 256


def head_end(buffer: bytes | bytearray, start: int, response: bool = False) -> int:
    """The position behind the empty line that ends the head which begins at `start`, or 0 if more bytes are needed.

    Up to two empty lines before a request belong to its head (RFC 9112 section 2.2). Raises Refused as soon as no
    further bytes could make a sound head of what is there, and for one that is larger than MAX_HEAD.
    """
    found = buffer.find(b"\r\n\r\n", start, start + MAX_HEAD)
    if found >= 0 and buffer[start] != 13:
        return found + 4
    from hitlessd.http.diagnosis import partial_end

    return partial_end(buffer, start, response)


class Request:
    """A request's head. Immutable, shared between all who sent the same one."""

    __slots__ = (
        "_fields",
        "_path",
        "_query",
        "_split",
        "closed",
        "connect",
        "direct",
        "expect",
        "framing",
        "host",
        "keep_alive",
        "kept",
        "length",
        "line",
        "method",
        "options",
        "raw",
        "target",
        "upgrade",
        "version",
    )

    raw: bytes  # the head as it came, without empty lines before it
    method: bytes
    target: bytes
    version: int  # 10 or 11
    framing: int  # NONE, LENGTH or CHUNKED
    length: int  # bytes of the body, where framing is LENGTH
    host: bytes  # of an absolute-form target or of Host, with the port if there is one
    options: tuple[bytes, ...]  # what Connection lists, in lower case
    keep_alive: bool  # the client wants to go on
    upgrade: bool  # it offers another protocol, and it is not HTTP/2
    connect: bool
    expect: bool  # it waits for 100 (Continue)
    direct: bool  # passing it on is all: it has no body, and its answer is a common one

    def __init__(self) -> None:
        self._fields: tuple[tuple[bytes, bytes], ...] | None = None
        self._split = False
        self.direct = False
        self.line = ""  # its first line as logs show it, once somebody has asked
        # The head as it is passed on without configured changes, once somebody has asked; see edit.py.
        self.kept: bytes | None = None
        self.closed: bytes | None = None

    @property
    def fields(self) -> tuple[tuple[bytes, bytes], ...]:
        """Names as they were sent and values without the space around them, in order."""
        if self._fields is None:
            self._fields = list_fields(self.raw)
        return self._fields

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields of that name, which is given in lower case."""
        return [value for key, value in self.fields if key.lower() == name]

    @property
    def path(self) -> bytes:
        """The target's path, from the first slash to the question mark; empty for CONNECT and `*`, as with HAProxy."""
        if not self._split:
            self._divide()
        return self._path

    @property
    def query(self) -> bytes:
        """What follows the target's first question mark."""
        if not self._split:
            self._divide()
        return self._query

    def _divide(self) -> None:
        target = self.target
        if not target.startswith(b"/"):
            absolute = None if self.connect else ABSOLUTE.fullmatch(target)
            target = (absolute[3] or b"/") if absolute else b""
        self._path, _, self._query = target.partition(b"?")
        self._split = True


class Response:
    """A response's head. Immutable, shared between all that were the same."""

    __slots__ = (
        "_fields",
        "direct",
        "framing",
        "keep_alive",
        "length",
        "options",
        "passed",
        "raw",
        "reason",
        "status",
        "upgrade",
        "version",
    )

    raw: bytes
    status: int
    reason: bytes
    version: int  # 10 or 11
    framing: int  # what the fields say: LENGTH, CHUNKED or CLOSE; see body_for()
    length: int
    options: tuple[bytes, ...]  # what Connection lists, in lower case
    keep_alive: bool  # the server wants to go on; in vain where the body ends with the connection
    upgrade: bool  # 101: the bytes behind are no longer HTTP; only an answer to a request whose `upgrade` is set
    direct: bool  # passing it on is all: its body has a length, and its connection goes on

    def __init__(self) -> None:
        self._fields: tuple[tuple[bytes, bytes], ...] | None = None
        self.direct = False
        self.passed: list[bytes | None] = [None] * 4  # as it is passed on without configured changes; see edit.py

    @property
    def fields(self) -> tuple[tuple[bytes, bytes], ...]:
        """Names as they were sent and values without the space around them, in order."""
        if self._fields is None:
            self._fields = list_fields(self.raw)
        return self._fields

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields of that name, which is given in lower case."""
        return [value for key, value in self.fields if key.lower() == name]

    def body_for(self, method: bytes) -> tuple[int, int]:
        """Framing and length of the body that follows, if this answers such a request (RFC 9112 section 6.3).

        After 101, and after 2xx to CONNECT, there is no body but a tunnel. A body that ends with the connection has
        length 0.
        """
        status = self.status
        if status < 200 or status == 204 or status == 304 or method == b"HEAD":
            return NONE, 0
        if status < 300 and method == b"CONNECT":
            return NONE, 0
        return self.framing, self.length


def parse_request(head: bytes) -> Request:
    """What a whole head says, the empty line at its end included. Raises Refused with 400, 413, 431, 501 or 505."""
    return _shared_request(head) if len(head) <= _SHARED else fresh_request(head)


def parse_response(head: bytes) -> Response:
    """What a whole head says, the empty line at its end included. Raises Refused; its status is of no use."""
    return _shared_response(head) if len(head) <= _SHARED else fresh_response(head)


def fresh_request(head: bytes) -> Request:
    """As parse_request(), without remembering it."""
    match = _REQUEST.fullmatch(head)
    if match is None:
        head = head.removeprefix(b"\r\n").removeprefix(b"\r\n")
        match = _REQUEST.fullmatch(head)
    if match is None:
        from hitlessd.http.diagnosis import diagnose

        diagnose(head, False)
    request = Request()
    request.raw = head
    method, target, minor, block = match.groups()
    request.method = method
    request.target = target
    request.version = version = 11 if minor == b"1" else 10
    if block.count(b"\n") > MAX_FIELDS:
        raise Refused(431, f"more than {MAX_FIELDS} header fields")

    length = coding = host = expect = None
    options: tuple[bytes, ...] = ()
    upgrades: list[bytes] = []
    for name, value in _OBEYED.findall(head, match.start(4) - 2):
        size = len(name)
        if size == 4:
            if host is not None:
                raise Refused(400, "more than one Host")
            host = stripped(value)
        elif size == 10:
            options += tokens(value)
        elif size == 14:
            length = content_length(value, length)
        elif size == 17:
            coding = transfer_coding(value, coding)
        elif size == 7:
            upgrades.append(value)
        else:
            expect = value

    request.connect = connect = method == b"CONNECT"
    request.host = authority(method, target, version, host)
    request.options = options
    request.keep_alive = b"close" not in options if version == 11 else persists(options)
    request.upgrade = bool(upgrades) and version == 11 and b"upgrade" in options and not offers_http2(upgrades)
    request.expect = expect is not None and version == 11 and stripped(expect).lower() == b"100-continue"
    request.length = 0
    if coding is not None:
        check_coding(coding, version, length)
        request.framing = CHUNKED
    elif length is not None:
        request.framing = LENGTH
        request.length = length
    else:
        request.framing = NONE
        plain = not (connect or request.upgrade or request.expect) and method != b"HEAD"
        request.direct = plain and version == 11
        return request
    if connect and length != 0:
        raise Refused(400, "CONNECT with a body")
    if version == 10 and length and method in (b"GET", b"HEAD", b"DELETE"):
        # HAProxy's rule and status: servers of that age read such a body as the next request.
        raise Refused(413, f"{method.decode()} of HTTP/1.0 with a body")
    return request


def fresh_response(head: bytes) -> Response:
    """As parse_response(), without remembering it."""
    match = _RESPONSE.fullmatch(head)
    if match is None:
        from hitlessd.http.diagnosis import diagnose

        diagnose(head, True)
    response = Response()
    response.raw = head
    minor, status, reason, block = match.groups()
    response.version = version = 11 if minor == b"1" else 10
    response.status = code = int(status)
    response.reason = reason or b""
    if block.count(b"\n") > MAX_FIELDS:
        raise Refused(431, f"more than {MAX_FIELDS} header fields")

    length = coding = None
    options: tuple[bytes, ...] = ()
    upgrade = False
    for name, value in _OBEYED.findall(head, match.start(4) - 2):
        size = len(name)
        if size == 10:
            options += tokens(value)
        elif size == 14:
            length = content_length(value, length)
        elif size == 17:
            coding = transfer_coding(value, coding)
        elif size == 7:
            upgrade = True

    response.options = options
    response.keep_alive = b"close" not in options if version == 11 else persists(options)
    response.upgrade = code == 101
    if code == 101 and (not upgrade or version == 10):
        raise Refused(400, "101 without Upgrade")
    response.length = 0
    if coding is not None:
        check_coding(coding, version, length)
        if code < 200 or code == 204:
            raise Refused(400, f"Transfer-Encoding in a response {code}")
        response.framing = CHUNKED
    elif length is not None:
        if length and (code < 200 or code == 204):
            raise Refused(400, f"Content-Length in a response {code}")
        response.framing = LENGTH
        response.length = length
        final = 200 <= code < 600 and code not in (204, 304, 426)
        response.direct = final and version == 11 and response.keep_alive
    else:
        response.framing = CLOSE
    return response


_shared_request = lru_cache(_SHARED_HEADS)(fresh_request)
_shared_response = lru_cache(_SHARED_HEADS)(fresh_response)
