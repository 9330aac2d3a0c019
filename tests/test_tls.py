"""The server name of ClientHellos: real ones of Python's ssl, split everywhere, fragmented, and broken ones."""

from __future__ import annotations

import ssl
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hitlessd.tls import HELLO_LIMIT, server_name


def hello(name: str | None, protocols: list[str] | None = None, only: ssl.TLSVersion | None = None) -> bytes:
    """What a client of OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    if only:
        context.maximum_version = only
    out = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return out.read()


NAMED = hello("www.Example.net")


def records(message: bytes, size: int) -> bytes:
    """A handshake message in records of at most that many bytes."""
    parts = [message[i : i + size] for i in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(part)) + part for part in parts)


def made(extensions: bytes | None, version: bytes = b"\x03\x03") -> bytes:
    """A ClientHello in one record."""
    body = version + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
    if extensions is not None:
        body += struct.pack("!H", len(extensions)) + extensions
    return records(b"\x01" + len(body).to_bytes(3) + body, 1 << 14)


def sni(name: bytes, kind: int = 0) -> bytes:
    entry = bytes([kind]) + struct.pack("!H", len(name)) + name
    body = struct.pack("!H", len(entry)) + entry
    return struct.pack("!HH", 0, len(body)) + body


@pytest.mark.parametrize("only", [None, ssl.TLSVersion.TLSv1_2])
@pytest.mark.parametrize("protocols", [None, ["h2", "http/1.1"]])
@pytest.mark.parametrize("name", ["a", "www.example.net", "x" * 60 + "." + "y" * 60, None])
def test_real_ones_at_every_length(name: str | None, protocols: list[str] | None, only: ssl.TLSVersion | None) -> None:
    data = hello(name, protocols, only)
    assert server_name(data) == (name or "")
    assert {server_name(data[:length]) for length in range(len(data))} == {None}
    assert server_name(data + b"\x14\x03\x03\x00\x01\x01") == (name or "")


def test_an_address_is_no_name() -> None:
    assert server_name(hello("192.0.2.1")) == ""


def test_case_does_not_count() -> None:
    assert server_name(NAMED) == "www.example.net"
    assert server_name(made(sni(b"A.EXAMPLE."))) == "a.example"


@pytest.mark.parametrize("size", [16, 17, 64, 100, 200, 5000])
def test_fragmented_over_records(size: int) -> None:
    data = records(NAMED[5:], size)
    assert server_name(data) == "www.example.net"
    assert {server_name(data[:length]) for length in range(len(data))} == {None}


def test_too_many_records() -> None:
    assert server_name(records(NAMED[5:], 1)) == ""


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x15\x03\x01\0\x02\x01\x00",
        b"\x16\x02",
        b"\x16\x03\x01\0\0",
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\0\x10\x02",
        b"\x16\x03\x01\0\x10\x01" + (HELLO_LIMIT + 1).to_bytes(3),
        b"\x16\x03\x01\0\x10\x01\0\x10\0\x04",
        made(None),
        made(b""),
        made(sni(b"a.example"), b"\x02\x00"),
        made(sni(b"")),
        made(sni(b"a", 1)),
        made(sni(b"a b")),
        made(sni(b"a\0b")),
        made(sni(b"\xc3\xa9.example")),
        made(sni(b"a" * 256)),
        made(sni(b"a.example") * 2),
        made(sni(b"a.example")[:-1]),
        made(sni(b"a.example") + b"\0"),
        made(struct.pack("!HH", 0, 0)),
        made(struct.pack("!HHH", 0, 3, 1) + b"\0"),
        records(b"\x01\0\0\0", 100),
        records(b"\x01\0\0\x03\x03\x03\0", 100),
    ],
)
def test_no_name(data: bytes) -> None:
    assert server_name(data) == ""


def test_none_yet() -> None:
    assert server_name(b"") is None


FAST = settings(max_examples=300, deadline=None, derandomize=True)


@FAST
@given(
    st.lists(st.tuples(st.integers(0, len(NAMED) - 1), st.integers(0, 255)), max_size=5),
    st.integers(0, len(NAMED)),
    st.binary(max_size=20),
)
def test_broken_ones(changes: list[tuple[int, int]], length: int, tail: bytes) -> None:
    """Whatever the bytes: a name, none, or a wait; and once it is told, further bytes do not change it."""
    data = bytearray(NAMED)
    for at, value in changes:
        data[at] = value
    whole = bytes(data[:length]) + tail
    told = None
    for end in range(len(whole) + 1):
        now = server_name(whole[:end])
        assert told is None or now == told
        told = now
    if told:
        assert told.isascii()
        assert told.isprintable()


@FAST
@given(st.binary(max_size=64))
def test_anything(data: bytes) -> None:
    assert server_name(data) in ("", None)
    assert server_name(data + bytes(70 * 1024)) == ""


@pytest.mark.parametrize("size", [1, 255, 1 << 14])
def test_the_wait_is_bounded(size: int) -> None:
    """No client can make us look for ever."""
    message = b"\x01" + HELLO_LIMIT.to_bytes(3) + b"\x03\x03" + bytes(HELLO_LIMIT)
    assert server_name(records(message, size)) == ""
