"""No request fails because of a reload or a restart, none is served twice, and no byte of a body is altered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fronts import UNDER_TEST, Front, front
from tests.support.http_backend import HttpBackend
from tests.support.http_tools import Wrk, h2load
from tests.support.load import Load
from tests.support.processes import Deadline, Process, poll_until

#: Others do not promise all of that: a haproxy that is reloaded closes kept connections while their requests come in.
OURS = UNDER_TEST == "hitlessd"

SECONDS = 5
RELOADS = 12


@pytest.fixture
def backend() -> Iterator[HttpBackend]:
    with HttpBackend(3) as backend:
        yield backend


@pytest.fixture
def proxy(backend: HttpBackend, tmp_path: Path) -> Iterator[Front]:
    with front(tmp_path, backend.addresses) as proxy:
        yield proxy


def flawless(result: dict[str, Any]) -> None:
    """Every request had its own answer, and no connection ended because of us."""
    assert result["failed"] == 0, result["errors"]
    assert result["unfinished"] == 0
    if OURS:
        assert result["hung_up"] == 0


def reload_until(proxy: Front, load: Load, requests: int, least: int = RELOADS) -> int:
    """Reload all the time, `least` times and until so many are answered; how often it was."""
    count, limit = 0, Deadline(180)
    while (count < least or load.progress.get("requests", 0) < requests) and not load.progress.get("failed"):
        assert load.running, load.result()
        limit.check(f"{requests} answers and {least} reloads: {load.progress}")
        proxy.reload()
        count += 1
    return count


@pytest.mark.parametrize(
    ("requests", "settings"),
    [
        (6000, {"mix": "all", "clients": 40}),
        (6000, {"mix": "plain", "requests": 1, "clients": 32}),
        (6000, {"mix": "plain", "pipeline": 6, "clients": 16}),
    ],
    ids=["all kinds", "one a connection", "pipelined"],
)
def test_no_request_fails_while_one_reload_follows_another(
    requests: int, settings: dict[str, Any], proxy: Front, backend: HttpBackend
) -> None:
    with Load(proxy.address, mode="http", timeout=20, **settings) as load:
        reload_until(proxy, load, requests)
        result = load.stop()
    flawless(result)
    books = backend.spotless()
    assert books["unique"] == result["requests"] >= requests
    assert set(books["tags"]) == {"1", "2", "3"}
    if OURS and settings["mix"] == "plain":
        assert result["told_to_close"] == 0


@pytest.mark.parametrize("close", [False, True], ids=["kept alive", "one a connection"])
def test_wrk_sees_no_error_while_one_reload_follows_another(
    close: bool, proxy: Front, backend: HttpBackend, tmp_path: Path
) -> None:
    reloads, served, least, limit = 0, 0, Deadline(SECONDS), Deadline(150)
    with Wrk(tmp_path, proxy.address, 180, close=close) as wrk:
        while reloads < 5 or served < 2000 or not least.expired:
            assert wrk.running, wrk.result()
            limit.check(f"2000 answers and 5 reloads: {served} and {reloads}")
            proxy.reload()
            reloads += 1
            served = backend.counters()["requests"]
        wrk.finish()
        result = wrk.result()
    assert result.failed == 0, result
    assert result.requests > 1000
    # At its end wrk leaves without the last answers.
    books = backend.counters()
    assert (books["duplicates"], books["corrupt"], books["malformed"]) == (0, 0, 0), books["problems"]
    assert result.requests <= books["unique"] <= result.requests + 64


def test_h2load_has_all_its_answers_while_one_reload_follows_another(proxy: Front, backend: HttpBackend) -> None:
    count, reloads = 60_000, 0
    with Process(["h2load", "--h1", f"-n{count}", "-c32", "-t1", f"http://{proxy.address}/?size=300"]) as process:
        while process.running:
            proxy.reload()
            reloads += 1
        result = h2load(process)
    if OURS:
        assert (result.succeeded, result.failed) == (count, 0), result.text
        assert backend.counters()["others"] == count
    assert reloads >= 3


def test_idle_connections_are_kept_through_twenty_reloads(proxy: Front, backend: HttpBackend) -> None:
    clients = 300
    with Load(proxy.address, mode="http", clients=clients, interval=0.4, timeout=20) as load:
        load.wait_requests(clients)
        reload_until(proxy, load, 3 * clients, 20)
        result = load.stop()
    flawless(result)
    if OURS:
        assert (result["started"], result["done"], result["told_to_close"]) == (clients, clients, 0)
        # So do those to the servers: a reload makes new ones only for those who come at once behind it, and then has
        # them. Each client's first request has made one.
        assert backend.counters()["connections"] <= 2 * clients
    assert backend.spotless()["unique"] == result["requests"]


def test_servers_that_close_idle_connections_break_no_request(tmp_path: Path) -> None:
    with (
        HttpBackend(2, keep_alive=0.02, requests=20) as backend,
        front(tmp_path, backend.addresses) as proxy,
        Load(proxy.address, mode="http", clients=20, interval=0.015) as load,
    ):
        reload_until(proxy, load, 3000, 5)
        result = load.stop()
        flawless(result)
        assert backend.spotless()["unique"] == result["requests"]


@pytest.mark.parametrize("reuse", ["never", "aggressive", "always"])
def test_however_connections_to_servers_are_reused(reuse: str, backend: HttpBackend, tmp_path: Path) -> None:
    with (
        front(tmp_path, backend.addresses, [("http-reuse", reuse)]) as proxy,
        Load(proxy.address, mode="http", mix="all", clients=20) as load,
    ):
        reload_until(proxy, load, 800, 3)
        result = load.stop()
        flawless(result)
        books = backend.spotless()
    assert books["unique"] == result["requests"]
    if reuse == "always":
        assert books["reused"] > books["requests"] // 2


def test_a_server_that_is_down_gets_no_request_through_fifty_reloads(tmp_path: Path) -> None:
    # One check that comes late, where others keep the machine busy, would take a good server away.
    options = [("option httpchk", "GET /"), ("timeout check", "10s")]
    options += [("default-server", "check inter 100ms fall 1 rise 2")]
    with (
        HttpBackend(3, sick=[2]) as backend,
        front(tmp_path, backend.addresses, options) as proxy,
    ):
        poll_until(lambda: proxy.statuses()["s2"].startswith("DOWN"), 10, "server 2 is down")
        with Load(proxy.address, mode="http", clients=20, interval=0.05) as load:
            reload_until(proxy, load, 1000, 50)
            result = load.stop()
        flawless(result)
        assert set(backend.spotless()["tags"]) == {"1", "3"}
        assert proxy.statuses()["s2"].startswith("DOWN")


def test_no_request_fails_through_restarts(proxy: Front, backend: HttpBackend) -> None:
    with Load(proxy.address, mode="http", mix="all", clients=30, timeout=30) as load:
        for restart in range(1, 6):
            load.wait_requests(restart * 400, 30)
            proxy.restart()
        load.wait_requests(2500, 30)
        result = load.stop()
    flawless(result)
    assert backend.spotless()["unique"] == result["requests"]
    poll_until(lambda: proxy.connections == 0, 10, "all ends are counted")
