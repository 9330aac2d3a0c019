"""What a head says beyond its framing, which the corpus holds."""

from __future__ import annotations

import pytest

from hitlessd.http.grammar import CHUNKED, CLOSE, LENGTH, MAX_HEAD, NONE, Refused
from hitlessd.http.heads import Request, Response, head_end, parse_request, parse_response


def _get(fields: bytes = b"", line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a.example\r\n") -> Request:
    return parse_request(line + b"\r\n" + host + fields + b"\r\n")


def _answer(fields: bytes = b"", line: bytes = b"HTTP/1.1 200 OK") -> Response:
    return parse_response(line + b"\r\n" + fields + b"\r\n")


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", b"/", b""),
        (b"/a/b?c=d?e", b"/a/b", b"c=d?e"),
        (b"//x", b"//x", b""),
        (b"http://a.example", b"/", b""),
        (b"http://a.example/x?y", b"/x", b"y"),
        (b"HTTPS://a.example:443/x", b"/x", b""),
    ],
)
def test_path_and_query(target: bytes, path: bytes, query: bytes) -> None:
    request = _get(line=b"GET " + target + b" HTTP/1.1")
    assert (request.path, request.query, request.target) == (path, query, target)


def test_neither_connect_nor_the_asterisk_has_a_path() -> None:
    assert _get(line=b"CONNECT a.example:443 HTTP/1.1").path == b""
    assert _get(line=b"OPTIONS * HTTP/1.1").path == b""


def test_the_host_is_the_targets_or_that_of_host() -> None:
    assert _get().host == b"a.example"
    assert _get(line=b"GET http://a.example:80/ HTTP/1.1").host == b"a.example:80"
    assert _get(line=b"CONNECT a.example:443 HTTP/1.1").host == b"a.example:443"
    assert _get(line=b"GET / HTTP/1.0", host=b"").host == b""


def test_fields_are_in_order_and_case_without_the_space_around() -> None:
    request = _get(b"X-A:1\r\nx-a: \t 2 \t\r\nY:\r\n")
    assert request.fields == ((b"Host", b"a.example"), (b"X-A", b"1"), (b"x-a", b"2"), (b"Y", b""))
    assert request.values(b"x-a") == [b"1", b"2"]
    assert request.values(b"z") == []


@pytest.mark.parametrize(
    ("version", "connection", "goes_on"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: Close\r\n", False),
        (b"1.1", b"Connection: x, close\r\n", False),
        (b"1.1", b"Connection: x\r\nConnection: close\r\n", False),
        (b"1.1", b"Connection: closed\r\n", True),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: Keep-Alive\r\n", True),
        (b"1.0", b"Connection: keep-alive, close\r\n", False),
    ],
)
def test_whether_the_connection_goes_on(version: bytes, connection: bytes, goes_on: bool) -> None:
    assert _get(connection, b"GET / HTTP/" + version).keep_alive is goes_on
    assert _answer(connection, b"HTTP/" + version + b" 200 OK").keep_alive is goes_on


@pytest.mark.parametrize(
    ("fields", "version", "offered"),
    [
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"1.1", True),
        (b"Connection: keep-alive, upgrade\r\nUpgrade: a, b\r\n", b"1.1", True),
        (b"Upgrade: websocket\r\n", b"1.1", False),
        (b"Connection: Upgrade\r\n", b"1.1", False),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"1.0", False),
        (b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n", b"1.1", False),
        (b"Connection: Upgrade\r\nUpgrade: websocket, H2C\r\n", b"1.1", False),
        (b"Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n", b"1.1", False),
    ],
)
def test_an_upgrade_is_offered_by_two_fields_and_is_not_to_http_2(fields: bytes, version: bytes, offered: bool) -> None:
    assert _get(fields, b"GET / HTTP/" + version).upgrade is offered


def test_expectations() -> None:
    assert _get(b"Expect: 100-Continue\r\nContent-Length: 1\r\n").expect
    assert not _get(b"Expect: 100-continue\r\n", b"GET / HTTP/1.0").expect
    assert not _get(b"Expect: other\r\n").expect


def test_framing_of_a_request() -> None:
    assert (_get().framing, _get().length) == (NONE, 0)
    sized = _get(b"Content-Length: 12\r\n")
    assert (sized.framing, sized.length) == (LENGTH, 12)
    assert _get(b"Transfer-Encoding: chunked\r\n").framing == CHUNKED


@pytest.mark.parametrize(
    ("status", "method", "body"),
    [
        (b"200", b"GET", (LENGTH, 5)),
        (b"200", b"HEAD", (NONE, 0)),
        (b"304", b"GET", (NONE, 0)),
        (b"200", b"CONNECT", (NONE, 0)),
        (b"407", b"CONNECT", (LENGTH, 5)),
    ],
)
def test_the_body_of_a_response_depends_on_the_request(status: bytes, method: bytes, body: tuple[int, int]) -> None:
    assert _answer(b"Content-Length: 5\r\n", b"HTTP/1.1 " + status + b" OK").body_for(method) == body


def test_other_framings_of_a_response() -> None:
    assert _answer().body_for(b"GET") == (CLOSE, 0)
    assert _answer(b"Transfer-Encoding: chunked\r\n").body_for(b"GET") == (CHUNKED, 0)
    assert _answer(line=b"HTTP/1.1 204 No Content").body_for(b"GET") == (NONE, 0)
    assert _answer(line=b"HTTP/1.1 100 Continue").body_for(b"GET") == (NONE, 0)
    assert _answer(b"Upgrade: x\r\nConnection: upgrade\r\n", b"HTTP/1.1 101 Switching").upgrade


def test_equal_heads_are_one_object() -> None:
    head = b"GET /shared HTTP/1.1\r\nHost: a\r\n\r\n"
    assert parse_request(head) is parse_request(bytes(bytearray(head)))
    big = head[:-2] + b"X: " + b"y" * 2000 + b"\r\n\r\n"
    assert parse_request(big) is not parse_request(bytes(bytearray(big)))


def test_a_head_is_found_where_it_begins() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    buffer = bytearray(b"body" + head + b"GET")
    assert head_end(buffer, 4) == 4 + len(head)
    assert head_end(buffer, 4 + len(head)) == 0
    assert head_end(buffer, len(buffer)) == 0


def test_empty_lines_before_a_request_are_not_passed_on() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert head_end(b"\r\n\r\n" + head, 0) == len(head) + 4
    assert parse_request(b"\r\n\r\n" + head).raw == head


@pytest.mark.parametrize(
    "beginning",
    [b"\x16\x03\x01", b"\0", b"G\0", b"GET / HTTP/1.1\r\nX: \x01", b"GET /\r\n", b"G T\r\n", b"GET / HTTP/1.1\n"],
)
def test_what_can_be_no_head_is_refused_before_it_is_whole(beginning: bytes) -> None:
    with pytest.raises(Refused):
        head_end(beginning, 0)


@pytest.mark.parametrize("beginning", [b"SSH-2.0", b"http/1.1", b"HTTP/1.1 2x0 OK\r\n", b"\r\n", b"HTTP/1.1\t200"])
def test_what_can_be_no_response_is_refused_before_it_is_whole(beginning: bytes) -> None:
    with pytest.raises(Refused):
        head_end(beginning + (b"" if beginning.endswith(b"\n") else b"\r\n"), 0, response=True)


def test_a_head_without_an_end_is_bounded() -> None:
    head = b"GET / HTTP/1.1\r\nX: "
    assert head_end(head.ljust(MAX_HEAD - 1, b"y"), 0) == 0
    with pytest.raises(Refused) as caught:
        head_end(head.ljust(MAX_HEAD, b"y"), 0)
    assert caught.value.status == 431
    assert str(caught.value) == "cannot pass the message on: a head of more than 16384 bytes"
