"""What the direct way (worker/http/direct.py, dial.py) spells out keeps the time and the counts of the long way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hitlessd.model import Timeouts
from hitlessd.table import Column
from hitlessd.worker.connection import Connection
from hitlessd.worker.http.connection import HttpConnection
from hitlessd.worker.http.direct import ClientSide, ServerSide
from hitlessd.worker.http.exchange import Exchange
from hitlessd.worker.relay import Side
from tests.support.relay import Farm
from tests.support.web import Web

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def web(farm: Farm) -> Iterator[Web]:
    with Web(farm) as made:
        yield made


@pytest.mark.parametrize("pooled", [True, False])
def test_a_silent_server_has_its_timeout_behind_an_idleness_without_one(farm: Farm, pooled: bool) -> None:
    """A client that may be idle for ever is in no bucket of the wheel when it asks."""
    times = Timeouts(connect=5, server=50)
    with Web(farm, general={"timeouts": times}, server={"pool_purge_delay": 1000.0}) as web:
        client, server = web.served()
        if not pooled:
            server.close()
            web.until(lambda: not web.worker.idle, "the end of the connection to the server")
        (conn,) = web.worker.connections
        web.pass_time(100)
        web.until(lambda: not conn.bucket, "a client that nothing is timed of", 2)
        client.sock.sendall(GET)
        if not pooled:
            server = web.serve()
        web.gets(server, GET)
        web.pass_time(49)
        web.settle()
        assert web.worker.connections and not client.read()
        web.pass_time(2)
        web.is_told(client, 504)


@pytest.mark.parametrize("times", [Timeouts(connect=5, http_request=10), Timeouts(client=5, http_request=10)])
def test_a_client_is_timed_again_behind_an_exchange_without_limits(farm: Farm, times: Timeouts) -> None:
    with Web(farm, general={"timeouts": times}) as web:
        client = web.connect()
        client.sock.sendall(GET)
        server = web.serve()
        web.gets(server, GET)
        (conn,) = web.worker.connections
        web.pass_time(100)
        web.until(lambda: not conn.bucket, "an exchange that nothing is timed of", 2)
        server.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        web.hears(client, b"ok")
        web.pass_time(11)
        assert web.ends(client) == b""


@pytest.mark.parametrize("balance", ["roundrobin", "leastconn"])
def test_the_most_sessions_of_one_of_several_servers(balance: str) -> None:
    farm = Farm(2)
    with Web(farm, backend={"balance": balance}) as web:
        clients = [web.connect() for _ in range(4)]
        for client in clients:
            client.sock.sendall(GET)
            web.settle()
        servers = [web.serve(number) for number in (0, 1, 0, 1)]
        for server in servers:
            web.gets(server, GET)
            server.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        for client in clients:
            web.hears(client, b"ok")
        assert [web.value(name, Column.SMAX) for name in ("s1", "s2")] == [2, 2]
    farm.close()


def _slots(kind: type) -> list[str]:
    return [name for each in kind.__mro__ for name in each.__dict__.get("__slots__", ())]


def test_constructors_that_are_spelt_out_forget_nothing(farm: Farm) -> None:
    """They say what those of TCP's say."""
    with Web(farm) as web:
        web.connect()
        web.until(lambda: web.worker.connections)
        (conn,) = web.worker.connections
        frontend, sock = conn.frontend, conn.client.sock
        ours = frontend.connection(web.worker, frontend, sock, conn.address)
        plain = Connection(web.worker, frontend, sock, conn.address)
        same = set(_slots(Connection)) - {"number", "state", "client", "account_at"}
        assert {name: getattr(ours, name) for name in same} == {name: getattr(plain, name) for name in same}
        assert ours.number == plain.number - 1 and ours.account_at <= plain.account_at
        assert all(hasattr(ours, name) for name in _slots(type(ours)))
        kinds: tuple[Any, ...] = (ClientSide, ServerSide)
        for kind in kinds:
            side, other = (made(web.worker, plain, sock, 5, 7.0) for made in (kind, Side))
            common = set(_slots(Side)) - {"peer"}
            assert {name: getattr(side, name) for name in common} == {name: getattr(other, name) for name in common}
            assert all(hasattr(side, name) for name in _slots(kind))


def test_an_exchange_that_is_used_again_knows_nothing_of_the_one_before(web: Web) -> None:
    client, server = web.served()
    (conn,) = web.worker.connections
    (spare,) = conn.frontend.spare
    assert spare.request is None and spare.response is None
    client.sock.sendall(GET)
    web.gets(server, GET)
    assert isinstance(conn, HttpConnection)
    exchange = conn.exchange
    assert exchange is spare and not conn.frontend.spare
    fresh = Exchange(exchange.request, exchange.since, exchange.began_at, exchange.requested_at, False, len(GET), 40)
    fresh.sent = fresh.reused = True
    assert {name: getattr(exchange, name) for name in _slots(Exchange)} == {
        name: getattr(fresh, name) for name in _slots(Exchange)
    }


def test_an_exchange_that_went_the_long_way_is_not_used_again(web: Web) -> None:
    client, server = web.served()
    (conn,) = web.worker.connections
    assert len(conn.frontend.spare) == 1
    web.exchange(client, server, GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert not conn.frontend.spare
