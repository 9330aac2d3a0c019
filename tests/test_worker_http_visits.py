"""Requests that a worker passes on to main: which, with what, and what becomes of the worker's part of them."""

from __future__ import annotations

import base64
import contextlib
import socket
from typing import Any

import pytest

from hitlessd import channel
from hitlessd.model import Acl, Condition, HttpRule, StatsPage, Term
from hitlessd.table import Column
from tests.support.descriptors import no_leak
from tests.support.relay import Farm, Peer, gauges, migrate
from tests.support.web import Web
from tests.test_worker_http_parking import Death, begins_anew

PAGE = StatsPage(uri="/stats")
OTHER = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


def when(*words: str) -> Condition:
    """Of one test: its criterion, argument and values."""
    return Condition(((Term((Acl(words[0], words[1], values=words[2:]),)),),))


class Visit:
    """What main is told, and the socket that it gets."""

    def __init__(self, message: dict[str, Any], fds: list[int]) -> None:
        (fd,) = fds
        self.message = message
        self.sock = socket.socket(fileno=fd)
        self.already = base64.b64decode(message["already"])

    def answers(self, client: Peer, text: bytes = b"answer") -> None:
        """The client hears it, and then the end."""
        self.sock.sendall(text)
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        client.sock.settimeout(10)
        assert client.sock.recv(100, socket.MSG_WAITALL) == text
        assert client.sock.recv(1) == b""


def visit(web: Web) -> Visit:
    """The next client that main gets."""
    found: list[tuple[dict[str, Any], list[int]]] = []

    def came() -> bool:
        try:
            message, fds = channel.receive_with(web.main)
        except BlockingIOError:
            return False
        assert message is not None
        if message["did"] == "web":
            found.append((message, fds))
        return bool(found)

    web.until(came, "a client for main")
    return Visit(*found[0])


def get(target: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join((f"{method} {target} HTTP/1.1", "Host: a", *fields, "", "")).encode()


@pytest.mark.parametrize("target", ["/stats", "/stats;csv", "/statsX", "/stats?scope=a", "http://a/stats;up"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("where", ["frontend", "backend"])
def test_is_for_main(farm: Farm, target: str, method: str, where: str) -> None:
    sections: dict[str, Any] = {where: {"stats": PAGE}}
    with Web(farm, **sections) as web:
        client = web.connect()
        request = get(target, "Content-Length: 0", method=method)
        client.sock.sendall(request)
        found = visit(web)
        host, port = client.sock.getsockname()
        assert found.message == {
            "did": "web",
            "service": "page",
            "proxy": "www" if where == "frontend" else "app",
            "admin": False,
            "peer": f"{host}:{port}",
            "already": found.message["already"],
        }
        assert found.already == request
        found.answers(client)
        assert farm.accept() is None
        assert not web.worker.connections
        assert gauges(web.table) == {}


@pytest.mark.parametrize(
    ("target", "method"),
    [("/", "GET"), ("/stat", "GET"), ("/STATS", "GET"), ("/stats", "PUT"), ("/stats", "DELETE"), ("/x/stats", "GET")],
)
def test_is_for_a_server(farm: Farm, target: str, method: str) -> None:
    with Web(farm, frontend={"stats": PAGE}) as web:
        client = web.connect()
        request = get(target, method=method)
        client.sock.sendall(request)
        server = web.serve()
        web.exchange_on(client, server, request)


def test_other_requests_stay_on_the_direct_path(farm: Farm) -> None:
    """A page costs them a look at their target. Afterwards the same client may ask for the page."""
    with Web(farm, frontend={"stats": PAGE}) as web:
        client, server = web.served()
        client.sock.sendall(OTHER)
        web.gets(server, OTHER)
        (conn,) = web.worker.connections
        assert conn.direct  # type: ignore[attr-defined]
        server.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        web.hears(client, b"ok")
        client.sock.sendall(get("/stats"))
        found = visit(web)
        assert found.already == get("/stats")
        found.answers(client)
        assert web.value("frontend", Column.STOT) == 1
        assert web.value("frontend", Column.REQ_TOT) == 3
        assert web.value("frontend", Column.INTERCEPTED) == 1
        assert web.value("backend", Column.REQ_TOT) == 2


def test_all_that_has_come_goes_along(farm: Farm) -> None:
    """Half a body, a whole one with what is behind it, chunks, and a wish to be told to go on."""
    requests = [
        get("/stats", "Content-Length: 10", method="POST") + b"s=a&a",
        get("/stats", "Content-Length: 3", method="POST") + b"s=a" + OTHER,
        get("/stats", "Transfer-Encoding: chunked", method="POST") + b"3\r\ns=",
        get("/stats", "Expect: 100-continue", "Content-Length: 3", method="POST"),
        b"GET /stats HTTP/1.0\r\n\r\n",
        get("/stats", "X-Long: " + "x" * 10_000) + OTHER,
    ]
    with Web(farm, frontend={"stats": PAGE}) as web:
        for request in requests:
            client = web.connect()
            client.sock.sendall(request)
            found = visit(web)
            assert found.already == request
            client.sock.sendall(b"more")
            found.sock.settimeout(10)
            assert found.sock.recv(100) == b"more"
            found.answers(client)


def test_a_head_in_pieces(farm: Farm) -> None:
    with Web(farm, frontend={"stats": PAGE}) as web:
        client = web.connect()
        for place in range(0, len(get("/stats")), 7):
            client.sock.sendall(get("/stats")[place : place + 7])
            web.settle()
        found = visit(web)
        assert found.already == get("/stats")
        found.answers(client)


def test_in_a_pipeline(farm: Farm) -> None:
    """What came before is answered before, by its server."""
    with Web(farm, frontend={"stats": PAGE}) as web:
        client = web.connect()
        client.sock.sendall(OTHER + get("/stats") + OTHER)
        server = web.serve()
        web.exchange_on(client, server, OTHER)
        found = visit(web)
        assert found.already == get("/stats") + OTHER
        found.answers(client)


def test_rules_come_first(farm: Farm) -> None:
    """Those of the frontend, its page, those of the backend, its page."""
    deny = HttpRule("deny", status=403, condition=when("req.hdr", "deny", "here"))
    deny_there = HttpRule("deny", status=403, condition=when("req.hdr", "deny", "there"))
    with Web(
        farm,
        frontend={"stats": PAGE, "http_request": (deny,)},
        backend={"stats": StatsPage(uri="/"), "http_request": (deny_there,)},
    ) as web:
        for field, target, expected in (
            ("here", "/stats", ""),
            ("there", "/stats", "www"),
            ("here", "/other", ""),
            ("there", "/other", ""),
            ("no", "/other", "app"),
        ):
            client = web.connect()
            client.sock.sendall(get(target, f"Deny: {field}"))
            if expected:
                found = visit(web)
                assert found.message["proxy"] == expected
                found.answers(client)
            else:
                web.is_told(client, 403)


def test_who_may_change_something(farm: Farm) -> None:
    """The condition is asked of the request as rules have left it."""
    rule = HttpRule("set-header", "Who", "root", condition=when("req.hdr", "token", "secret"))
    page = StatsPage(uri="/stats", admin=when("req.hdr", "who", "root"))
    with Web(farm, frontend={"stats": page, "http_request": (rule,)}) as web:
        for field, expected in (("X: y", False), ("Who: root", True), ("Token: secret", True), ("Who: r", False)):
            client = web.connect()
            client.sock.sendall(get("/stats", field))
            found = visit(web)
            assert found.message["admin"] is expected
            found.answers(client)


@pytest.mark.parametrize("where", ["frontend", "backend"])
def test_metrics(farm: Farm, where: str) -> None:
    rule = HttpRule("use-service", "prometheus-exporter", condition=when("path", "", "/metrics"))
    sections: dict[str, Any] = {where: {"http_request": (rule,)}}
    with Web(farm, **sections) as web:
        client = web.connect()
        client.sock.sendall(get("/metrics"))
        found = visit(web)
        assert (found.message["service"], found.message["admin"]) == ("metrics", False)
        assert found.message["proxy"] == ("www" if where == "frontend" else "app")
        found.answers(client)
        assert web.value("frontend", Column.INTERCEPTED) == (where == "frontend")
        assert web.value("backend", Column.STOT) == (where == "backend")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/stats"), 401),
        (get("/stats", "Authorization: Basic " + base64.b64encode(b"u:q").decode()), 401),
        (get("/stats", "Authorization: Bearer x"), 401),
        (get("/stats", "Authorization: basic  " + base64.b64encode(b"u:p").decode()), 200),
        (get("/stats", "Authorization: Basic " + base64.b64encode(b"u:p").decode(), method="POST"), 303),
    ],
)
def test_log_and_counters(farm: Farm, request_: bytes, status: int) -> None:
    page = StatsPage(uri="/stats", auth=(("u", "p"), ("v", "w")))
    with Web(farm, frontend={"stats": page, "httplog": True, "tcplog": False}) as web:
        client = web.connect()
        client.sock.sendall(request_)
        visit(web).answers(client)
        (line,) = web.lines
        assert f" www www/<STATS> 0/0/0/0/0 {status} 0 - - LR-- 1/1/0/0/0 0/0 " in line
        assert web.value("frontend", Column[f"HRSP_{status // 100}XX"]) == 1
        assert web.value("frontend", Column.REQ_TOT) == web.value("frontend", Column.INTERCEPTED) == 1
        assert web.value("frontend", Column.BIN) == len(request_)
        assert web.value("backend", Column.STOT) == 0


def test_main_does_not_read(farm: Farm) -> None:
    """Its channel is full: 503, and the client may go on."""
    with Web(farm, frontend={"stats": PAGE, "httplog": True}) as web:
        client = web.connect()
        web.settle()
        fillers = 0
        while web.worker.orders.pass_on({"did": "filler", "text": "x" * 1000}, web.listener.fileno()):
            fillers += 1
        client.sock.sendall(get("/stats"))
        web.is_told(client, 503)
        assert " www www/<NOSRV> " in web.lines[-1]
        assert " 503 " in web.lines[-1]
        assert " RR-- " in web.lines[-1]
        assert web.value("frontend", Column.INTERCEPTED) == 0
        for _ in range(fillers):
            message, fds = channel.receive_with(web.main)
            assert message is not None
            socket.socket(fileno=fds[0]).close()
        client.sock.sendall(get("/stats"))
        visit(web).answers(client)


def test_more_than_main_takes(farm: Farm) -> None:
    with Web(farm, frontend={"stats": PAGE}) as web:
        client = web.connect()
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        head = get("/stats", "Content-Length: 60000", method="POST")
        client.sock.sendall(head[:20])
        web.settle()
        client.sock.sendall(head[20:] + b"x" * 60_000)
        assert web.is_told(client, 413).startswith(b"HTTP/1.1 413 ")


def test_leaks_nothing(farm: Farm) -> None:
    with no_leak(), Web(farm, frontend={"stats": PAGE}) as web:
        for _ in range(20):
            client = web.connect()
            client.sock.sendall(get("/stats"))
            visit(web).answers(client)
            client.close()
        assert not web.worker.connections
        assert gauges(web.table) == {}


def test_of_a_parked_client(farm: Farm) -> None:
    """It is parked no more: whoever goes on after this worker's death leaves it to main."""
    death = Death(farm, frontend={"stats": PAGE})
    with contextlib.closing(death):
        client, _ = death.old.served()
        stays = death.old.connect()
        begins_anew(death.old, stays)
        death.age()
        assert death.parked() == 2
        client.sock.sendall(get("/stats"))
        found = visit(death.old)
        death.old.turn()
        assert death.parked() == 1
        death.die(resumed=1)
        found.answers(client)
        begins_anew(death.new, stays)


def test_of_a_client_that_has_come_from_another_worker(farm: Farm) -> None:
    with Web(farm) as old, Web(farm, frontend={"stats": PAGE}, table=old.table, accept=False) as new:
        client, _ = old.served()
        assert migrate(old, new)["moved"] == 1
        client.sock.sendall(get("/stats"))
        visit(new).answers(client)
