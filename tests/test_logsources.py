"""What logs read of live connections is what their records say, whatever has become of the connection."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from hitlessd.logcode import RECORDS, Code, Shape, Source
from hitlessd.logfacts import compile_fields, compile_json
from hitlessd.logfields import VARIABLES
from hitlessd.logformat import HTTP_FORMAT, TCP_FORMAT, compile_format
from hitlessd.table import Column
from hitlessd.worker.http.record import HttpRecord
from hitlessd.worker.logline import ConnectionRecord
from tests.support.relay import Clock, Farm, Lab, Peer, make_config, make_table
from tests.support.web import Web

_SAMPLES = ["%[src]", "%[src_port]", "%{+Q}ft/%{+Q}s %{+X}cp %{+E}b"]
_TCP = [f"%{name}" for name, variable in VARIABLES.items() if not variable.http] + _SAMPLES
_HTTP = [f"%{name}" for name in VARIABLES] + [*_SAMPLES, "%[req.hdr(user-agent),upper]", "%{+Q}r"]
_GET = b"GET /a?b HTTP/1.1\r\nHost: a\r\nUser-Agent: x\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Twice:
    """Reads every connection that ends in both ways."""

    def __init__(self, lab: Lab) -> None:
        (self.frontend,) = lab.worker.frontends.values()
        self.http = self.frontend.config.mode == "http"
        self.source = self.frontend.connection.log_source(lab.worker, self.frontend)
        self.lines: list[str] = []
        self.frontend.access_log = self.compare
        self.both = [self._pair(source) for source in (self.source, RECORDS)]

    def _pair(self, source: Source) -> list[Callable[[Any], str]]:
        texts = [*_HTTP, HTTP_FORMAT] if self.http else [*_TCP, TCP_FORMAT]
        made = [compile_format(text, log=True, source=source) for text in texts]
        return [compile_json(source, http=self.http), compile_fields(source, http=self.http), *made]

    def compare(self, conn: Any) -> None:
        record = HttpRecord(conn) if self.http else ConnectionRecord(conn)
        record.wall = lambda at: conn.worker.offset + at
        live, recorded = ([line(what) for line in lines] for lines, what in zip(self.both, (conn, record), strict=True))
        assert live == recorded
        self.lines.append(live[-1])


def reset(peer: Peer) -> None:
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_connections(workers: int) -> None:
    farm = Farm(1)
    config = make_config(farm.servers(maxconn=1), maxconn=10)
    table = make_table(config, workers)
    for index in range(1, workers):
        for row, key in enumerate(table.keys):
            if not key.server:  # which would have no place left for ours
                table.slot(index)[row * table.columns + Column.SCUR] = 5
    with contextlib.closing(farm), contextlib.closing(table), Lab(config, clock=Clock(), table=table) as lab:
        both = Twice(lab)
        client, server = lab.pair(farm)
        client.send(b"x" * 10)
        lab.until(lambda: len(server.read()) == 10)
        queued = lab.connect()
        lab.until(lambda: lab.worker.backends["app"].queue, "a queue")
        lab.clock.now += 0.0125
        server.close()
        client.close()
        lab.until(lambda: both.lines)
        server = lab.until(lambda: farm.accept(), "the next one's connection")
        lab.clock.now += 1.5
        server.send(b"y" * 5)
        lab.until(lambda: len(queued.read()) == 5)
        reset(queued)
        lab.until(lambda: len(both.lines) == 2)
        farm.listeners[0].close()
        lab.connect()
        lab.until(lambda: len(both.lines) == 3)
    first, second, third = (line.split("] ")[1] for line in both.lines)
    others = 5 * (workers - 1)
    assert first == f"www app/s1 0/0/12 0 -- {2 + others}/{2 + others}/{1 + others}/0/0 0/0"
    assert second.startswith("www app/s1 12/0/1512 5 CD ") and second.endswith(" 0/1")
    assert third.startswith("www app/s1 0/-1/0 0 SC ")


def test_clients_of_unix_sockets_and_those_without_a_server(tmp_path: Any) -> None:
    farm = Farm(1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "www"))
    listener.listen()
    listener.setblocking(False)
    config = make_config(farm.servers(disabled=True))
    with contextlib.closing(farm), contextlib.closing(listener), Lab(config, listener=listener) as lab:
        both = Twice(lab)
        lab.connect()
        lab.until(lambda: both.lines)
    assert both.lines[0].startswith("unix:1 [") and " www app/<NOSRV> -1/-1/0 0 SC " in both.lines[0]


def test_exchanges() -> None:
    farm = Farm(1)
    clock = Clock()
    with contextlib.closing(farm), Web(farm, clock=clock) as web:
        both = Twice(web)
        client = web.connect()
        client.sock.sendall(_GET)
        server = web.serve()
        web.hears(server, b"\r\n\r\n")
        clock.now += 0.25
        server.sock.sendall(_OK)
        web.hears(client, b"ok")
        # On a connection that is there, piece by piece, with a body.
        client.sock.sendall(b'POST /" HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n')
        web.until(lambda: web.worker.connections)
        web.hears(server, b"\r\n\r\n")
        clock.now += 0.5
        client.sock.sendall(b"abc")
        web.hears(server, b"abc")
        server.sock.sendall(_OK[:20])
        web.settle()
        clock.now += 0.125
        server.sock.sendall(_OK[20:])
        web.hears(client, b"ok")
        # No request, and one that nobody answers.
        client.sock.sendall(b"GARBAGE\r\n\r\n")
        web.ends(client)
        client = web.connect()
        client.sock.sendall(_GET)
        server = web.serve()
        web.hears(server, b"\r\n\r\n")
        server.close()
        web.until(lambda: len(both.lines) == 4)
    assert [line.split("] ")[1] for line in both.lines] == [
        'www app/s1 0/0/0/250/250 200 40 - - ---- 1/1/0/0/0 0/0 "GET /a?b HTTP/1.1"',
        'www app/s1 0/0/0/625/625 200 40 - - ---- 1/1/0/0/0 0/0 "POST /#22 HTTP/1.1"',
        'www www/<NOSRV> -1/-1/-1/-1/0 400 207 - - PR-- 1/1/0/0/0 0/0 "<BADREQ>"',
        'www app/s1 0/0/0/-1/0 502 206 - - SH-- 2/2/0/0/0 0/0 "GET /a?b HTTP/1.1"',
    ]


def test_a_tunnel() -> None:
    farm = Farm(1)
    with contextlib.closing(farm), Web(farm) as web:
        both = Twice(web)
        client = web.connect()
        client.sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        server = web.serve()
        web.hears(server, b"\r\n\r\n")
        server.sock.sendall(b"HTTP/1.1 101 OK\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n1234")
        web.hears(client, b"1234")
        client.sock.sendall(b"56789")
        web.hears(server, b"56789")
        client.close()
        server.close()
        web.until(lambda: both.lines)
    assert " 101 " in both.lines[0]


def test_a_value_is_read_once_and_what_never_changes_is_text() -> None:
    asked: list[str] = []

    class Thing:
        @property
        def size(self) -> int:
            asked.append("size")
            return 7

    code = Code(Shape("thing", {"double": "r.size * 2"}, {"name": "100%"}), {})
    code.text("<% ")
    for expression in ("r.name", "r.size", "r.double", "(r.size if r.double else r.name)"):
        code.value(expression)
        code.text(" ")
    assert code.made().bind(RECORDS)(Thing()) == "<% 100% 7 14 7 "
    assert asked == ["size"]
