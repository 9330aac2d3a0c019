"""The static algorithms send every client and every request to the server to which a real haproxy sends it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hitlessd.balance import StaticRoundRobin
from hitlessd.hashing import MapBased, server_map, source_hash, text_hash, uri_key
from tests.support.judge import Judge

WEIGHTS = [4, 10, 6]
REDUCED = [2, 5, 3]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
SERVERS = [f"weight {weight}" for weight in WEIGHTS]


def ask(judge: Judge, target: bytes, *fields: bytes) -> int:
    lines = b"".join(field + b"\r\n" for field in fields)
    request = b"GET %s HTTP/1.1\r\nHost: host\r\n%sConnection: close\r\n\r\n" % (target, lines)
    return judge.ask(request, ANSWER)[0]


def test_source(tmp_path: Path) -> None:
    mapping = MapBased(REDUCED, source_hash)
    with Judge(tmp_path, ["balance source"], SERVERS, "tcp") as judge:
        for number in range(1, 60):
            address = f"127.{number % 3}.{number % 5}.{number}"
            assert judge.visit(address) == mapping.position(socket.inet_aton(address))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("", {}),
        ("len 8", {"length": 8}),
        ("depth 1", {"depth": 1}),
        ("depth 2", {"depth": 2}),
        ("len 7 depth 2", {"length": 7, "depth": 2}),
        ("whole", {"whole": True}),
    ],
)
def test_uri(tmp_path: Path, words: str, options: dict[str, int]) -> None:
    mapping = MapBased(REDUCED, text_hash)
    with Judge(tmp_path, [f"balance uri {words}"], SERVERS) as judge:
        for number in range(60):
            kinds = (b"/%d", b"/a/b%d/c?x=/1", b"http://host/x/y%d", b"//%d/", b"/dir%d/f/?q")
            target = kinds[number % 5] % number
            assert ask(judge, target) == mapping.position(uri_key(target, **options))  # type: ignore[arg-type]


def test_hdr(tmp_path: Path) -> None:
    mapping = MapBased(REDUCED, text_hash)
    with Judge(tmp_path, ["balance hdr(X-Key)"], SERVERS) as judge:
        for number in range(60):
            assert ask(judge, b"/", b"x-key: v%d , z" % number, b"X-Key: other") == mapping.position(b"v%d" % number)


@pytest.mark.parametrize("balance", ["static-rr", "hdr(X-Key)"])
def test_turns(tmp_path: Path, balance: str) -> None:
    turns = StaticRoundRobin(server_map(REDUCED))
    with Judge(tmp_path, [f"balance {balance}"], SERVERS) as judge:
        went = [ask(judge, b"/", b"X-Key: ") for _ in range(20)]
    assert went == [turns.choose(b"", lambda _: 0) for _ in range(20)]
