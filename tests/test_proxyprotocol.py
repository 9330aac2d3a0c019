"""PROXY headers: what the specification says, what HAProxy sends, and nothing else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hitlessd.proxyprotocol import INVALID, MOST, STRANGE, Address, Header, Malformed, build, parse

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
FOUR = bytes([1, 2, 3, 4, 5, 6, 7, 8]) + struct.pack("!HH", 56324, 443)
SIX = bytes(15) + b"\1" + b"\x20\x01\x0d\xb8" + bytes(11) + b"\2" + struct.pack("!HH", 65535, 0)


def v2(command: int, family: int, block: bytes = b"", size: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(block) if size is None else size) + block


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def slow_crc32c(data: bytes) -> int:
    """Bit by bit, as RFC 4960 defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def with_crc(head: bytes, block: bytes) -> bytes:
    whole = v2(head[0], head[1], block + tlv(3, bytes(4)))
    return whole[:-4] + struct.pack("!I", slow_crc32c(whole))


SOUND: list[tuple[bytes, Header]] = [
    # The specification's own example, and its longest lines.
    (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        Header(47, 1, ("192.168.0.1", 56324), ("192.168.0.11", 443)),
    ),
    (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        Header(56, 1, ("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    ),
    (
        b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        Header(
            104,
            1,
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
        ),
    ),
    (b"PROXY UNKNOWN\r\n", Header(15, 1)),
    (
        b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        b" 65535 65535\r\n",
        Header(107, 1),
    ),
    (b"PROXY UNKNOWN who knows\r\n", Header(25, 1)),
    (b"PROXY TCP6 2001:DB8::1 ::ffff:1.2.3.4 0 1\r\n", Header(43, 1, ("2001:db8::1", 0), ("::ffff:1.2.3.4", 1))),
    (v2(0x21, 0x11, FOUR), Header(28, 2, ("1.2.3.4", 56324), ("5.6.7.8", 443))),
    (v2(0x21, 0x21, SIX), Header(52, 2, ("::1", 65535), ("2001:db8::2", 0))),
    (
        v2(0x21, 0x31, b"/run/a".ljust(108, b"\0") + b"\0abstract".ljust(108, b"\0")),
        Header(232, 2, "/run/a", "\0abstract"),
    ),
    (v2(0x21, 0x31, bytes(216)), Header(232, 2, "", "")),
    (v2(0x20, 0x00), Header(16, 2)),
    (v2(0x20, 0x11, FOUR), Header(28, 2)),
    (v2(0x20, 0x77, b"anything"), Header(24, 2)),
    (v2(0x21, 0x00), Header(16, 2)),
    (v2(0x21, 0x00, b"anything"), Header(24, 2)),
    (v2(0x21, 0x12, FOUR), Header(28, 2)),
    (v2(0x21, 0x10, FOUR), Header(28, 2)),
    (v2(0x21, 0x11, FOUR + tlv(4, b"") + tlv(0xE0, b"x" * 300)), Header(334, 2, ("1.2.3.4", 56324), ("5.6.7.8", 443))),
    (with_crc(b"\x21\x11", FOUR + tlv(2, b"a.test")), Header(44, 2, ("1.2.3.4", 56324), ("5.6.7.8", 443))),
    (v2(0x21, 0x11, FOUR + tlv(0xE1, b"x" * (MOST - 31))), Header(MOST, 2, ("1.2.3.4", 56324), ("5.6.7.8", 443))),
]

WRONG: list[tuple[bytes, str]] = [
    (b"GET / HTTP/1.1\r\n\r\n", STRANGE),
    (b"PROXZ TCP4 1.2.3.4 1.2.3.4 1 2\r\n", STRANGE),
    (b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n", STRANGE),
    (b"\x16\x03\x01\x02\x00\x01", STRANGE),
    (b"\r\n\r\n\x01", STRANGE),
    (b"PROXY\r\n", STRANGE),
    (b"PROXY \r\n", INVALID),
    (b"PROXY TCP4\r\n", INVALID),
    (b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n", INVALID),
    (b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n", INVALID),
    (b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n", INVALID),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", INVALID),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", INVALID),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", INVALID),
    (b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n", INVALID),
    (b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n", INVALID),
    (b"PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n", INVALID),
    (b"PROXY TCP4 ::1 ::1 1 2\r\n", INVALID),
    (b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", INVALID),
    (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", INVALID),
    (b"PROXY TCP6 ::1::2 ::1 1 2\r\n", INVALID),
    (b"PROXY TCP4 1.2.3.4\0 1.2.3.4 1 2\r\n", INVALID),
    (b"PROXY TCP4 1.2.3.\xff 1.2.3.4 1 2\r\n", INVALID),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", INVALID),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n", INVALID),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", INVALID),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", INVALID),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 999999999999999999\r\n", INVALID),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", INVALID),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\rx", INVALID),
    (b"PROXY UNKNOWN\n\r\n", INVALID),
    (b"PROXY UNKNOWN\r\r\n", INVALID),
    (b"PROXY UNKNOWN " + b"x" * 93, INVALID),
    (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", INVALID),
    (v2(0x11, 0x11, FOUR), INVALID),
    (v2(0x22, 0x11, FOUR), INVALID),
    (v2(0x21, 0x41, FOUR), INVALID),
    (v2(0x21, 0x13, FOUR), INVALID),
    (v2(0x21, 0x11, FOUR[:11]), INVALID),
    (v2(0x21, 0x21, FOUR), INVALID),
    (v2(0x21, 0x31, bytes(215)), INVALID),
    (v2(0x21, 0x11, FOUR + b"\1\0"), INVALID),
    (v2(0x21, 0x11, FOUR + b"\1\0\1"), INVALID),
    (v2(0x21, 0x11, FOUR + tlv(4, b"x") + b"\4\xff\xffx"), INVALID),
    (v2(0x21, 0x11, FOUR + tlv(3, b"abcd")), INVALID),
    (v2(0x21, 0x11, FOUR + tlv(3, b"abc")), INVALID),
    (v2(0x21, 0x11, FOUR + tlv(3, b"")), INVALID),
    (v2(0x20, 0x00, b"", MOST - 15), INVALID),
    (v2(0x21, 0x11, b"", 0xFFFF), INVALID),
]


@pytest.mark.parametrize(("data", "header"), SOUND)
def test_sound_ones_are_read_whole_and_by_the_byte(data: bytes, header: Header) -> None:
    assert parse(data) == header
    assert header.length == len(data)
    assert parse(data + b"and what comes behind\r\n") == header
    ends = range(len(data)) if len(data) < 1000 else (*range(100), len(data) - 1)
    assert not any(parse(data[:end]) for end in ends)


@pytest.mark.parametrize(("data", "why"), WRONG)
def test_wrong_ones_are_refused_and_stay_refused(data: bytes, why: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse(data)
    assert str(caught.value) == why
    _same_by_the_byte(data)


def _read(data: bytes) -> Header | str | None:
    try:
        return parse(data)
    except Malformed as malformed:
        return str(malformed)


def _same_by_the_byte(data: bytes) -> None:
    whole = _read(data)
    for end in range(len(data)):
        found = _read(data[:end])
        if found is not None:
            assert found == whole
            return


_HOSTS4 = st.ip_addresses(v=4).map(str)
_HOSTS6 = st.ip_addresses(v=6).map(str)
_PORTS = st.integers(0, 65535)
_PIECES = st.sampled_from(
    [b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b"1.2.3.4 ", b"::1 ", b"80 ", b"80", b"\r\n", b"\r", b"\n", SIGNATURE]
    + [b"\x21", b"\x20", b"\x11", b"\x00", b"\x0c", FOUR]
)


@given(st.one_of(st.binary(max_size=200), st.lists(st.one_of(_PIECES, st.binary(max_size=5))).map(b"".join)))
@example(b"PROXY UNKNOWN\r")
@example(SIGNATURE + b"\x21\x11\0\x0c" + FOUR + b"PROXY ")
def test_whatever_comes_segments_make_no_difference(data: bytes) -> None:
    _same_by_the_byte(data)
    found = _read(data)
    if isinstance(found, Header):
        assert 15 <= found.length <= len(data)


@given(st.binary(max_size=300), st.sampled_from([0x20, 0x21]), st.sampled_from([0, 0x11, 0x12, 0x21, 0x31]))
def test_any_block_is_passed_over_or_refused(block: bytes, command: int, family: int) -> None:
    data = v2(command, family, block)
    _same_by_the_byte(data + b"more")
    found = _read(data)
    assert found == INVALID or (isinstance(found, Header) and found.length == len(data))


@given(st.tuples(_HOSTS4, _PORTS), st.tuples(_HOSTS4, _PORTS), st.sampled_from([1, 2]))
def test_what_is_built_is_read_back(source: Address, destination: Address, version: int) -> None:
    data = build(version, source, destination)
    assert parse(data) == Header(len(data), version, source, destination)


@given(st.tuples(_HOSTS6, _PORTS), st.tuples(_HOSTS6, _PORTS), st.sampled_from([1, 2]))
def test_the_same_with_ipv6(source: Address, destination: Address, version: int) -> None:
    data = build(version, source, destination)
    found = parse(data)
    assert found is not None
    again = build(version, found.source, found.destination)  # type: ignore[arg-type]
    assert parse(again)[1:] == found[1:]  # type: ignore[index]
    assert found[:2] == (len(data), version)
    assert isinstance(found.source, tuple) and found.source[1] == source[1]


@pytest.mark.parametrize(
    ("version", "source", "destination", "expected"),
    [
        (1, ("1.2.3.4", 1), ("5.6.7.8", 2), b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"),
        (1, ("fe80::1%eth0", 1), ("::1", 2), b"PROXY TCP6 fe80::1 ::1 1 2\r\n"),
        (1, ("::ffff:127.0.0.1", 1), ("::ffff:127.0.0.1", 2), b"PROXY TCP6 ::ffff:127.0.0.1 ::ffff:127.0.0.1 1 2\r\n"),
        (1, ("1.2.3.4", 1), ("::1", 2), b"PROXY UNKNOWN\r\n"),
        (1, None, None, b"PROXY UNKNOWN\r\n"),
        (1, None, ("1.2.3.4", 1), b"PROXY UNKNOWN\r\n"),
        (2, ("1.2.3.4", 56324), ("5.6.7.8", 443), v2(0x21, 0x11, FOUR)),
        (2, ("::1", 65535), ("2001:db8::2", 0), v2(0x21, 0x21, SIX)),
        (
            2,
            ("2001:db8::1", 1),
            ("1.2.3.4", 2),
            v2(0x21, 0x21, b"\x20\x01\x0d\xb8" + bytes(11) + b"\1" + bytes(10) + b"\xff\xff\1\2\3\4\0\1\0\2"),
        ),
        (2, None, None, v2(0x20, 0x00)),
    ],
)
def test_what_is_sent_is_what_haproxy_sends(
    version: int, source: Address | None, destination: Address | None, expected: bytes
) -> None:
    """The bytes are those of HAProxy 2.6."""
    assert build(version, source, destination) == expected
