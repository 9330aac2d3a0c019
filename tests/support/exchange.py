"""What the load generator and its backend say to each other: headers, bodies and how they are checked. No I/O.

Every body is a piece of one pseudo-random cycle of bytes, found by the request's id, so either side can check every
byte without having been told it. An answer's body is the request's body with every byte substituted. Whoever receives
sees a byte that is lost, doubled, moved, altered or another connection's.
"""

import hashlib
import struct
import zlib
from typing import Final, NamedTuple

CYCLE: Final = 1 << 20
"""Bytes after which the pseudo-random material repeats; also the longest body of one exchange."""

SUBSTITUTION: Final = bytes((value * 167 + 89) & 0xFF for value in range(256))
"""The answer's bytes by the request's: a permutation without a fixed structure worth guessing."""

_ONCE: Final = hashlib.shake_128(b"hitlessd load").digest(CYCLE)
ASKED: Final = _ONCE + _ONCE
"""The cycle twice, so that a body that begins anywhere in the first half is one slice: what clients send."""
ANSWERED: Final = ASKED.translate(SUBSTITUTION)
"""The same for what servers send."""

# Kinds of request
EXCHANGE: Final = 1
"""A body, answered by its substitution."""
STREAM: Final = 2
"""An endless body, answered as it comes until the client's end of file."""
DOWN: Final = 3
"""No body; the answer has as many bytes as the header says."""
UP: Final = 4
"""A body of as many bytes as the header says; the answer has none."""
BOTH: Final = 5
"""UP and DOWN at once."""

# Who closes first
CLOSE_SERVER: Final = 0
"""The server half-closes after the answer, the client closes, the server sees that."""
CLOSE_CLIENT: Final = 1
"""The client half-closes after the last answer, the server closes, the client sees that."""
CLOSE_HALF: Final = 2
"""The client half-closes right after the request, the server answers and closes."""
CLOSE_PLAIN: Final = 3
"""The server closes after the answer and does not look back: the cheapest, for benchmarks."""

# Status of an answer
OK: Final = 0
BAD_REQUEST: Final = 1
"""The request arrived altered."""

_REQUEST: Final = struct.Struct("<4sBBHQQ")
_ANSWER: Final = struct.Struct("<4sBBHQQ")
_CHECK: Final = struct.Struct("<I")
_TAG: Final = struct.Struct("<HH")
_REQUEST_MAGIC: Final = b"hla?"
_ANSWER_MAGIC: Final = b"hla!"

REQUEST_SIZE: Final = _REQUEST.size + _CHECK.size
ANSWER_HEAD: Final = _ANSWER.size + _CHECK.size
"""Bytes of an answer that the client can foretell; the tag of the server that answered follows."""
ANSWER_SIZE: Final = ANSWER_HEAD + _TAG.size


class Request(NamedTuple):
    """A request's header. `delay` is in milliseconds, `length` in bytes."""

    kind: int
    close: int
    delay: int
    length: int
    ident: int


class Answer(NamedTuple):
    """An answer's header."""

    status: int
    kind: int
    length: int
    ident: int
    tag: int


def position(ident: int) -> int:
    """Where in the cycle the body of this request begins."""
    return (ident * 0x9E3779B97F4A7C15 >> 29) & (CYCLE - 1)


def pack_request(kind: int, close: int, delay: int, length: int, ident: int) -> bytes:
    """The header of a request."""
    head = _REQUEST.pack(_REQUEST_MAGIC, kind, close, delay, length, ident)
    return head + _CHECK.pack(zlib.crc32(head))


def unpack_request(data: bytes) -> Request | None:
    """The header at the start of `data`, or None if it is not one. `data` has at least REQUEST_SIZE bytes."""
    magic, kind, close, delay, length, ident = _REQUEST.unpack_from(data)
    (check,) = _CHECK.unpack_from(data, _REQUEST.size)
    if magic != _REQUEST_MAGIC or check != zlib.crc32(data[: _REQUEST.size]):
        return None
    return Request(kind, close, delay, length, ident)


def pack_answer_head(status: int, kind: int, length: int, ident: int) -> bytes:
    """The foreseeable part of an answer's header."""
    head = _ANSWER.pack(_ANSWER_MAGIC, status, kind, 0, length, ident)
    return head + _CHECK.pack(zlib.crc32(head))


def pack_tag(tag: int) -> bytes:
    """The part of an answer's header that names the server by a number below 65536."""
    return _TAG.pack(tag, tag ^ 0xFFFF)


def unpack_tag(data: bytes) -> int | None:
    """The number, or None if these are not the bytes that pack_tag() makes."""
    tag, check = _TAG.unpack(data)
    return tag if check == tag ^ 0xFFFF else None


def unpack_answer(data: bytes) -> Answer | None:
    """The header at the start of `data`, or None if it is not one. `data` has at least ANSWER_SIZE bytes."""
    magic, status, kind, _, length, ident = _ANSWER.unpack_from(data)
    (check,) = _CHECK.unpack_from(data, _ANSWER.size)
    tag = unpack_tag(data[ANSWER_HEAD:ANSWER_SIZE])
    if magic != _ANSWER_MAGIC or tag is None or check != zlib.crc32(data[: _ANSWER.size]):
        return None
    return Answer(status, kind, length, ident, tag)
