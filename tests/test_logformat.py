"""HAProxy's log-format language. What the lines must look like was taken from haproxy 2.6 with the same formats."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hitlessd.logfields import VARIABLES
from hitlessd.logformat import HTTP_FORMAT, TCP_FORMAT, compile_format, problem_of
from tests.support.records import Head, Record


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def line(text: str, *, log: bool = True, **values: Any) -> str:
    return compile_format(text, log=log)(Record(**values))


def test_the_tcp_format() -> None:
    times: dict[str, Any] = {"request_began": 1_700_000_000.25, "request_done": 1_700_000_000.25}
    assert line(TCP_FORMAT, http=False, request=None, **times) == (
        "192.0.2.7:33088 [14/Nov/2023:22:13:20.250] www app/s1 500/250/3750 2750 -- 5/4/3/2/0 0/0"
    )


def test_the_http_format() -> None:
    assert line(HTTP_FORMAT, request=Head(b"POST", b"/a?b=c"), retries=1, redispatched=True, cause="cD") == (
        "192.0.2.7:33088 [14/Nov/2023:22:13:20.500] www app/s1 125/125/250/1000/3500 200 2750 - - cD-- 5/4/3/2/+1 0/0 "
        '"POST /a?b=c HTTP/1.1"'
    )


def test_what_is_no_request_and_found_no_server() -> None:
    never: dict[str, Any] = dict.fromkeys(
        ("request_began", "request_done", "assigned", "connected", "response_began"), -1.0
    )
    text = line(HTTP_FORMAT, request=None, status=400, server_name="", cause="PR", bytes_read=0, **never)
    assert text.split("] ")[1] == 'www app/<NOSRV> -1/-1/-1/-1/3750 400 0 - - PR-- 5/4/3/2/0 0/0 "<BADREQ>"'


def test_captures_stand_between_their_neighbours() -> None:
    text = line("%bq %hr %hs %{+Q}r", request_captures=["a b", 'x"#{|}\xe9\t'], response_captures=["z"])
    assert text == '0 {a b|x#22#23#7B#7C#7D#E9#09} {z} "GET / HTTP/1.1"'
    assert line("%bq %hr %hs %{+Q}r", response_captures=["z"]) == '0 {z} "GET / HTTP/1.1"'
    assert line("%bq %hr %hs %{+Q}r", request_captures=["z"]) == '0 {z} "GET / HTTP/1.1"'
    assert line("%hr|%hrl|%{+Q}hr", request_captures=["", "a"]) == '{|a}|- a|"{|a}"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%ci %cp", "192.0.2.7 33088"),
        ("%{+X}ci:%{+X}cp", "C0000207:8140"),
        ("%{+Q}ci %{+Q}cp %{+Q}b %{+Q}B", '"192.0.2.7" 33088 "app" 2750'),
        ("%{+Q}o %b %B %{-Q}s", '"app" 2750 s1'),
        ("%{+Q,+E}o %b", '"app"'),
        ("%fi:%fp %si:%sp %bi:%bp", "192.0.2.1:80 10.0.0.1:8080 10.0.0.9:40000"),
        ("%T|%Tl|%Ts|%{+X}Ts|%ms", "14/Nov/2023:22:13:20 +0000|14/Nov/2023:22:13:20 +0000|1700000000|6553F100|250"),
        ("%t|%tr|%trg|%trl", "14/Nov/2023:22:13:20.250|14/Nov/2023:22:13:20.500" + "|14/Nov/2023:22:13:20 +0000" * 2),
        ("%Th/%Ti/%TR/%Tq/%Tw/%Tc/%Tr/%Td/%Ta/%Tt/%Tu", "0/250/125/375/125/250/1000/2000/3500/3750/3500"),
        ("%B %U %ST %ts %tsc", "2750 120 200 -- ----"),
        ("%ac %fc %bc %sc %rc %sq %bq", "5 4 3 2 0 0 0"),
        ("%f %ft %b %s", "www www app s1"),
        ("%ID %CC %CS|%{+Q}ID", '- - -|""'),
        ("100%% of it", "100% of it"),
        ("  a   b\t c ", "a b c "),
        ("%ci%cp", "192.0.2.733088"),
        ("%rt %lc", "7 7"),
        ("%ci_x.%b", "192.0.2.7_x.app"),
        ('it\'s "{quoted}" \\n', 'it\'s "{quoted}" \\n'),
    ],
)
def test_variables_and_flags(text: str, expected: str) -> None:
    assert line(text) == expected


def test_this_machine() -> None:
    assert line("%H %pid") == f"{socket.gethostname()} {os.getpid()}"


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (b"/a/b?c=d?e", "/a/b|/a/b|?c=d?e|/a/b?c=d?e"),
        (b"http://u:p@ho.st/p?q", "http://u:p@ho.st/p|/p|?q|http://u:p@ho.st/p?q"),
        (b"http://host", "http://host|-|-|http://host"),
        (b"*", "*|-|-|*"),
        (b"a:1", "a:1|-|-|a:1"),
        (b'/a"b{|}#\x01\xff', "/a#22b{|}#23#01#FF|/a#22b{|}#23#01#FF|-|/a#22b{|}#23#01#FF"),
    ],
)
def test_parts_of_the_target(target: bytes, parts: str) -> None:
    assert line("%HP|%HPO|%HQ|%HU", request=Head(target=target)) == parts


def test_a_request_line_is_escaped_and_cut_as_haproxys() -> None:
    assert line("%HM %HV", request=Head(b"PUT", version=10)) == "PUT HTTP/1.0"
    assert line("%{+E}r", request=Head(target=b'/a"\\]')) == "GET /a#22\\\\\\] HTTP/1.1"
    assert len(line("%r", request=Head(target=b"/" + b"a" * 3000))) == 1023


def test_clients_of_unix_sockets() -> None:
    assert line("%ci:%cp %{+X}ci", client=None) == "unix:3 unix"
    assert line("%ci", client=("::1", 1)) == "::1"
    assert line("%{+X}ci", client=("::1", 1)) == "0" * 31 + "1"
    assert line("%si:%sp", server_address=None) == "-:-"


def test_samples() -> None:
    head = Head(fields=((b"X", b'a"b\\]\xe9Z'),))
    assert (
        line("%[src] %[req.hdr(x)] %{+Q}[req.hdr(none)] %[req.hdr(none)]", request=head) == '192.0.2.7 a"b\\]#E9Z "" -'
    )
    assert line("%[req.hdr(x),lower]|%[req.hdr(x),upper]", request=head, log=False) == 'a"b\\]\xe9z|A"B\\]\xe9Z'
    assert line("%{+E,+Q}[req.hdr(x)]", request=head, log=False) == '"a\\"b\\\\\\]\xe9Z"'
    assert line("%[src,lower,upper]:%[src_port]") == "192.0.2.7:33088"


def test_of_many_converters_the_last_one_counts() -> None:
    head = Head(fields=((b"X", b"aB"),))
    assert line(f"%[req.hdr(x){',lower,upper' * 300}]%[req.hdr(x){',upper,lower' * 300}]", request=head) == "ABab"


def test_a_header_keeps_its_spaces_and_shows_nothing_as_nothing() -> None:
    assert line(" %[req.hdr(none)]|%ID|%hr   x ", log=False) == " ||   x "


def test_no_client_can_write_a_second_line() -> None:
    every = bytes(range(256))
    text = line(
        " ".join(f"%{name}" for name in VARIABLES) + " %[req.hdr(x)]",
        request=Head(every, every, fields=((b"x", every),)),
    )
    assert re.fullmatch("[ -~]+", text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("%zzz", 'cannot use the variable "%zzz": no such variable'),
        ("%tscc", 'did you mean "%tsc"?'),
        ("%{+Q", 'cannot read "%{+Q": expected "}"'),
        ("%{+Z}b", 'cannot use the flag "+Z" in "%{+Z}": expected +Q, -Q'),
        ("%{Q}b", 'cannot use the flag "Q"'),
        ("%", 'cannot read "%": expected a variable'),
        ("a % b", 'cannot read "% b": expected a variable'),
        ("%{+Q}", 'cannot read "%{+Q}"'),
        ("%[", 'cannot read "%[": expected the name of a sample fetch'),
        ("%[src", 'expected "]" after "src"'),
        ("%[src,lowe]", 'cannot use the converter "lowe": expected lower or upper; did you mean "lower"?'),
        ("%[sorc]", "cannot"),
    ],
)
def test_mistakes(text: str, words: str) -> None:
    assert words in problem_of(text)


def test_what_needs_http() -> None:
    assert problem_of("%r") == "" and problem_of(TCP_FORMAT, http=False) == ""
    assert problem_of("%r", http=False) == 'cannot use the variable "%r": it needs mode http'


def test_a_process_that_forks_says_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    text = compile_format("%pid", log=True)
    assert text(Record()) == str(os.getpid())
