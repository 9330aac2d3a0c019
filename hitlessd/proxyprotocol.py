"""The PROXY protocol, versions 1 and 2, read and written (HAProxy's doc/proxy-protocol.txt). Pure, no I/O.

Addresses are pairs of a numeric host and a port, as socket(7) has them for IPv4 and IPv6.
"""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from typing import NamedTuple

from hitlessd.errors import PeerError

__all__ = ["INVALID", "MOST", "STRANGE", "TRUNCATED", "Address", "Header", "Malformed", "build", "parse"]

Address = tuple[str, int]

#: Bytes of a header, at most. Version 2 could have 65551, but no more than this has a use, and HAProxy takes no more.
MOST = 16384
#: HAProxy's words for what is wrong, as its log has them.
STRANGE = "Received something which does not look like a PROXY protocol header"
INVALID = "Received an invalid PROXY protocol header"
TRUNCATED = "Truncated PROXY protocol header received"

_V1 = b"PROXY "
_V1_MOST = 107
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6, _UNIX = 0x11, 0x21, 0x31
#: Bytes of the addresses, by address family, whatever the transport.
_ADDRESSES = {0: 0, 1: 12, 2: 36, 3: 216}
_INET = {_TCP4: (socket.AF_INET, struct.Struct("!4s4sHH")), _TCP6: (socket.AF_INET6, struct.Struct("!16s16sHH"))}
_TLV = struct.Struct("!BH")
_CRC32C = 3


class Malformed(PeerError):
    """What came is no PROXY header, or a wrong one; the text is HAProxy's."""


class Header(NamedTuple):
    """A whole header. No `source`: the connection's own addresses count, for it is LOCAL, UNKNOWN or unspecified."""

    length: int  # in bytes; what comes behind is the connection's data
    version: int
    source: Address | str | None = None  # a str is the path of a unix socket, which may be empty
    destination: Address | str | None = None


def parse(data: bytes) -> Header | None:
    """The header that the data begins with; None if more is needed. Raises Malformed as soon as it can be none."""
    if data.startswith(_V1):
        return _parse_v1(data[:_V1_MOST])
    if data.startswith(_V2):
        return _parse_v2(data)
    if _V1.startswith(data) or _V2.startswith(data):
        return None
    raise Malformed(STRANGE)


def _parse_v1(data: bytes) -> Header | None:
    end = min(at for at in (data.find(b"\r"), data.find(b"\n"), len(data)) if at >= 0)
    if data[end : end + 2] != b"\r\n":
        # Neither a CR nor an LF ends the line by itself.
        if end + (data[end : end + 1] == b"\r") < len(data) or len(data) == _V1_MOST:
            raise Malformed(INVALID)
        return None
    length = end + 2
    words = data[:end].split(b" ")
    if words[1] == b"UNKNOWN":
        return Header(length, 1)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise Malformed(INVALID)
    family = socket.AF_INET if words[1] == b"TCP4" else socket.AF_INET6
    hosts = [_host(family, word) for word in words[2:4]]
    ports = [_port(word) for word in words[4:]]
    return Header(length, 1, (hosts[0], ports[0]), (hosts[1], ports[1]))


def _host(family: socket.AddressFamily, word: bytes) -> str:
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, word.decode("ascii")))
    except (OSError, ValueError):
        raise Malformed(INVALID) from None


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or (word[:1] == b"0" and word != b"0") or int(word) > 65535:
        raise Malformed(INVALID)
    return int(word)


def _parse_v2(data: bytes) -> Header | None:
    if len(data) > 12 and data[12] not in (_LOCAL, _PROXY):
        raise Malformed(INVALID)
    if len(data) < _V2_HEAD.size:
        return None
    _, command, family, size = _V2_HEAD.unpack_from(data)
    length = _V2_HEAD.size + size
    if length > MOST:
        raise Malformed(INVALID)
    if command == _LOCAL:
        # "Discard the protocol block including the family", whatever they say.
        return Header(length, 2) if len(data) >= length else None
    if family >> 4 not in _ADDRESSES or family & 15 > 2:
        raise Malformed(INVALID)
    addresses = _ADDRESSES[family >> 4]
    if size < addresses:
        raise Malformed(INVALID)
    if len(data) < length:
        return None
    if not family >> 4:
        return Header(length, 2)  # nobody knows where its addresses end
    _check_tlvs(data[:length], _V2_HEAD.size + addresses)
    if family in _INET:
        kind, form = _INET[family]
        source, destination, port, to_port = form.unpack_from(data, _V2_HEAD.size)
        return Header(length, 2, (socket.inet_ntop(kind, source), port), (socket.inet_ntop(kind, destination), to_port))
    if family == _UNIX:
        paths = data[_V2_HEAD.size : _V2_HEAD.size + 108], data[_V2_HEAD.size + 108 : _V2_HEAD.size + 216]
        # A name in the abstract namespace begins with NUL.
        names = [(path[:1] + path[1:].partition(b"\0")[0]).rstrip(b"\0") for path in paths]
        return Header(length, 2, *(name.decode(errors="backslashreplace") for name in names))
    return Header(length, 2)  # a datagram's, or of no known transport


def _check_tlvs(header: bytes, at: int) -> None:
    """Pass over what comes behind the addresses; a checksum must be right. Raises Malformed."""
    while at < len(header):
        if at + _TLV.size > len(header):
            raise Malformed(INVALID)
        kind, size = _TLV.unpack_from(header, at)
        at += _TLV.size
        if at + size > len(header):
            raise Malformed(INVALID)
        if kind == _CRC32C:
            without = header[:at] + bytes(size) + header[at + size :]
            if size != 4 or _crc32c(without) != int.from_bytes(header[at : at + 4], "big"):
                raise Malformed(INVALID)
        at += size


def _crc32c(data: bytes) -> int:
    """RFC 4960, appendix B."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@lru_cache(1)
def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def build(version: int, source: Address | None, destination: Address | None) -> bytes:
    """The header that HAProxy's send-proxy or send-proxy-v2 would send. Without both addresses, as for a client of a
    unix socket, it is UNKNOWN or LOCAL."""
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n" if version == 1 else _V2_HEAD.pack(_V2, _LOCAL, 0, 0)
    # Without the zone of a link-local address, which means something on one machine only.
    host, to_host = source[0].partition("%")[0], destination[0].partition("%")[0]
    six, to_six = ":" in host, ":" in to_host
    if version == 1:
        if six != to_six:
            return b"PROXY UNKNOWN\r\n"
        return f"PROXY {'TCP6' if six else 'TCP4'} {host} {to_host} {source[1]} {destination[1]}\r\n".encode()
    if six or to_six:
        # Mixed families become IPv6, as with HAProxy.
        host, to_host = (name if ":" in name else "::ffff:" + name for name in (host, to_host))
    kind = _TCP6 if six or to_six else _TCP4
    family, form = _INET[kind]
    block = form.pack(socket.inet_pton(family, host), socket.inet_pton(family, to_host), source[1], destination[1])
    return _V2_HEAD.pack(_V2, _PROXY, kind, len(block)) + block
