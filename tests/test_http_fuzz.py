"""Heads, bodies and their pieces by the thousand: one reading, however they arrive, and h11 and llhttp share it."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hitlessd.http.body import Body
from hitlessd.http.edit import ADD, DELETE, SET, forward_request, forward_response
from hitlessd.http.grammar import CHUNKED, Refused
from hitlessd.http.heads import head_end, parse_request, parse_response
from tests.support.readers import Outcome, by_h11, by_httptools, by_us, in_pieces

FUZZ = settings(max_examples=600, deadline=None, derandomize=True)

_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NAMES = st.sampled_from(
    [b"Host", b"host", b"Content-Length", b"content-length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"Expect"]
    + [b"TE", b"X", b"X-Y", b"Content-Length ", b" X", b"", b"Transfer_Encoding", b"Trailer", b"Cookie", b"Keep-Alive"]
)
_VALUES = st.sampled_from(
    [b"a.example", b"5", b"0", b"05", b"5, 5", b"+5", b"chunked", b"Chunked", b"chunked, chunked", b"gzip, chunked"]
    + [b"close", b"keep-alive", b"upgrade", b"X-Y, close", b"websocket", b"h2c", b"100-continue", b"trailers", b""]
    + [b"\x0bchunked", b"chunked\x00", b"\xff", b"a b", b"Host", b"x\r\n y", b"x\ny", b"x\ry"]
)
_COLONS = st.sampled_from([b": ", b":", b": \t", b":  "] * 4 + [b" :", b"", b"::"])
_ENDS = st.sampled_from([b"\r\n"] * 40 + [b"\n", b"\r", b"\r\r\n", b" \r\n", b"\n\r"])
_LINES = st.tuples(_NAMES, _COLONS, _VALUES, _ENDS).map(b"".join)
_METHODS = st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"CONNECT", b"PUT", b"G@T", b""])
_TARGETS = st.sampled_from([b"/", b"/a?b", b"*", b"http://a.example/", b"a.example:80", b"a", b"/a b", b"/#", b"/\xff"])
_VERSIONS = st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b""])
_SPACES = st.sampled_from([b" "] * 20 + [b"  ", b"\t"])
_REQUEST_LINES = st.tuples(_METHODS, _SPACES, _TARGETS, _SPACES, _VERSIONS, _ENDS).map(b"".join)
_STATUS_LINES = st.tuples(
    _VERSIONS, _SPACES, st.sampled_from([b"200", b"100", b"204", b"304", b"500", b"20", b"099"]), _SPACES
).map(lambda parts: b"".join(parts) + b"OK\r\n")
_SIZES = st.sampled_from([b"5", b"05", b"0", b"5;a=b", b'5;a="b;"', b"5 ", b"0x5", b"6", b"5;", b"ffffffffffffffff"])
_CHUNKS = st.tuples(_SIZES, _ENDS, st.sampled_from([b"hello", b"0\r\n\r\n", b"\r\n\r\n\r"]), _ENDS).map(b"".join)
_BODIES = st.one_of(
    st.just(b"hello"),
    st.tuples(
        st.lists(_CHUNKS, max_size=3).map(b"".join), st.just(b"0\r\n"), st.lists(_LINES, max_size=2).map(b"".join)
    ).map(lambda parts: b"".join(parts) + b"\r\n"),
    st.binary(max_size=20),
)
_HOST = st.sampled_from([b"Host: a.example\r\n"] * 8 + [b""])
_FRAMING = st.sampled_from(
    [
        b"",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    ]
)


def _message(first: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    lines = st.lists(_LINES, max_size=3).map(b"".join)
    return st.tuples(
        first, _HOST, lines, _FRAMING, st.just(b"\r\n"), _BODIES, st.sampled_from([b"", b"GET / HTTP"])
    ).map(b"".join)


REQUESTS = _message(_REQUEST_LINES)
RESPONSES = _message(_STATUS_LINES)


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)] or [b""]


def _check(data: bytes, response: bool, cuts: list[int]) -> Outcome:
    whole = by_us(data, response)
    assert in_pieces([data[at : at + 1] for at in range(len(data))], response) == whole
    assert in_pieces(_pieces(data, cuts), response) == whole
    if whole.verdict == "message":
        for reader in (by_h11, by_httptools):
            theirs = reader(data, response)
            if theirs.verdict != "message":
                assert theirs.verdict == "refused"
                continue
            assert (theirs.start, theirs.body, theirs.end) == (whole.start, whole.body, whole.end)
            assert [name for name, _ in theirs.fields] == [name for name, _ in whole.fields]
    return whole


@FUZZ
@given(REQUESTS, st.lists(st.integers(0, 999), max_size=4))
def test_requests_have_one_reading(data: bytes, cuts: list[int]) -> None:
    _check(data, False, cuts)


@FUZZ
@given(RESPONSES, st.lists(st.integers(0, 999), max_size=4))
def test_responses_have_one_reading(data: bytes, cuts: list[int]) -> None:
    _check(data, True, cuts)


_SOUND = [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"]


@FUZZ
@given(
    st.sampled_from(_SOUND), st.integers(0, 60), st.sampled_from(["insert", "replace", "delete"]), st.integers(0, 255)
)
def test_one_wrong_byte_has_one_reading(data: bytes, at: int, how: str, byte: int) -> None:
    at %= len(data)
    data = data[:at] + (b"" if how == "delete" else bytes([byte])) + data[at + (how != "insert") :]
    whole = by_us(data, False)
    assert in_pieces([data[i : i + 1] for i in range(len(data))], False) == whole


@FUZZ
@given(st.lists(_LINES, max_size=4), st.sampled_from([b"GET / HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n"]))
def test_the_lines_decide_one_by_one(lines: list[bytes], first: bytes) -> None:
    """The regular expression over the whole head, against one over each line."""
    head = first + b"Host: a.example\r\n" + b"".join(lines) + b"\r\n"
    if head.find(b"\r\n\r\n") != len(head) - 4:
        return
    sound = all(
        re.fullmatch(rb"[" + re.escape(_TOKEN) + rb"]+:[\t\x20-\x7e\x80-\xff]*", line)
        for line in head[len(first) : -4].split(b"\r\n")
    )
    reason = _reason(head)
    assert (not reason or any(word in reason for word in _MEANINGS)) if sound else reason


#: What is refused for the meaning of a sound line.
_MEANINGS = ("Content-Length", "Transfer-Encoding", "transfer coding", "Host")


def _reason(head: bytes) -> str:
    try:
        (parse_response if head.startswith(b"HTTP/") else parse_request)(head)
    except Refused as refused:
        return refused.reason
    return ""


_EDITS = st.lists(
    st.tuples(
        st.sampled_from([SET, ADD, DELETE]),
        st.sampled_from([b"X", b"X-Y", b"Cookie", b"New"]),
        st.sampled_from([b"", b"v", b"a\r\nb: c", b"\x00", b"\xff", b"a: b"]),
    ),
    max_size=3,
)


@FUZZ
@given(REQUESTS, st.booleans(), _EDITS)
def test_what_is_passed_on_means_the_same(data: bytes, keep: bool, edits: list[tuple[int, bytes, bytes]]) -> None:
    ours = by_us(data, False)
    if ours.verdict != "message":
        return
    end = head_end(data, 0)
    request = parse_request(data[:end])
    again = by_us(forward_request(request, keep, edits) + data[end:], False)
    assert (again.verdict, again.start, again.body) == (ours.verdict, ours.start, ours.body)
    if not edits and not request.upgrade:
        assert again.last is not (keep if ours.start[2] == 11 or keep else False)


@FUZZ
@given(RESPONSES, st.booleans(), st.sampled_from([10, 11]))
def test_what_is_passed_back_means_the_same(data: bytes, keep: bool, client: int) -> None:
    ours = by_us(data, True)
    if ours.verdict != "message":
        return
    end = head_end(data, 0, True)
    response = parse_response(data[:end])
    if client == 10 and response.framing == CHUNKED and response.status != 304:
        with pytest.raises(Refused):
            forward_response(response, client, keep)
        return
    head = forward_response(response, client, keep)
    again = by_us(head + data[end:], True)
    assert (again.verdict, again.start, again.body) == (ours.verdict, ours.start, ours.body)


@FUZZ
@given(
    st.lists(_CHUNKS, max_size=4).map(b"".join),
    st.lists(_LINES, max_size=2).map(b"".join),
    st.lists(st.integers(0, 999)),
)
def test_chunks_are_counted_alike_in_any_pieces(chunks: bytes, trailers: bytes, cuts: list[int]) -> None:
    data = chunks + b"0\r\n" + trailers + b"\r\n" + b"next"

    def count(pieces: list[bytes]) -> tuple[int, int, bool] | int:
        body = Body(CHUNKED)
        taken = 0
        try:
            for piece in pieces:
                body = Body.of(body.words())
                assert all(0 <= word < 1 << 64 for word in body.words())
                taken += body.take(memoryview(piece))
        except Refused as refused:
            return refused.status
        return taken, body.payload, body.done

    assert count([data]) == count(_pieces(data, cuts)) == count([data[i : i + 1] for i in range(len(data))])
