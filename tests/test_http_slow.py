"""Clients that send or read as slowly as they can, by the thousand: others are served, and memory stays bounded."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.fronts import front
from tests.support.http_backend import HttpBackend
from tests.support.http_tools import slowhttptest
from tests.support.load import Load
from tests.support.processes import parse_address, poll_until

SLOW = 1000
MEMORY = 64 << 20
"""Bytes that a worker may need for them, 64 KiB each."""


@pytest.mark.parametrize("mode", ["H", "B", "X"], ids=["slow heads", "slow bodies", "slow reading"])
def test_a_thousand_slow_clients_keep_nobody_from_being_served(mode: str, tmp_path: Path) -> None:
    options = [("timeout http-request", "4s"), ("timeout client", "1m")]
    with (
        HttpBackend(2) as backend,
        front(tmp_path, backend.addresses, options, maxconn=3000) as proxy,
    ):
        with Load(proxy.address, mode="http", mix="all", clients=20, total=500) as warm:
            assert warm.result()["failed"] == 0
        before = proxy.memory()
        with slowhttptest(proxy.address, mode, SLOW, SLOW, 60, 1) as attack:
            poll_until(lambda: proxy.connections > SLOW * 6 // 10, 20, "they are connected")
            with Load(proxy.address, mode="http", mix="all", clients=20, total=1500) as load:
                result = load.result()
            assert result["failed"] == 0, result["errors"]
            assert proxy.memory() - before < MEMORY
            assert attack.running
            if mode == "H":
                poll_until(lambda: proxy.connections < SLOW // 10, 20, "those without a request are gone")
        assert backend.counters()["duplicates"] == 0


def test_a_head_that_takes_too_long_is_answered_408(tmp_path: Path) -> None:
    with (
        HttpBackend() as backend,
        front(tmp_path, backend.addresses, [("timeout http-request", "1s")]) as proxy,
    ):
        _, address = parse_address(proxy.address)
        assert isinstance(address, tuple)
        with socket.create_connection(address, 10) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow:")
            answer = b""
            while data := sock.recv(4096):
                answer += data
        assert answer.startswith(b"HTTP/1.1 408 Request Time-out\r\n"), answer
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert backend.counters()["others"] == 0
