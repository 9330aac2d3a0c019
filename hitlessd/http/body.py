"""Where a message's body ends, counted as it passes (RFC 9112, 6 and 7). The bytes go on as they came, chunks and all,
after they were checked; so what a body has come to is a few numbers, which move with it to another process."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hitlessd.http.grammar import CHUNKED, CLOSE, LENGTH, NONE, TOKEN, VALUE, Refused

__all__ = ["FULL", "NOTHING", "Body"]

#: More than any body has.
_ENDLESS = 1 << 62
#: Bytes of a chunk's first line, or of a trailer's, and of all such extras of one body.
_LONGEST_LINE, _MOST_EXTRAS = 4096, 16 << 10
_SIZE = re.compile(
    rb'([0-9A-Fa-f]{1,16})((?:;%b+(?:=(?:%b+|"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t \x21-\x7e])*"))?)*)' % (TOKEN, TOKEN)
)
_TRAILER = re.compile(rb"(%b+):%b*" % (TOKEN, VALUE))
#: Trailers must not change what was decided by the head (RFC 9110, 6.5.1).
_NO_TRAILERS = frozenset({b"content-length", b"transfer-encoding", b"host", b"connection", b"te", b"trailer",
                          b"content-encoding", b"content-type", b"content-range", b"authorization", b"cookie",
                          b"set-cookie", b"expect", b"upgrade", b"cache-control", b"max-forwards"})  # fmt: skip
_AT_SIZE, _IN_DATA, _AT_END, _AT_TRAILER = range(4)


class Body:
    """One message's body."""

    __slots__ = ("_extras", "_kind", "_left", "_line", "_part", "done", "payload")

    def __init__(self, kind: int, length: int = 0) -> None:
        """`kind`: NONE, LENGTH, CHUNKED or CLOSE."""
        self._kind = kind
        self._left = length if kind == LENGTH else _ENDLESS if kind == CLOSE else 0
        self._part = _AT_SIZE  # of a chunked one
        self._line = b""  # the beginning of a line
        self._extras = 0  # bytes of extensions and trailers
        self.payload = 0  # bytes of the body itself so far
        self.done = kind == NONE or (kind == LENGTH and not length)

    @property
    def countable(self) -> bool:
        """Its state follows from the number of bytes that have passed."""
        return self._kind != CHUNKED

    @property
    def until_close(self) -> bool:
        """The end of the connection is its end."""
        return self._kind == CLOSE

    @property
    def raw(self) -> int:
        """Bytes that may pass unseen now."""
        return self._left

    def skip(self, size: int) -> None:
        """So many have, at most `raw`."""
        self._left -= size
        self.payload += size
        if not self._left:
            if self._kind == CHUNKED:
                self._part = _AT_END
            else:
                self.done = True

    def end(self) -> bool:
        """The connection has ended: whether the body is whole."""
        if self._kind == CLOSE:
            self.done = True
        return self.done

    def take(self, data: memoryview | bytes) -> int:
        """How many of the bytes that have come are the body's. Raises Refused for what is no chunk."""
        size = len(data)
        if self._kind != CHUNKED:
            if size > self._left:
                size = self._left
            if size:
                self.skip(size)
            return size
        at = 0
        while at < size and not self.done:
            if self._part == _IN_DATA:
                passed = min(self._left, size - at)
                self.skip(passed)
                at += passed
            else:
                at += self._take_line(bytes(data[at : at + _LONGEST_LINE + 2]))
        return at

    def _take_line(self, data: bytes) -> int:
        """A line, or the beginning of one; how many bytes it takes of these."""
        begun = self._line
        line = begun + data
        end = line.find(b"\n")
        if end < 0:
            if len(line) > _LONGEST_LINE:
                raise Refused(400, "a line of its chunks is too long")
            self._check_begun(line)
            self._line = line
            return len(data)
        if line[end - 1 : end] != b"\r":
            raise Refused(400, "LF alone between its chunks")
        self._line = b""
        self._take_whole(line[: end - 1])
        return end + 1 - len(begun)

    def _check_begun(self, line: bytes) -> None:
        """What can be told of a line of which the end has not come: one who waits for more must not wait in vain."""
        if self._part == _AT_END and not b"\r\n".startswith(line):
            raise Refused(400, "a chunk is longer than it says")
        if self._part == _AT_SIZE and line[:1] not in b"0123456789abcdefABCDEF":
            raise Refused(400, "a chunk without its size")

    def _take_whole(self, line: bytes) -> None:
        if self._part == _AT_END:
            if line:
                raise Refused(400, "a chunk is longer than it says")
            self._part = _AT_SIZE
        elif self._part == _AT_SIZE:
            match = _SIZE.fullmatch(line)
            if match is None or int(match[1], 16) >= _ENDLESS:
                raise Refused(400, "the first line of a chunk makes no sense")
            self._count_extra(len(match[2]))
            self._left = int(match[1], 16)
            self._part = _IN_DATA if self._left else _AT_TRAILER
        elif line:
            match = _TRAILER.fullmatch(line)
            if match is None or match[1].lower() in _NO_TRAILERS:
                raise Refused(400, "a trailer that is none, or may be none")
            self._count_extra(len(line))
        else:
            self.done = True

    def _count_extra(self, size: int) -> None:
        self._extras += size
        if self._extras > _MOST_EXTRAS:
            raise Refused(400, "too much besides the body in its chunks")

    def words(self) -> tuple[int, ...]:
        """The serial form, for of()."""
        return (self._kind, self._left, self._part, self._extras, self.payload, int(self.done), *self._line)

    @classmethod
    def of(cls, words: Sequence[int]) -> Body:
        """Raises ValueError, TypeError for what words() has not said."""
        kind, left, part, extras, payload, done, *line = words
        if kind not in (NONE, LENGTH, CHUNKED, CLOSE) or not 0 <= left <= _ENDLESS or part not in range(4):
            raise ValueError("these are no words of a body")
        body = cls(kind)
        body._left, body._part, body._extras, body.payload, body.done = left, part, extras, payload, bool(done)
        body._line = bytes(line)
        return body


#: Of messages without a body; there is nothing in it that could change.
NOTHING = Body(NONE)
#: Of a body that came whole with its head.
FULL = Body(LENGTH)
