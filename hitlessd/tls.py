"""The server name in a TLS ClientHello, from the first bytes of a connection, which are only looked at.

RFC 8446 4.1.2 and 5.1 (the same since TLS 1.0), RFC 6066 3. What is no ClientHello, or one that cannot be sound, has no
name: it is passed on as it is, and the server says what is wrong with it.
"""

from __future__ import annotations

__all__ = ["HELLO_LIMIT", "server_name"]

#: Bytes of a handshake message that are looked at. With post-quantum key shares a ClientHello takes 1.5 to 2 kB; what
#: is longer than this has no name.
HELLO_LIMIT = 16 << 10

_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0
_RECORD_LIMIT = 1 << 14
_RECORD_HEADER = 5
#: A record may carry a single byte of the message, but nobody sends them so; RFC 8446 5.1 forbids empty ones.
_RECORDS = 64


class _Unsound(Exception):
    """There is no name in it."""


def server_name(data: bytes) -> str | None:
    """The name, "" when there is none or when this is not TLS, None when more bytes are needed to tell.

    It is lower case without a trailing dot, ASCII, and at most 255 characters long. `data` are all bytes of the
    connection up to now; more than (HELLO_LIMIT + 5 bytes for each of 64 records) never lead to None.
    """
    try:
        hello, whole = _message(data)
        if not whole and not _begins_well(hello):
            return ""
        return _name(hello) if whole else None
    except (_Unsound, IndexError):
        return ""


def _message(data: bytes) -> tuple[bytes, bool]:
    """What there is of the body of the first handshake message, and whether that is all."""
    found = bytearray()
    size = -1
    at = 0
    for _ in range(_RECORDS):
        header = data[at : at + _RECORD_HEADER]
        if header[:1] and header[0] != _HANDSHAKE:
            raise _Unsound
        if header[1:2] and header[1] != 3:  # the record layer's major version, of SSL 3.0 to TLS 1.3
            raise _Unsound
        if len(header) < _RECORD_HEADER:
            return bytes(found[4:]), False
        length = int.from_bytes(header[3:5])
        if not 0 < length <= _RECORD_LIMIT:
            raise _Unsound
        at += _RECORD_HEADER
        found += data[at : at + length]
        if found and found[0] != _CLIENT_HELLO:
            raise _Unsound
        if len(found) >= 4:
            size = int.from_bytes(found[1:4])
            if size > HELLO_LIMIT:
                raise _Unsound
            if len(found) - 4 >= size:
                return bytes(found[4 : 4 + size]), True
        at += length
        if at > len(data):
            return bytes(found[4:]), False
    raise _Unsound


def _begins_well(hello: bytes) -> bool:
    """Nothing wrong with the version, as far as it is there."""
    return not hello[:1] or hello[0] == 3


def _name(hello: bytes) -> str:
    if hello[0] != 3:
        raise _Unsound
    at = 2 + 32  # version, random
    at += 1 + hello[at]  # session
    at += 2 + int.from_bytes(_take(hello, at, 2))  # cipher suites
    at += 1 + hello[at]  # compression methods
    if at == len(hello):
        return ""  # no extensions, RFC 5246 7.4.1.2
    size = int.from_bytes(_take(hello, at, 2))
    at += 2
    end = at + size
    if end != len(hello):
        raise _Unsound
    found = None
    while at < end:
        kind = int.from_bytes(_take(hello, at, 2))
        length = int.from_bytes(_take(hello, at + 2, 2))
        body = _take(hello, at + 4, length)
        at += 4 + length
        if kind == _SERVER_NAME:
            if found is not None:
                raise _Unsound  # RFC 8446 4.2: one of each type
            found = _host(body)
    return found or ""


def _host(body: bytes) -> str:
    """The host name of a ServerNameList; RFC 6066 allows one of each type, and there is no other type."""
    if int.from_bytes(_take(body, 0, 2)) != len(body) - 2 or body[2] != _HOST_NAME:
        raise _Unsound
    name = _take(body, 5, int.from_bytes(_take(body, 3, 2)))
    if len(name) != len(body) - 5 or not 0 < len(name) <= 255:
        raise _Unsound
    text = name.decode("latin-1").lower()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise _Unsound
    return text.removesuffix(".")


def _take(data: bytes, at: int, count: int) -> bytes:
    part = data[at : at + count]
    if len(part) != count:
        raise _Unsound
    return part
