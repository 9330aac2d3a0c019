"""What all of HTTP/1 shares: the characters of RFC 9110 and RFC 9112, limits, kinds of framing, and the refusal.

Nothing here is lenient. A message that two programs could read in two ways is how requests are smuggled, so whatever
RFC 9112 merely allows a recipient to repair (bare LF, folded lines, space before a colon) is refused.
"""

from __future__ import annotations

import re

from hitlessd.errors import HitlessdError

__all__ = [
    "CHUNKED",
    "CLOSE",
    "LENGTH",
    "MAX_FIELDS",
    "MAX_HEAD",
    "MAX_LENGTH",
    "NONE",
    "TOKEN",
    "VALUE",
    "Refused",
    "safe",
]

#: How the end of a message's body is found (RFC 9112 section 6.3): there is none, Content-Length, chunks, end of the
#: connection. The numbers are part of the serial form.
NONE, LENGTH, CHUNKED, CLOSE = range(4)

#: Bytes of a head, the empty line included: the usable part of HAProxy's tune.bufsize.
MAX_HEAD = 16 << 10
#: Fields of a head: HAProxy's tune.http.maxhdr.
MAX_FIELDS = 101
#: The largest length of a body or a chunk is one less.
MAX_LENGTH = 1 << 63

#: The set of characters of a token (RFC 9110 section 5.6.2), for use in regular expressions.
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
#: The set of bytes of a field's value and of a reason phrase: HTAB, SP, VCHAR, obs-text (RFC 9110 section 5.5).
VALUE = rb"[\t\x20-\x7e\x80-\xff]"
_UNSAFE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class Refused(HitlessdError):
    """A message that is not passed on. `status` is what the sender of a request is told; `reason` is for the log."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"cannot pass the message on: {reason}")
        self.status = status
        self.reason = reason


def safe(value: bytes) -> bytes:
    """A value that cannot end its line, whatever of a client's it quotes: control characters become spaces."""
    return _UNSAFE.sub(b" ", value)
