"""What operators see of HTTP, and do to it: gauges and counters of servers, sessions one by one, and their end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hitlessd.table import Column, Health, HealthRecord, RowKey, ServerState
from tests.support.relay import Farm, Peer, gauges
from tests.support.web import Web

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def web(farm: Farm) -> Iterator[Web]:
    with Web(farm, frontend={"httplog": True}) as made:
        yield made


def counts(web: Web, *columns: Column) -> tuple[int, ...]:
    return tuple(web.value("s1", column) for column in columns)


def idle(web: Web) -> tuple[int, ...]:
    return counts(web, Column.IDLE, Column.FRESH)


def kept(web: Web, number: int) -> list[tuple[Peer, Peer]]:
    """So many clients and servers with a connection each that has served one exchange."""
    pairs = []
    for _ in range(number):
        client = web.connect()
        client.sock.sendall(GET)
        pairs.append((client, web.serve()))
    for client, server in pairs:
        web.gets(server, GET)
        server.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        web.hears(client, b"ok")
    web.settle()
    return pairs


def busy(web: Web, path: bytes = b"/x") -> tuple[Peer, Peer]:
    """A client whose server has its request and says nothing."""
    client = web.connect()
    request = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path
    client.sock.sendall(request)
    server = web.serve()
    web.gets(server, request)
    return client, server


def change(web: Web, *, state: ServerState = ServerState.READY, weight: int = 1, health: int = Health.UP) -> None:
    row = web.table.index[RowKey("server", "app", "s1")]
    web.table.set_health(row, HealthRecord(health))
    web.table.set_state(row, state, weight, 0)


def test_idle_connections_are_counted(web: Web) -> None:
    (one, first), (_, last) = kept(web, 2)
    assert idle(web) == (2, 2)
    assert counts(web, Column.CONNECT, Column.REUSE) == (2, 0)
    for number in (1, 2):
        web.exchange(one, last)
        web.settle()
        assert idle(web) == (2, 1)
        assert counts(web, Column.CONNECT, Column.REUSE) == (2, number)
    last.close()
    web.until(lambda: idle(web) == (1, 1))
    first.close()
    web.until(lambda: idle(web) == (0, 0))


def test_idle_connections_are_uncounted_one_by_one(web: Web) -> None:
    """By the purge, on the long way of an exchange, and by a move."""
    pairs = kept(web, 4)
    client, server = pairs[0][0], pairs[-1][1]
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"
    client.sock.sendall(request)
    web.gets(server, request)
    web.settle()
    assert idle(web) == (3, 3)
    server.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    web.hears(client, b"0\r\n\r\n")
    web.settle()
    assert idle(web) == (4, 3)
    web.pass_time(5.1)
    web.pass_time(5.1)
    found = idle(web)
    assert found[0] == web.worker.idle < 4 and found[0] - found[1] == 1
    for _ in range(10):
        web.pass_time(5.1)
    assert idle(web) == (0, 0)


@pytest.mark.parametrize(
    "away",
    [
        {"state": ServerState.MAINT},
        {"state": ServerState.DRAIN},
        {"health": Health.DOWN},
        {"weight": 0},
    ],
)
def test_a_server_that_is_not_to_be_used_is_left(web: Web, away: dict[str, int]) -> None:
    ((_, waiting),) = kept(web, 1)
    client, server = busy(web)
    change(web)
    web.settle()
    assert idle(web) == (1, 1)
    change(web, **away)  # type: ignore[arg-type]
    assert web.ends(waiting) == b"" and idle(web) == (0, 0)
    # What it is busy with it may finish.
    server.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    web.hears(client, b"ok")
    assert web.ends(server) == b"" and idle(web) == (0, 0)


def test_a_server_counts_its_own_answers(farm: Farm) -> None:
    with Web(farm, general={}, frontend={}) as web:
        client, server = busy(web)
        server.sock.sendall(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
        web.hears(client, b"\r\n\r\n")
        for says in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"):
            client, server = busy(web)
            server.sock.sendall(says)
            server.close()
            web.is_told(client, 502)
        client, server = busy(web)
        web.pass_time(51)
        web.is_told(client, 504)
        web.settle()
        columns = (Column.REQ_TOT, Column.HRSP_5XX, Column.ERESP, Column.SRV_ABRT)
        assert counts(web, *columns) == (1, 1, 3, 0)
        assert tuple(web.value("backend", column) for column in columns) == (4, 4, 3, 0)
        assert counts(web, Column.CONNECT, Column.REUSE) == (4, 0)


def test_an_answer_that_breaks_off_is_the_servers_doing(web: Web) -> None:
    client, server = busy(web)
    server.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n12")
    web.hears(client, b"12")
    server.close()
    web.ends(client)
    web.settle()
    assert counts(web, Column.HRSP_2XX, Column.ERESP, Column.SRV_ABRT) == (1, 0, 1)


def shown(web: Web) -> list[tuple[str, str, bool, list[float | None]]]:
    forms = web.order("show-sessions")["sessions"]
    return [(form["state"], form["request"], form.get("entered", False), form["expires"]) for form in forms]


def test_sessions_are_shown_with_what_they_ask_for(web: Web) -> None:
    client = web.connect()
    web.turn()
    assert shown(web) == [("waiting", "", False, [None, None])]
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    ((state, request, entered, (one, other)),) = shown(web)
    assert (state, request, entered, one) == ("exchanging", "GET /x HTTP/1.1", True, None)
    assert other is not None and 0 < other <= 50
    server.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    web.hears(client, b"ok")
    assert shown(web)[0][:3] == ("waiting", "", False)
    long = b"/" + b"a" * 200
    client.sock.sendall(b"OPTIONS %s HTTP/1.0\r\n\r\n" % long)
    web.hears(server, b"\r\n\r\n")
    assert shown(web)[0][1] == f"OPTIONS {long[:100].decode()}... HTTP/1.0"


@pytest.mark.parametrize(("body", "state"), [(b"", "KH--"), (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", "KD--")])
def test_a_session_can_be_ended(web: Web, body: bytes, state: str) -> None:
    client, server = busy(web)
    if body:
        server.sock.sendall(body)
        web.hears(client, b"x")
    (number,) = [form["number"] for form in web.order("show-sessions")["sessions"]]
    assert web.order("shutdown-session", only=number)["closed"] == 1
    web.ends(client)
    web.ends(server)
    assert web.order("shutdown-session", only=number)["closed"] == 0
    assert gauges(web.table) == {}
    (line,) = [text for _, text in web.logged if '"GET /x HTTP/1.1"' in text]
    assert f" {state} " in line


def test_an_idle_session_can_be_ended(web: Web) -> None:
    ((client, server),) = kept(web, 1)
    (number,) = [form["number"] for form in web.order("show-sessions")["sessions"]]
    lines = len(web.logged)
    assert web.order("shutdown-session", only=number)["closed"] == 1
    assert web.ends(client) == b"" and len(web.logged) == lines
    assert idle(web) == (1, 1) and not server.eof


def test_sessions_of_a_server_can_be_ended(web: Web) -> None:
    ((client, waiting),) = kept(web, 1)
    one, server = busy(web)
    assert web.order("shutdown-session", server=["app", "s2"])["closed"] == 0
    assert idle(web) == (1, 1)
    assert web.order("shutdown-session", server=["app", "s1"])["closed"] == 1
    for peer in (one, server, waiting):
        web.ends(peer)
    assert idle(web) == (0, 0)
    # Who has no server at the moment is not concerned.
    client.sock.sendall(GET)
    web.gets(web.serve(), GET)
