"""HTTP/1.1 messages (RFC 9112) as the peers of a proxy under test see them: built, and read strictly. No I/O.

It owes nothing to hitlessd's own parser, or nobody would see what that gets wrong. Bodies are slices of one pattern of
bytes, cut out by the message's number: every byte can be checked, and a piece of another message is noticed.
"""

import hashlib
import re
from functools import lru_cache
from typing import Final

__all__ = ["BODY_HASH", "Malformed", "Message", "Reader", "chunked", "digest", "head", "pattern"]

BODY_HASH: Final = b"body-hash"
"""The field, in lower case, with the digest() of a message's body."""

_CYCLE: Final = 1 << 16
_PATTERN: Final = bytes((i * 167 + (i >> 8) * 59 + 13) & 255 for i in range(_CYCLE)) * 3
_SPAN: Final = 2 * _CYCLE
_START: Final = re.compile(rb"(?:HTTP/1\.[01] \d{3} [^\r\n\0]*|[!-~]+ [!-~]+ HTTP/1\.[01])\Z")
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n\0]*?)[ \t]*\Z")
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,8}\Z")
_HEAD_LIMIT: Final = 65536
_BODILESS: Final = (204, 304)


class Malformed(ValueError):
    """The other side sent what is no HTTP message, or not all of one."""


def pattern(number: int, size: int) -> bytes:
    """The body of `size` bytes that belongs to a number; consecutive numbers have different ones."""
    place = number * 40503 % _CYCLE
    if size <= _SPAN:
        return _PATTERN[place : place + size]
    whole = _PATTERN[place : place + _CYCLE] * (size // _CYCLE + 1)
    return whole[:size]


def digest(body: bytes) -> bytes:
    """The SHA-256 of a body, in hexadecimal, as Body-Hash has it."""
    return hashlib.sha256(body).hexdigest().encode()


def head(start: bytes, *fields: bytes) -> bytes:
    """A head of a start line and whole field lines."""
    return b"\r\n".join((start, *fields, b"", b""))


def chunked(body: bytes, size: int = 1000, trailers: tuple[bytes, ...] = ()) -> bytes:
    """A body in chunks of `size` bytes, and trailer fields."""
    parts = []
    for place in range(0, len(body), size):
        piece = body[place : place + size]
        parts.append(b"%x\r\n%b\r\n" % (len(piece), piece))
    return b"".join(parts) + b"\r\n".join((b"0", *trailers, b"", b""))


class Message:
    """A request or a response, complete but for its body while that is coming in."""

    __slots__ = ("body", "fields", "framing", "start", "trailers")

    def __init__(self, start: tuple[bytes, bytes, bytes], fields: dict[bytes, bytes]) -> None:
        self.start = start
        """Method, target and version, or version, status and reason."""
        self.fields = fields
        """Values by name in lower case; those of a repeated field joined by ", "."""
        self.body = b""
        self.framing = "none"
        """How the body was framed: none, length, chunked or close."""
        self.trailers: dict[bytes, bytes] = {}

    @property
    def status(self) -> int:
        return int(self.start[1])

    @property
    def persistent(self) -> bool:
        """Whether the sender keeps the connection open after this message (RFC 9112, 9.3)."""
        version = self.start[0] if self.start[0].startswith(b"HTTP/") else self.start[2]
        options = self.fields.get(b"connection", b"").lower()
        if self.framing == "close" or b"close" in options:
            return False
        return version == b"HTTP/1.1" or b"keep-alive" in options


@lru_cache(512)
def _fields(lines: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for line in lines.split(b"\r\n") if lines else ():
        match = _FIELD.match(line)
        if match is None:
            raise Malformed(f"no field line: {line[:100]!r}")
        name, value = match[1].lower(), match[2]
        if name in found:
            if name in (b"content-length", b"transfer-encoding", b"host"):
                raise Malformed(f"two fields {name!r}")
            value = found[name] + b", " + value
        found[name] = value
    if b"content-length" in found and b"transfer-encoding" in found:
        raise Malformed("Content-Length with Transfer-Encoding")
    if not found.get(b"content-length", b"0").isdigit():
        raise Malformed(f"Content-Length: {found[b'content-length']!r}")
    if found.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
        raise Malformed(f"Transfer-Encoding: {found[b'transfer-encoding']!r}")
    return found


class Reader:
    """Cuts what comes from one side into messages. A client says by expect() which methods are being answered."""

    def __init__(self, *, responses: bool) -> None:
        self._responses = responses
        self._expected: list[bytes] = []
        self._buffer = b""
        self._parts: list[bytes] = []  # of a body
        self._left = 0  # bytes of the body, or of the chunk and its line end, still to come
        self.current: Message | None = None
        """The message whose body is coming in."""
        self.tunnel = False
        """A response 101, or one to CONNECT, was read: what comes now is no HTTP, and is in `rest`."""

    def expect(self, method: bytes) -> None:
        """A request of that method was sent."""
        self._expected.append(method)

    @property
    def rest(self) -> bytes:
        """What was received and belongs to no message yet."""
        return self._buffer

    @property
    def idle(self) -> bool:
        """No message has begun."""
        return self.current is None and not self._buffer

    def feed(self, data: bytes) -> list[Message]:
        """The messages, interim responses included, that these bytes complete. Raises Malformed."""
        self._buffer = self._buffer + data if self._buffer else data
        complete: list[Message] = []
        while self._buffer and not self.tunnel:
            message = self.current
            if message is None:
                message = self._begin()
                if message is None:
                    break
            if not self._body(message):
                self.current = message
                break
            self.current = None
            complete.append(message)
        return complete

    def eof(self) -> Message | None:
        """The other side has closed: the message that this ends, if one was framed so. Raises Malformed."""
        message, self.current = self.current, None
        if message is not None and message.framing == "close":
            message.body = b"".join(self._parts)
            return message
        if message is not None or self._buffer:
            got = sum(map(len, self._parts)) if message else len(self._buffer)
            raise Malformed(f"closed in the {'body' if message else 'head'}, {got} bytes of it are here")
        return None

    def _begin(self) -> Message | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise Malformed("an endless head")
            return None
        raw, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
        start, _, lines = raw.partition(b"\r\n")
        if not _START.match(start) or start.startswith(b"HTTP/") is not self._responses:
            raise Malformed(f"no start line: {start[:100]!r}")
        first, second, third = start.split(b" ", 2)
        message = Message((first, second, third), _fields(lines))
        self._frame(message)
        self._parts = []
        return message

    def _frame(self, message: Message) -> None:
        """How the body is framed (RFC 9112, 6.3)."""
        fields = message.fields
        self._left = 0
        if self._responses:
            status = message.status
            if status < 200 and status != 101:
                return
            if not self._expected:
                raise Malformed(f"an answer {status} that nobody asked for")
            method = self._expected.pop(0)
            if status == 101 or (method == b"CONNECT" and status < 300):
                self.tunnel = True
                return
            if method == b"HEAD" or status in _BODILESS:
                return
        if b"transfer-encoding" in fields:
            message.framing = "chunked"
        elif b"content-length" in fields:
            message.framing = "length"
            self._left = int(fields[b"content-length"])
        elif self._responses:
            message.framing = "close"

    def _body(self, message: Message) -> bool:
        """Take of the buffer what belongs to the message; whether it is complete."""
        if message.framing == "none":
            return True
        if message.framing == "close":
            self._parts.append(self._buffer)
            self._buffer = b""
            return False
        if message.framing == "chunked":
            return self._chunks(message)
        if len(self._buffer) < self._left:
            self._parts.append(self._buffer)
            self._left -= len(self._buffer)
            self._buffer = b""
            return False
        self._parts.append(self._buffer[: self._left])
        self._buffer = self._buffer[self._left :]
        message.body = b"".join(self._parts)
        return True

    def _chunks(self, message: Message) -> bool:
        buffer, place = self._buffer, 0
        try:
            while True:
                if self._left:  # of a chunk, with its line end
                    piece = buffer[place : place + self._left]
                    place += len(piece)
                    self._left -= len(piece)
                    if piece:
                        self._parts.append(piece)
                    if self._left:
                        return False
                    self._close_chunk()
                end = buffer.find(b"\r\n", place)
                if end < 0:
                    return False
                if not _SIZE.match(buffer, place, end):
                    raise Malformed(f"no size of a chunk: {buffer[place:end][:100]!r}")
                size = int(buffer[place:end], 16)
                if size:
                    place = end + 2
                    self._left = size + 2
                    continue
                if buffer.startswith(b"\r\n", end + 2):
                    place = end + 4
                else:
                    last = buffer.find(b"\r\n\r\n", end + 2)
                    if last < 0:
                        return False
                    message.trailers = _fields(buffer[end + 2 : last])
                    place = last + 4
                message.body = b"".join(self._parts)
                return True
        finally:
            self._buffer = buffer[place:]

    def _close_chunk(self) -> None:
        """Take the line end off the chunk that is complete; it may have come in two pieces."""
        last = self._parts.pop()
        if len(last) < 2:
            last = self._parts.pop() + last
        if not last.endswith(b"\r\n"):
            raise Malformed("a chunk is longer than it says")
        if len(last) > 2:
            self._parts.append(last[:-2])
