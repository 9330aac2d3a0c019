"""HTTP connections that move to another worker: in every state, with every byte, none sent twice."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import pytest

from hitlessd.worker.serial import freeze_idle, resume_idle
from tests.support.relay import Farm, gauges, make_table, migrate
from tests.support.web import Web

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Moves:
    """Two workers of two generations, and what a test sees of the one that serves."""

    def __init__(self, farm: Farm, **options: Any) -> None:
        self.old = Web(farm, **options)
        self.new = Web(farm, table=make_table(self.old.config, generation=2), accept=False, **options)
        self.new.clock.now = 5000.0
        self.new.turn()

    def go(self, clients: int = 1) -> Web:
        assert migrate(self.old, self.new) == {"moved": clients, "kept": {}, "lost": 0}
        assert gauges(self.old.table) == {} and self.old.worker.pipes.lent == 0 and self.old.worker.idle == 0
        return self.new

    def close(self) -> None:
        for peer in self.old.clients:
            peer.close()
        table = self.new.table
        self.new.__exit__()
        self.old.__exit__()
        table.close()


@pytest.fixture
def moves(farm: Farm) -> Iterator[Moves]:
    made = Moves(farm)
    yield made
    made.close()


def test_idle_client_and_pooled_server(moves: Moves) -> None:
    client, server = moves.old.served()
    new = moves.go()
    assert new.worker.idle == 1
    new.exchange(client, server)
    assert new.farm.accept() is None


@pytest.mark.parametrize("idle_first", [False, True])
def test_as_many_connections_to_servers_are_needed_as_before(moves: Moves, idle_first: bool) -> None:
    """In whatever order they come, and however few clients have come with them."""
    old, new = moves.old, moves.new
    clients = [old.connect() for _ in range(4)]
    servers = []
    for client in clients:
        client.sock.sendall(GET)
        servers.append(old.serve())
    for client, server in zip(clients[1:], servers[1:], strict=True):
        old.exchange_on(client, server, GET)
        client.close()
    old.until(lambda: len(old.worker.connections) == 1)
    if idle_first:
        for side in old.worker.idle_sides(lambda _: True):
            resume_idle(new.worker, freeze_idle(side))
    moves.go()
    assert new.worker.idle == 3
    new.exchange_on(clients[0], servers[0], GET)
    new.settle()
    assert new.worker.idle == 4


def test_client_without_a_request_yet(moves: Moves) -> None:
    client = moves.old.connect()
    moves.old.until(lambda: moves.old.worker.connections)
    new = moves.go()
    client.sock.sendall(GET)
    server = new.serve()
    new.gets(server, GET)
    server.sock.sendall(OK)
    new.gets(client, OK)
    new.exchange(client, server)


@pytest.mark.parametrize("at", range(1, len(GET) - 1, 5))
def test_within_a_head(moves: Moves, at: int) -> None:
    client = moves.old.connect()
    client.sock.sendall(GET[:at])
    moves.old.settle()
    new = moves.go()
    client.sock.sendall(GET[at:])
    server = new.serve()
    new.gets(server, GET)
    server.sock.sendall(OK)
    new.gets(client, OK)


def test_request_that_waits_for_its_answer(moves: Moves) -> None:
    client = moves.old.connect()
    client.sock.sendall(GET + GET)
    server = moves.old.serve()
    moves.old.gets(server, GET)
    new = moves.go()
    server.sock.sendall(OK)
    new.gets(client, OK)
    new.gets(server, GET)  # what was in the pipeline
    server.sock.sendall(OK)
    new.gets(client, OK)


def test_within_a_response_head(moves: Moves) -> None:
    client = moves.old.connect()
    client.sock.sendall(GET)
    server = moves.old.serve()
    moves.old.gets(server, GET)
    server.sock.sendall(OK[:20])
    moves.old.settle()
    new = moves.go()
    server.sock.sendall(OK[20:])
    new.gets(client, OK)
    new.exchange(client, server)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("upwards", [False, True])
@pytest.mark.parametrize("blocked", [False, True])
def test_within_a_body(moves: Moves, framing: str, upwards: bool, blocked: bool) -> None:
    """With what is buffered and what lies in pipes, at whatever place."""
    if upwards and framing == "close":
        framing = "length"  # a request has no other
    seed = random.Random(7)
    data = seed.randbytes(8 << 20)
    if framing == "chunked":
        pieces, at = [], 0
        while at < len(data):
            size = seed.choice((1, 100, 5000, 1 << 20))
            pieces.append(b"%x\r\n%s\r\n" % (len(data[at : at + size]), data[at : at + size]))
            at += size
        body, header = b"".join(pieces) + b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\n"
    else:
        body, header = data, b"Content-Length: %d\r\n" % len(data) if framing == "length" else b""
    old = moves.old
    client = old.connect()
    head = b"POST / HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n" if upwards else GET
    client.sock.sendall(head)
    server = old.serve()
    old.gets(server, head)
    source, sink = (client, server) if upwards else (server, client)
    if not upwards:
        answer = b"HTTP/1.1 200 OK\r\n" + header + b"\r\n"
        server.sock.sendall(answer)
        old.gets(client, answer if header else answer[:-2] + b"Connection: close\r\n\r\n")
    view, digest, got = memoryview(body), hashlib.sha256(), 0

    def some(web: Web, most: int) -> None:
        nonlocal view, got
        for _ in range(most):
            if view:
                view = view[source.send(view[: 1 << 19]) :]
            web.turn()
            if not blocked or web is moves.new:
                sink.read()
                digest.update(sink.got)
                got += len(sink.got)
                sink.got = b""

    def arrived(web: Web) -> bool:
        some(web, 1)
        return got >= len(body)

    some(old, 40 if blocked else 5)
    new = moves.go()
    new.until(lambda: arrived(new), "the rest")
    assert got == len(body) and digest.digest() == hashlib.sha256(body).digest()
    if framing == "close":
        server.close()
        new.ends(client)
    elif upwards:
        server.sock.sendall(OK)
        new.gets(client, OK)
        new.exchange(client, server)
    else:
        new.exchange(client, server)
    new.settle()
    assert new.worker.pipes.lent == 0


def test_tunnel(moves: Moves) -> None:
    client = moves.old.connect()
    head = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    client.sock.sendall(head)
    server = moves.old.serve()
    moves.old.gets(server, head)
    answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    server.sock.sendall(answer)
    moves.old.gets(client, answer)
    new = moves.go()
    for number in range(3):
        client.sock.sendall(b"up %d" % number)
        new.gets(server, b"up %d" % number)
        server.sock.sendall(b"down %d" % number)
        new.gets(client, b"down %d" % number)
    client.sock.shutdown(1)
    new.until(lambda: server.read() == b"" and server.eof)
    server.close()
    assert new.ends(client) == b""


def test_queued(farm: Farm) -> None:
    moves = Moves(farm, server={"maxconn": 1})
    try:
        first, second = moves.old.connect(), moves.old.connect()
        first.sock.sendall(GET)
        server = moves.old.serve()
        moves.old.gets(server, GET)
        request = b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        second.sock.sendall(request)
        moves.old.settle()
        new = moves.go(2)
        server.sock.sendall(OK)
        new.gets(first, OK)
        other = new.serve()
        new.gets(other, request)
        other.sock.sendall(OK)
        new.gets(second, OK)
    finally:
        moves.close()


def test_connecting(moves: Moves) -> None:
    client = moves.old.connect()
    client.sock.sendall(GET)
    moves.old.turn()
    new = moves.go()
    server = new.serve()
    new.gets(server, GET)
    server.sock.sendall(OK)
    new.gets(client, OK)


def test_last_words_to_a_client_that_does_not_read(moves: Moves) -> None:
    """A client that was refused, and still sends, moves with its answer."""
    client = moves.old.connect()
    client.sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
    moves.old.until(lambda: any(c.state == "tarrying" for c in moves.old.worker.connections))
    new = moves.go()
    client.sock.sendall(b"more")
    new.is_told(client, 400)
    client.close()
    new.until(lambda: not new.worker.connections)
