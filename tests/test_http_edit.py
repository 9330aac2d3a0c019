"""The heads that are passed on."""

from __future__ import annotations

import pytest

from hitlessd.http.edit import ADD, DELETE, SET, Edit, forward_request, forward_response
from hitlessd.http.grammar import Refused
from hitlessd.http.heads import parse_request, parse_response


def _sent(fields: bytes, keep: bool = True, edits: tuple[Edit, ...] = (), version: bytes = b"1.1") -> bytes:
    """The fields that a server gets behind Host."""
    first = b"GET / HTTP/" + version + b"\r\nHost: a\r\n"
    head = forward_request(parse_request(first + fields + b"\r\n"), keep, edits)
    assert head.startswith(b"GET / HTTP/" + version + b"\r\n") and head.endswith(b"\r\n\r\n")
    return head.removeprefix(first).removesuffix(b"\r\n")


def _answered(fields: bytes, client: int = 11, keep: bool = True, line: bytes = b"HTTP/1.1 200 OK\r\n") -> bytes:
    head = forward_response(parse_response(line + fields + b"\r\n"), client, keep)
    assert head.startswith(line) and head.endswith(b"\r\n\r\n")
    return head.removeprefix(line).removesuffix(b"\r\n")


def test_an_unchanged_head_is_the_same_bytes() -> None:
    request = parse_request(b"GET / HTTP/1.1\r\nHost: a\r\nx-ODD:  b \r\n\r\n")
    assert forward_request(request, True) is request.raw
    response = parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert forward_response(response, 11, True) is response.raw


@pytest.mark.parametrize(
    ("fields", "keep", "sent"),
    [
        (b"Connection: keep-alive\r\nX: y\r\n", True, b"X: y\r\n"),
        (b"X: y\r\nConnection: close\r\n", True, b"X: y\r\n"),
        (b"X: y\r\n", False, b"X: y\r\nConnection: close\r\n"),
        (b"Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\nUpgrade: websocket\r\nX: y\r\n", True, b"X: y\r\n"),
        (b"Connection: X-A, x-b\r\nX-A: 1\r\nX-B: 2\r\nX-C: 3\r\n", True, b"X-C: 3\r\n"),
        (b"TE: gzip, trailers\r\nConnection: TE\r\n", True, b"TE: trailers\r\nConnection: TE\r\n"),
        (b"TE: gzip\r\nConnection: TE\r\n", True, b""),
        (b"Expect: 100-continue\r\n", True, b"Expect: 100-continue\r\n"),
        (b"Connection: Upgrade\r\nUpgrade: x\r\nA: b\r\n", True, b"Connection: Upgrade\r\nUpgrade: x\r\nA: b\r\n"),
        (b"Connection: Upgrade, A\r\nUpgrade: x\r\nA: b\r\n", True, b"Upgrade: x\r\nConnection: Upgrade\r\n"),
        (b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n", True, b""),
    ],
)
def test_what_was_meant_for_us_ends_here(fields: bytes, keep: bool, sent: bytes) -> None:
    assert _sent(fields, keep) == sent


def test_connection_cannot_name_away_what_the_server_needs() -> None:
    for name in (b"Host", b"Content-Length", b"Cookie", b"Authorization", b"X-Forwarded-For", b"Cache-Control"):
        fields = b"Connection: %b\r\n" % name
        kept = b"" if name == b"Host" else b"%b: 0\r\n" % name
        assert _sent(fields + kept) == kept
    assert (
        _sent(b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n") == b"Transfer-Encoding: chunked\r\n"
    )


def test_http_1_0_asks_for_what_it_wants() -> None:
    assert _sent(b"", True, version=b"1.0") == b"Connection: keep-alive\r\n"
    assert _sent(b"Connection: keep-alive\r\n", False, version=b"1.0") == b""


def test_edits_in_one_pass() -> None:
    fields = b"X-A: 1\r\nCookie: c\r\nx-a: 2\r\n"
    assert _sent(fields, edits=((SET, b"X-A", b"3"),)) == b"Cookie: c\r\nX-A: 3\r\n"
    assert _sent(fields, edits=((ADD, b"X-A", b"3"),)) == fields + b"X-A: 3\r\n"
    assert _sent(fields, edits=((DELETE, b"COOKIE", b""),)) == b"X-A: 1\r\nx-a: 2\r\n"
    assert (
        _sent(fields, edits=((ADD, b"N", b"1"), (SET, b"n", b"2"), (DELETE, b"x-a", b""))) == b"Cookie: c\r\nn: 2\r\n"
    )
    assert _sent(b"Connection: close\r\n", edits=((ADD, b"N", b"1"),)) == b"N: 1\r\n"


def test_only_whole_names_are_removed() -> None:
    assert _sent(b"X-A: 1\r\nX-AB: X-A: 2\r\nB-X-A: 3\r\n", edits=((DELETE, b"x-a", b""),)) == (
        b"X-AB: X-A: 2\r\nB-X-A: 3\r\n"
    )


def test_a_value_cannot_end_its_line() -> None:
    assert _sent(b"", edits=((SET, b"X", b"a\r\nEvil: \0b\x7f"),)) == b"X: a  Evil:  b \r\n"


@pytest.mark.parametrize(
    ("fields", "client", "keep", "answered"),
    [
        (b"Connection: close\r\nX: y\r\n", 11, True, b"X: y\r\n"),
        (b"X: y\r\n", 11, False, b"X: y\r\nConnection: close\r\n"),
        (b"X: y\r\n", 10, True, b"X: y\r\nConnection: keep-alive\r\n"),
        (b"X: y\r\n", 10, False, b"X: y\r\nConnection: close\r\n"),
        (b"Keep-Alive: timeout=5\r\nUpgrade: h2c\r\n", 11, True, b""),
        (b"Connection: X-A\r\nX-A: 1\r\n", 11, True, b""),
        (b"Connection: Set-Cookie\r\nSet-Cookie: a=b\r\n", 11, True, b"Set-Cookie: a=b\r\n"),
    ],
)
def test_responses(fields: bytes, client: int, keep: bool, answered: bytes) -> None:
    assert _answered(b"Content-Length: 0\r\n" + fields, client, keep) == b"Content-Length: 0\r\n" + answered


def test_a_response_of_http_1_0_says_so_when_the_connection_goes_on() -> None:
    line = b"HTTP/1.0 200 OK\r\n"
    assert _answered(b"Content-Length: 0\r\n", line=line) == b"Content-Length: 0\r\nConnection: keep-alive\r\n"
    assert _answered(b"Content-Length: 0\r\n", keep=False, line=line) == b"Content-Length: 0\r\n"


def test_interim_responses_say_nothing_about_the_connection() -> None:
    assert _answered(b"Link: x\r\n", keep=False, line=b"HTTP/1.1 103 Early Hints\r\n") == b"Link: x\r\n"
    switching = _answered(b"Upgrade: x\r\nConnection: Upgrade\r\n", keep=False, line=b"HTTP/1.1 101 Switching\r\n")
    assert switching == b"Upgrade: x\r\nConnection: Upgrade\r\n"
    needed = _answered(b"Upgrade: x\r\nConnection: keep-alive, upgrade\r\n", line=b"HTTP/1.1 426 Upgrade Required\r\n")
    assert needed == b"Upgrade: x\r\nConnection: Upgrade\r\n"


def test_chunks_are_nothing_for_a_client_of_http_1_0() -> None:
    response = parse_response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(Refused) as caught:
        forward_response(response, 10, False)
    assert caught.value.status == 502
