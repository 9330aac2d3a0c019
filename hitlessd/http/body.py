"""Counts one message's body, so that its end is known to us and not to a guess (RFC 9112 sections 6 and 7.1).

Everything is passed on as it came, chunk framing included, after it was checked. All that a Body knows is a handful of
small numbers: a body moves to another process in the middle of a chunk's size as well as anywhere else. So chunk
framing is read by a machine that takes a byte at a time and keeps no text, with regular expressions to leap over what
lies whole in one piece.
"""

from __future__ import annotations

import re

from hitlessd.http.grammar import CHUNKED, CLOSE, LENGTH, MAX_LENGTH, NONE, TOKEN, VALUE, Refused

__all__ = ["ENDLESS", "FORBIDDEN_TRAILERS", "Body"]

#: `raw` where the body ends with the connection.
ENDLESS = 1 << 62
_MAX_DIGITS = 16
#: Bytes of one chunk's extensions, and of all trailers.
_MAX_EXTENSION = 256
_MAX_TRAILERS = 8 << 10

# Where in the chunk framing the next byte is. The numbers are part of the serial form: only ever add to them.
(
    _SIZE,  # at a chunk's first digit
    _DIGITS,  # behind a digit
    _DATA,  # in a chunk's data
    _DATA_CR,  # behind it
    _DATA_LF,
    _SIZE_LF,  # the CR behind the size was seen
    _NAME_1,  # at the first byte of an extension's name
    _NAME,
    _VALUE_1,
    _VALUE,
    _QUOTED,
    _ESCAPED,
    _UNQUOTED,  # behind a closing quote
    _LINE,  # at the beginning of a trailer, or of the empty line
    _FIELD,  # in a trailer's name
    _TEXT,  # in a trailer's value
    _TEXT_LF,
    _LAST_LF,  # the CR of the empty line was seen
    _OVER,
) = range(19)

#: A whole chunk header, with the end of the data before it or without.
_HEADER = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_NEXT = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})\r\n")

_HEX = {ord(c): int(c, 16) for c in "0123456789abcdefABCDEF"}
_IS_TOKEN = frozenset(b"".join(re.findall(TOKEN, bytes(range(256)))))
_IS_TEXT = frozenset(b"".join(re.findall(VALUE, bytes(range(256)))))

#: What decides about framing, routing, authentication or the meaning of a body must be known before the body
#: (RFC 9110 section 6.5.1), and where a client came from is ours to say.
FORBIDDEN_TRAILERS = (
    b"authorization",
    b"cache-control",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"keep-alive",
    b"max-forwards",
    b"proxy-authorization",
    b"proxy-connection",
    b"set-cookie",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
)
# A name is known by its hash only (FNV-1a, 64 bits), for it may be cut anywhere. A harmless name that happened to have
# the hash of a forbidden one would be refused, which is the safe side.
_FNV_BASE = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3
_MASK = (1 << 64) - 1


def _hashed(name: bytes) -> int:
    value = _FNV_BASE
    for byte in name:
        value = ((value ^ byte) * _FNV_PRIME) & _MASK
    return value


_FORBIDDEN = frozenset(map(_hashed, FORBIDDEN_TRAILERS))


class Body:
    """What is left of one message's body. `payload` counts its bytes so far, without chunk framing."""

    __slots__ = ("_digits", "_hash", "_phase", "_used", "done", "kind", "left", "payload")

    def __init__(self, kind: int, length: int = 0) -> None:
        self.kind = kind
        self.left = length  # of the body, or of the current chunk
        self.payload = 0
        self.done = kind == NONE or (kind == LENGTH and not length)
        self._phase = _SIZE
        self._digits = 0
        self._used = 0  # bytes of this chunk's extensions, or of all trailers
        self._hash = 0  # of a trailer's name

    def take(self, data: bytes | bytearray | memoryview) -> int:
        """How many of these bytes belong to this body: all of them, or fewer where it ends. They count as passed on.

        Raises Refused for chunk framing that is not sound; none of these bytes may be passed on then.
        """
        if self.kind == LENGTH:
            size = len(data)
            if size >= self.left:
                size = self.left
                self.done = True
            self.left -= size
            self.payload += size
            return size
        if self.kind == CHUNKED:
            return self._chunks(data)
        if self.kind == NONE:
            return 0
        self.payload += len(data)
        return len(data)

    @property
    def raw(self) -> int:
        """So many bytes may be passed on now without being looked at, if skip() is told of them."""
        if self.kind == LENGTH:
            return self.left
        if self.kind == CHUNKED:
            return self.left if self._phase == _DATA else 0
        return ENDLESS if self.kind == CLOSE else 0

    def skip(self, count: int) -> None:
        """So many bytes, at most `raw`, were passed on unseen."""
        self.payload += count
        if self.kind == CLOSE:
            return
        self.left -= count
        if not self.left:
            if self.kind == LENGTH:
                self.done = True
            else:
                self._phase = _DATA_CR

    def words(self) -> tuple[int, ...]:
        """All that there is to know, each below 2**64; of() makes the same Body of them."""
        return (self.kind, self.left, self.payload, self._phase, self._digits, self._used, self._hash)

    @classmethod
    def of(cls, words: tuple[int, ...]) -> Body:
        """The Body whose words() these are."""
        body = cls(words[0])
        body.kind, body.left, body.payload, body._phase, body._digits, body._used, body._hash = words
        if body.kind == LENGTH:
            body.done = not body.left
        elif body.kind == CHUNKED:
            body.done = body._phase == _OVER
        return body

    def _chunks(self, data: bytes | bytearray | memoryview) -> int:
        size = len(data)
        at = 0
        while at < size:
            phase = self._phase
            if phase == _DATA:
                step = min(self.left, size - at)
                at += step
                self.payload += step
                self.left -= step
                if self.left:
                    return at
                self._phase = phase = _DATA_CR
            if phase == _DATA_CR:
                match = _NEXT.match(data, at)
            elif phase == _SIZE:
                match = _HEADER.match(data, at)
            elif phase == _OVER:
                return at
            else:
                match = None
            if match is not None:
                at = match.end()
                self.left = int(match[1], 16)
                self._begin()
            elif at < size:
                self._byte(data[at])
                at += 1
        return at

    def _begin(self) -> None:
        """A chunk's header is whole."""
        if self.left >= MAX_LENGTH:
            raise Refused(400, "a chunk is too large")
        self._digits = self._used = 0
        self._phase = _DATA if self.left else _LINE

    def _byte(self, byte: int) -> None:
        """One byte of chunk framing (RFC 9112 section 7.1), without the space that it allows in extensions."""
        phase = self._phase
        if phase in (_SIZE, _DIGITS):
            if byte in _HEX:
                self._digits += 1
                if self._digits > _MAX_DIGITS:
                    raise Refused(400, "a chunk's size has too many digits")
                self.left = (self.left << 4 | _HEX[byte]) if phase == _DIGITS else _HEX[byte]
                self._phase = _DIGITS
            elif phase == _DIGITS and byte in _AFTER_SIZE:
                self._phase = _AFTER_SIZE[byte]
            else:
                raise Refused(400, "a chunk's size is malformed")
        elif phase in (_DATA_CR, _DATA_LF):
            if byte != (13 if phase == _DATA_CR else 10):
                raise Refused(400, "no line end behind a chunk")
            self._phase = _DATA_LF if phase == _DATA_CR else _SIZE
        elif phase == _SIZE_LF:
            if byte != 10:
                raise Refused(400, "CR without LF behind a chunk's size")
            self._begin()
        elif phase < _LINE:
            self._used += 1
            if self._used > _MAX_EXTENSION:
                raise Refused(400, "a chunk's extensions are too long")
            self._extension(byte)
        elif phase != _OVER:
            self._used += 1
            if self._used > _MAX_TRAILERS:
                raise Refused(431, "the trailers are too long")
            self._trailer(byte)

    def _extension(self, byte: int) -> None:
        phase = self._phase
        if phase == _QUOTED:
            if byte == 0x22:
                self._phase = _UNQUOTED
            elif byte == 0x5C:
                self._phase = _ESCAPED
            elif byte not in _IS_TEXT:
                raise Refused(400, "a chunk's extension is malformed")
        elif phase == _ESCAPED and byte in _IS_TEXT:
            self._phase = _QUOTED
        elif byte in _IS_TOKEN and phase in _IN_TOKEN:
            self._phase = _IN_TOKEN[phase]
        elif byte == 0x22 and phase == _VALUE_1:
            self._phase = _QUOTED
        elif byte == 0x3D and phase == _NAME:
            self._phase = _VALUE_1
        elif byte in _AFTER_SIZE and phase in (_NAME, _VALUE, _UNQUOTED):
            self._phase = _AFTER_SIZE[byte]
        else:
            raise Refused(400, "a chunk's extension is malformed")

    def _trailer(self, byte: int) -> None:
        phase = self._phase
        if phase == _LINE and byte == 13:
            self._phase = _LAST_LF
        elif phase in (_LINE, _FIELD) and byte in _IS_TOKEN:
            before = _FNV_BASE if phase == _LINE else self._hash
            lower = byte | 0x20 if 65 <= byte <= 90 else byte
            self._hash = ((before ^ lower) * _FNV_PRIME) & _MASK
            self._phase = _FIELD
        elif phase == _FIELD and byte == 0x3A:
            if self._hash in _FORBIDDEN:
                raise Refused(400, "a trailer that must not be one")
            self._phase = _TEXT
        elif phase == _TEXT and byte in _IS_TEXT:
            pass
        elif phase == _TEXT and byte == 13:
            self._phase = _TEXT_LF
        elif phase == _TEXT_LF and byte == 10:
            self._phase = _LINE
        elif phase == _LAST_LF and byte == 10:
            self._phase = _OVER
            self.done = True
        else:
            raise Refused(400, "a trailer is malformed")


_AFTER_SIZE = {13: _SIZE_LF, 0x3B: _NAME_1}
_IN_TOKEN = {_NAME_1: _NAME, _NAME: _NAME, _VALUE_1: _VALUE, _VALUE: _VALUE}
