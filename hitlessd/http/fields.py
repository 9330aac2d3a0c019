"""What single header fields mean: lists, lengths, transfer codings (RFC 9110 section 5.6, RFC 9112 section 6)."""

from __future__ import annotations

import re

from hitlessd.http.grammar import MAX_LENGTH, TOKEN, Refused

__all__ = [
    "check_coding",
    "content_length",
    "list_fields",
    "offers_http2",
    "persists",
    "stripped",
    "tokens",
    "transfer_coding",
]

_FIELD = re.compile(rb"([^:]++):[\t ]*+([^\r]*+)\r\n")
_LENGTH = re.compile(rb"[0-9]{1,19}")


def list_fields(head: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """A sound head's fields: names as they were sent, values without the space around them."""
    pairs: list[tuple[bytes, bytes]] = _FIELD.findall(head, head.index(b"\n") + 1)
    if b" \r\n" in head or b"\t\r\n" in head:
        pairs = [(name, value.rstrip(b"\t ")) for name, value in pairs]
    return tuple(pairs)


def stripped(value: bytes) -> bytes:
    """Without the space behind it; that before it the search has left out."""
    return value.rstrip(b"\t ")


def tokens(value: bytes) -> tuple[bytes, ...]:
    """The elements of a list in lower case (RFC 9110 section 5.6.1)."""
    if b"," not in value:
        value = value.strip(b"\t ").lower()
        return (value,) if value else ()
    parts = [part.strip(b"\t ") for part in value.lower().split(b",")]
    return tuple(part for part in parts if part)


def persists(options: tuple[bytes, ...]) -> bool:
    """Whether an HTTP/1.0 connection goes on (RFC 9112 section 9.3)."""
    return b"keep-alive" in options and b"close" not in options


def content_length(value: bytes, before: int | None) -> int:
    """A Content-Length. A repeated one is refused even where it agrees: others may join or drop one (section 6.3)."""
    if before is not None:
        raise Refused(400, "more than one Content-Length")
    value = stripped(value)
    if not _LENGTH.fullmatch(value):
        raise Refused(400, "Content-Length is not a number")
    length = int(value)
    if length >= MAX_LENGTH:
        raise Refused(400, "Content-Length is too large")
    return length


def transfer_coding(value: bytes, before: bytes | None) -> bytes:
    """The only Transfer-Encoding of a head, in lower case."""
    if before is not None:
        raise Refused(400, "more than one Transfer-Encoding")
    return stripped(value).lower()


def check_coding(coding: bytes, version: int, length: int | None) -> None:
    """Only `chunked`, alone, is understood; everything near it is an attempt to be read differently elsewhere."""
    if length is not None:
        raise Refused(400, "Content-Length with Transfer-Encoding")
    if version == 10:
        raise Refused(400, "Transfer-Encoding in HTTP/1.0")
    if coding != b"chunked":
        if re.fullmatch(TOKEN + rb"++(?:[\t ]*+,[\t ]*+" + TOKEN + rb"++)*", coding) and coding.count(b"chunked") < 2:
            raise Refused(501, "a transfer coding other than chunked")
        raise Refused(400, "Transfer-Encoding is malformed")


def offers_http2(upgrades: list[bytes]) -> bool:
    """Whether HTTP/2 is offered: a tunnel of requests that nobody here would see."""
    return any(token.startswith((b"h2", b"http/")) for value in upgrades for token in tokens(value))
