"""Answers to HTTP checks: the same judgement however they come in pieces, and HAProxy's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hitlessd.health import Outcome, Result
from hitlessd.model import Expectation, HttpCheck
from hitlessd.probes import MOST, HttpProbe, proxy_header, request

OK = b"HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-State: good, better\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\n\r\nhello"
NO_BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
STATUS, REASON = Outcome(Result.L7OK, 200), Outcome(Result.L7STS, 200, "Fine")
INVALID = Outcome(Result.L7RSP)
MISSING = Outcome(Result.L7RSP, 0, "HTTP content check did not match")
UNWANTED = Outcome(Result.L7RSP, 0, "HTTP check matched unwanted content")
EMPTY = Outcome(Result.L7RSP, 0, "HTTP content check could not find a response body")


def judged(answer: bytes, *expect: Expectation, method: str = "GET", piece: int = 1 << 20) -> Outcome:
    probe = HttpProbe(HttpCheck(method, expect=expect))
    for at in range(0, len(answer), piece):
        if outcome := probe.feed(answer[at : at + piece]):
            return outcome
    return probe.end()


def status(code: int) -> bytes:
    return b"HTTP/1.1 %d Text of it\r\nContent-Length: 0\r\n\r\n" % code


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("answer", "expect", "outcome"),
    [
        (OK, (), STATUS),
        (status(204), (), Outcome(Result.L7OK, 204)),
        (status(399), (), Outcome(Result.L7OK, 399)),
        (status(400), (), Outcome(Result.L7STS, 400, "Text of it")),
        (status(503), (), Outcome(Result.L7STS, 503, "Text of it")),
        (status(101), (), Outcome(Result.L7STS, 101, "Text of it")),
        (status(100) + OK, (), STATUS),
        (b"HTTP/1.0 200\r\n\r\n", (), STATUS),
        (b"HTTP/1.1 200 OK\n\n", (), STATUS),
        (b"HTTP/1.1 503 \r\n\r\n", (), Outcome(Result.L7STS, 503)),
        (b"", (), INVALID),
        (b"garbage here\r\n\r\n", (), INVALID),
        (b"HTTP/1.1 2000 OK\r\n\r\n", (), INVALID),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", (), INVALID),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", (), INVALID),
        (b"HTTP/1.1 200 OK\r\nA: b" + b"x" * MOST, (), INVALID),
        (OK, (Expectation("status", "200"),), STATUS),
        (OK, (Expectation("status", "100-199,200,500-599"),), STATUS),
        (OK, (Expectation("status", "201-599"),), REASON),
        (OK, (Expectation("status", "200-299", negated=True),), REASON),
        (OK, (Expectation("status", "300", negated=True),), STATUS),
        (OK, (Expectation("rstatus", "^2.0$"),), STATUS),
        (OK, (Expectation("rstatus", "^4"),), REASON),
        (OK, (Expectation("rstatus", "00", negated=True),), REASON),
        (OK, (Expectation("hdr", "", "x-STATE"),), STATUS),
        (OK, (Expectation("hdr", "better", "x-state"),), STATUS),
        (OK, (Expectation("hdr", "good, better", "x-state"),), REASON),
        (OK, (Expectation("hdr", "best", "x-state"),), REASON),
        (OK, (Expectation("hdr", "", "x-other"),), REASON),
        (OK, (Expectation("hdr", "", "x-other", True),), STATUS),
        (OK, (Expectation("string", "ell"),), STATUS),
        (OK, (Expectation("string", "HELL"),), MISSING),
        (OK, (Expectation("string", "ell", negated=True),), UNWANTED),
        (OK, (Expectation("string", "HELL", negated=True),), STATUS),
        (OK + b"more", (Expectation("string", "more"),), MISSING),
        (OK, (Expectation("rstring", "h.l+o$"),), STATUS),
        (OK, (Expectation("rstring", "^ello"),), MISSING),
        (CHUNKED, (Expectation("string", "hello"),), STATUS),
        (CHUNKED, (Expectation("string", "x=y"),), MISSING),
        (CHUNKED.replace(b"\r\n3\r\n", b"\r\n-3\r\n"), (Expectation("string", "hello"),), INVALID),
        (CHUNKED.replace(b"hel\r\n", b"help!"), (Expectation("string", "hello"),), INVALID),
        (UNTIL_CLOSE, (Expectation("string", "hello"),), STATUS),
        (UNTIL_CLOSE, (Expectation("string", "yellow"),), MISSING),
        (UNTIL_CLOSE, (Expectation("string", "yellow", negated=True),), STATUS),
        (UNTIL_CLOSE + b"x" * MOST + b"end", (Expectation("string", "end"),), MISSING),
        (NO_BODY, (Expectation("string", "hello"),), EMPTY),
        (OK, (Expectation("status", "200"), Expectation("string", "hello")), STATUS),
        (OK, (Expectation("status", "404"), Expectation("string", "hello")), REASON),
        (OK, (Expectation("string", "hello"), Expectation("hdr", "no", "x-state")), REASON),
        (OK.replace(b"5", b"five"), (Expectation("string", "hello"),), INVALID),
    ],
)
def test_judgement(answer: bytes, expect: tuple[Expectation, ...], outcome: Outcome, piece: int) -> None:
    assert judged(answer, *expect, piece=piece) == outcome


def test_an_answer_to_head_has_no_body() -> None:
    assert judged(OK, method="HEAD") == STATUS
    assert judged(OK, Expectation("string", "hello"), method="HEAD") == EMPTY


@pytest.mark.parametrize("expectation", [Expectation("string", "ell"), Expectation("status", "200-399")])
def test_what_is_decided_is_not_waited_for(expectation: Expectation) -> None:
    probe = HttpProbe(HttpCheck(expect=(expectation,)))
    assert probe.feed(OK[:-1]) == STATUS


@given(
    st.sampled_from([OK, CHUNKED, UNTIL_CLOSE, NO_BODY, b"HTTP/1.1 200 OK\r\n"]),
    st.lists(st.tuples(st.integers(0, 80), st.binary(max_size=3)), max_size=4),
    st.lists(st.integers(1, 60), max_size=20),
    st.sampled_from(["hello", "lo", "q"]),
    st.booleans(),
)
def test_pieces_make_no_difference(
    answer: bytes, changes: list[tuple[int, bytes]], cuts: list[int], text: str, negated: bool
) -> None:
    for at, data in changes:
        answer = answer[:at] + data + answer[at + len(data) :]
    expect = Expectation("string", text, negated=negated)
    whole, probe, at = judged(answer, expect, piece=1 << 20), HttpProbe(HttpCheck("GET", expect=(expect,))), 0
    found = None
    for cut in [*cuts, 1 << 20]:
        found = found or probe.feed(answer[at : at + cut]) if answer[at : at + cut] else found
        at += cut
    assert (found or probe.end()).result.passed is whole.result.passed


@given(st.binary(max_size=200), st.integers(1, 9))
def test_nothing_crashes(rest: bytes, piece: int) -> None:
    for start in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        assert isinstance(judged(start + rest, Expectation("rstring", "x"), piece=piece), Outcome)


def test_requests() -> None:
    assert request(HttpCheck()) == b"OPTIONS / HTTP/1.0\r\nConnection: close\r\n\r\n"
    check = HttpCheck("POST", "/x", "HTTP/1.1", (("Host", "www"), ("X-A", "b c")), "ü")
    expected = "POST /x HTTP/1.1\r\nHost: www\r\nX-A: b c\r\nContent-Length: 2\r\nConnection: close\r\n\r\nü"
    assert request(check) == expected.encode()


def test_proxy_headers() -> None:
    ours, theirs = ("127.0.0.1", 1), ("127.0.0.1", 2)
    assert proxy_header(0, ours, theirs) == b""
    assert proxy_header(1, ours, theirs) == b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"
    assert proxy_header(1, ("fe80::1%lo", 1, 0, 1), ("::1", 2, 0, 0)) == b"PROXY TCP6 fe80::1 ::1 1 2\r\n"
    assert proxy_header(1, "", "/run/x") == b"PROXY UNKNOWN\r\n"
    assert proxy_header(2, ours, theirs) == b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
