"""Logs of real HTTP traffic: the same as those of a haproxy that has seen the same, for people and for halog(1)."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hitlessd.accesslog import access_log
from hitlessd.log import Log
from hitlessd.model import LogTarget
from tests.support.beside import Line, Pair, Side, beside
from tests.support.daemon import Daemon
from tests.support.origin import Origin
from tests.support.processes import free_port
from tests.support.relay import Farm
from tests.support.web import Web
from tests.test_http_features import get, post, say
from tests.test_journal import Receiver

_HEAD = "2026-02-06T12:12:56.001 hitlessd[14387] generation 1 info: "
_DEFAULTS = """[defaults]
mode = http
option httplog
retries = 0
timeout http-request = 1s
timeout connect = 2s
timeout client = 20s
timeout server = 1s
"""
_TEXT = """
[frontend web]
bind = $web
http-request = deny if { path_beg /admin }
               redirect location /new if { path /old-page }
               return status 200 content-type text/plain string hello if { path /hello }
use_backend = nobody if { path /nobody }
default_backend = app
[backend app]
server a = $a
[backend nobody]
server b = $b
"""


def half(side: Side) -> None:
    with side.client() as client:
        client.send(b"GET / HT").rest()


def leaves(side: Side) -> None:
    """In the midst of a request's head."""
    with side.client() as client:
        client.send(b"GET / HT").sock.shutdown(1)
        client.rest()


def resets(side: Side) -> None:
    """In the midst of a response."""
    client = side.client()
    client.send(get("/huge")).hear(60)
    client.reset()


#: What happens, and what the line says of it: status, termination state, backend and server, request.
_EVENTS: list[tuple[Callable[[Side], object], tuple[str, str, str, str]]] = [
    (lambda side: side.ask(get("/a?b=c")), ("200", "--", "app/a", "GET /a?b=c HTTP/1.1")),
    (lambda side: side.ask(get("/status/404")), ("404", "--", "app/a", "GET /status/404 HTTP/1.1")),
    (lambda side: side.ask(get("/status/304")), ("304", "--", "app/a", "GET /status/304 HTTP/1.1")),
    (lambda side: side.ask(get("/chunked", version="1.1")), ("200", "--", "app/a", "GET /chunked HTTP/1.1")),
    (lambda side: side.ask(get("/close", version="1.0")), ("200", "--", "app/a", "GET /close HTTP/1.0")),
    (lambda side: side.ask(post(b"x" * 1000, "/p")), ("200", "--", "app/a", "POST /p HTTP/1.1")),
    (lambda side: side.ask(get("/admin")), ("403", "PR", "web/<NOSRV>", "GET /admin HTTP/1.1")),
    (lambda side: side.ask(get("/old-page")), ("302", "LR", "web/<NOSRV>", "GET /old-page HTTP/1.1")),
    (lambda side: side.ask(get("/hello")), ("200", "LR", "web/<NOSRV>", "GET /hello HTTP/1.1")),
    (lambda side: say(side, b"GARBAGE\r\n\r\n"), ("400", "PR", "web/<NOSRV>", "<BADREQ>")),
    (half, ("408", "cR", "web/<NOSRV>", "<BADREQ>")),
    (leaves, ("400", "CR", "web/<NOSRV>", "<BADREQ>")),
    (lambda side: side.ask(get("/drop")), ("502", "SH", "app/a", "GET /drop HTTP/1.1")),
    (lambda side: side.ask(get("/garbage")), ("502", "PH", "app/a", "GET /garbage HTTP/1.1")),
    (lambda side: side.ask(get("/nobody")), ("503", "SC", "nobody/b", "GET /nobody HTTP/1.1")),
    (lambda side: side.ask(get("/hang")), ("504", "sH", "app/a", "GET /hang HTTP/1.1")),
    (lambda side: side.ask(get("/cut")), ("200", "SD", "app/a", "GET /cut HTTP/1.1")),
    (lambda side: side.ask(get("/halt")), ("200", "sD", "app/a", "GET /halt HTTP/1.1")),
    (resets, ("200", "CD", "app/a", "GET /huge HTTP/1.1")),
]


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """After everything has happened, one after the other."""
    with beside(tmp_path_factory.mktemp("logs"), _TEXT, defaults=_DEFAULTS) as pair:
        for side in pair:
            side.origins["b"].stop()
            for number, (event, _) in enumerate(_EVENTS, 1):
                event(side)
                side.logs(number)  # its line is there before the next begins
        yield pair


def told(log: Line) -> tuple[str, ...]:
    return log["ST"], log["tsc"][:2], f"{log['b']}/{log['s']}", log["r"]


@pytest.mark.parametrize("number", range(len(_EVENTS)))
def test_lines(traffic: Pair, number: int) -> None:
    ours, theirs = (side.logs(len(_EVENTS))[number] for side in traffic)
    assert told(ours) == _EVENTS[number][1]
    assert told(theirs) == _EVENTS[number][1]
    # Which timers there are says how far it came.
    assert [ours[name] == "-1" for name in ("TR", "Tw", "Tc", "Tr")] == [
        theirs[name] == "-1" for name in ("TR", "Tw", "Tc", "Tr")
    ]


def test_sizes(traffic: Pair) -> None:
    """%B is what the client gets. (haproxy counts what it stores of a response, some bytes more or fewer.)"""
    answer = b"HTTP/1.1 200 OK\r\nServer: origin\r\nX-Origin: a\r\nContent-Length: 10\r\n\r\n" + b"a" * 10
    log = traffic.ours.logs(1)[0]
    assert int(log["B"]) == len(answer)


def halog(lines: list[str], *arguments: str) -> list[list[str]]:
    """Its table, without the line that begins with `#` and the columns of times."""
    text = "".join(f"{_HEAD}{line}\n" for line in lines)
    done = subprocess.run(
        ["/usr/bin/halog", *arguments], input=text, capture_output=True, text=True, timeout=20, check=True
    )
    assert ", 0 parsing errors" in done.stderr, done.stderr
    return [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    ("table", "columns"),
    # of -srv: name, 1xx to 5xx, other, requests, requests without an error, their share; the rest are times
    [("-st", 2), ("-tc", 2), ("-srv", 9), ("-u", 0)],
)
def test_halog_counts_the_same(traffic: Pair, table: str, columns: int) -> None:
    ours, theirs = (halog(side.lines()[: len(_EVENTS)], table) for side in traffic)
    if table == "-u":
        # number, errors, times, sizes, URL
        found, expected = ([[row[0], row[1], row[-1]] for row in rows] for rows in (ours, theirs))
    else:
        found, expected = ([row[:columns] for row in rows] for rows in (ours, theirs))
    assert sorted(found) == sorted(expected)
    assert len(found) >= 3


def test_halog_reads_response_times(traffic: Pair) -> None:
    """-rt N: what took N ms or longer to be answered; no time at all is less than any."""
    times = [int(log["Tr"]) for log in traffic.ours.logs(len(_EVENTS))]
    text = "".join(f"{_HEAD}{line}\n" for line in traffic.ours.lines()[: len(_EVENTS)])
    for limit in (1, 5, 50, 500):
        argv = ["/usr/bin/halog", "-rt", str(limit), "-c"]
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=20, check=True)
        assert int(done.stdout) == sum(time >= limit for time in times), (limit, times)


def test_clients_that_leave_are_noticed_at_once(tmp_path: Path) -> None:
    """haproxy finds out when it has something to write, or when the server is too slow, and blames that one."""
    with beside(tmp_path, _TEXT) as pair:
        side = pair.ours
        for path, wanted in (("/hang", ("0", "CH", "0")), ("/halt", ("200", "CD", "73"))):
            client = side.client()
            client.send(get(path))
            if path == "/halt":
                client.hear(73)
            side.origins["a"].wait(1)
            client.reset()
            log = side.logs(1 + (path == "/halt"))[-1]
            assert (log["ST"], log["tsc"][:2], log["B"]) == wanted


def _section(port: int, server: str, *options: str) -> str:
    lines = ["[listen web]", "mode = http", f"bind = 127.0.0.1:{port}", f"server a = {server}", *options]
    return "\n".join(lines) + "\n"


@pytest.fixture
def origin() -> Iterator[Origin]:
    made = Origin("a")
    yield made
    made.stop()


def visit(port: int) -> int:
    """One request; the port that it came from."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(get("/x?y=z", host="www.example.net"))
        answer = b""
        while not answer.endswith(b"a" * 10):
            answer += sock.recv(65536)
        return int(sock.getsockname()[1])


def test_json(tmp_path: Path, origin: Origin) -> None:
    port = free_port()
    with Daemon(tmp_path, _section(port, origin.address, "option jsonlog"), workers=1) as daemon:
        own = visit(port)
        found = json.loads(daemon.wait_log('{"time"'))
    for name in ("time", "time_idle", "time_request", "time_queue", "time_connect", "time_response"):
        assert found.pop(name) is not None
    assert found.pop("time_total") >= found.pop("time_active") >= 0
    assert {name: value for name, value in found.items() if not name.endswith("_connections")} == {
        "client_addr": "127.0.0.1",
        "client_port": own,
        "frontend": "web",
        "backend": "web",
        "server": "a",
        "method": "GET",
        "uri": "/x?y=z",
        "version": "HTTP/1.1",
        "host": "www.example.net",
        "status": 200,
        "bytes_read": 78,
        "bytes_uploaded": len(get("/x?y=z", host="www.example.net")),
        "termination_state": "--",
        "retries": 0,
        "redispatched": False,
        "server_queue": 0,
        "backend_queue": 0,
    }


def test_the_journal(tmp_path: Path) -> None:
    """From the relay to a socket in journald's place."""
    farm = Farm(1)
    receiver = Receiver(str(tmp_path / "journal"))
    log = Log(LogTarget("journal"), 1, journal=receiver.path)
    with contextlib.closing(farm), contextlib.closing(receiver.socket), Web(farm, frontend={"httplog": True}) as web:
        client = web.connect()
        web.until(lambda: web.worker.connections)
        (conn,) = web.worker.connections
        frontend = conn.frontend
        frontend.access_log = access_log(frontend.config, log, conn.log_source(web.worker, frontend))
        client.sock.sendall(get("/x", host="www.example.net"))
        server = web.serve()
        web.hears(server, b"\r\n\r\n")
        server.sock.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno")
        web.hears(client, b"no")
        (entry,) = receiver.entries()
        log.configure(LogTarget("stderr"))
    assert entry["MESSAGE"].endswith('"GET /x HTTP/1.1"')
    wanted = {"FRONTEND": "www", "BACKEND": "app", "SERVER": "s1", "STATUS": "404", "TERMINATION_STATE": "--"}
    wanted |= {"CLIENT_ADDR": "127.0.0.1", "METHOD": "GET", "URI": "/x", "HOST": "www.example.net", "BYTES": "40"}
    assert {name: entry[name] for name in wanted} == wanted
    assert {"TIME_REQUEST", "TIME_QUEUE", "TIME_CONNECT", "TIME_RESPONSE", "TIME_ACTIVE", "TIME_TOTAL"} <= entry.keys()
